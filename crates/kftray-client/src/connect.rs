//! A client: where the host is, and who it said it is.

use std::path::Path;
use std::sync::Arc;

use http::Method;
use kftray_commons::api::{Hello, PROTOCOL, Place};

use crate::request::{Question, ask};
use crate::start::StartOptions;
use crate::version::{Relation, mismatch, relation};
use crate::{Result, platform, start};

/// A way to the host of one configuration directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) place: Arc<Place>,
    pub(crate) hello: Arc<Hello>,
    /// How a host that was lost is started again, if at all.
    pub(crate) start: Option<Arc<StartOptions>>,
}

impl Client {
    /// Finds the running host of a configuration directory.
    ///
    /// # Errors
    /// `host_unreachable` if none runs or it does not answer, `version_mismatch` if it speaks another protocol,
    /// `peer_refused` if it is another user's.
    pub async fn connect(directory: &Path) -> Result<Self> {
        let place = platform::place(directory);
        let hello = hello(&place).await?;
        match relation(PROTOCOL, env!("CARGO_PKG_VERSION"), &hello) {
            Relation::Fits | Relation::Older => {
                Ok(Self { place: Arc::new(place), hello: Arc::new(hello), start: None })
            }
            Relation::TooOld | Relation::TooNew => Err(mismatch(PROTOCOL, env!("CARGO_PKG_VERSION"), &hello)),
        }
    }

    /// Finds the running host; starts one in the background if there is none; lets a new one take over from one that is
    /// older than this program, forwards and all.
    ///
    /// # Errors
    /// As [`Self::connect`]; `host_unreachable` with the reason why a new host did not start.
    pub async fn connect_or_start(directory: &Path, options: StartOptions) -> Result<Self> {
        let place = Arc::new(platform::place(directory));
        let hello = start::ensure(&place, &options).await?;
        Ok(Self { place, hello: Arc::new(hello), start: Some(Arc::new(options)) })
    }

    /// Where the host is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What the host said when it was found. [`Self::hello`] asks again.
    #[must_use]
    pub fn host(&self) -> &Hello {
        &self.hello
    }
}

/// Asks the host of a directory to end, whatever protocol it speaks: this request never changes.
///
/// # Errors
/// `host_unreachable` if none runs or it does not answer.
pub async fn dismiss(directory: &Path) -> Result<()> {
    ask(&platform::place(directory), Question::new(Method::POST, "/shutdown")).await.map(drop)
}

/// Asks a host who it is, in whatever version.
pub(crate) async fn hello(place: &Place) -> Result<Hello> {
    ask(place, Question::new(Method::GET, "/hello")).await?.json().await
}
