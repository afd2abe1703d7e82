//! The commands that work on the host, one module each.

pub(crate) mod act;
pub(crate) mod add;
mod ask;
pub(crate) mod doctor;
pub(crate) mod edit;
pub(crate) mod env;
pub(crate) mod group;
pub(crate) mod hold;
pub(crate) mod import;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod remove;
pub(crate) mod select;
pub(crate) mod settings;
pub(crate) mod settle;
pub(crate) mod up;
pub(crate) mod wait;
