//! The window without a terminal: scripted, drawn into memory.

mod flows;
mod property;
mod script;
mod snapshots;
mod speed;
