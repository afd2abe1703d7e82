//! The legacy `auth-provider` logins (`oidc`, `gcp`), which kube-rs implements; only the header it makes is taken.

use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use kftray_commons::{Code, Problem};
use kube::client::middleware::AuthLayer;
use kube::client::{Body, ConfigExt as _};
use kube::config::AuthProviderConfig;
use tower::{BoxError, Layer as _, Service as _, service_fn};

use super::redact;

/// One `auth-provider` entry.
pub(super) struct Provider {
    config: AuthProviderConfig,
    /// kube-rs keeps the token inside the layer; a failed one is built anew.
    layer: Mutex<Option<Arc<AuthLayer>>>,
}

impl Provider {
    pub(super) fn new(config: AuthProviderConfig) -> Self {
        Self { config, layer: Mutex::new(None) }
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    /// The `Authorization` header of the moment.
    pub(super) async fn header(&self) -> Result<HeaderValue, Problem> {
        let layer = self.layer().await?;
        let mut echo = layer.layer(service_fn(|request: Request<Body>| async move {
            Ok::<_, BoxError>(Response::new(request.headers().get(AUTHORIZATION).cloned()))
        }));
        match echo.call(Request::new(Body::empty())).await {
            Ok(response) => response.into_body().ok_or_else(|| self.problem("gave no token")),
            Err(error) => {
                *self.layer.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Err(self.problem(&redact(&error.to_string())))
            }
        }
    }

    async fn layer(&self) -> Result<Arc<AuthLayer>, Problem> {
        let kept = self.layer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(layer) = kept {
            return Ok(layer);
        }
        let mut config = kube::Config::new(http::Uri::from_static("https://unused.invalid"));
        config.auth_info.auth_provider = Some(self.config.clone());
        // `gcp` may run a program right here.
        let built = tokio::task::spawn_blocking(move || config.auth_layer()).await;
        let layer = match built {
            Ok(Ok(Some(layer))) => Arc::new(layer),
            Ok(Ok(None)) => return Err(self.problem("gave no token")),
            Ok(Err(error)) => return Err(self.problem(&redact(&error.to_string()))),
            Err(error) => return Err(self.problem(&error.to_string())),
        };
        *self.layer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&layer));
        Ok(layer)
    }

    fn problem(&self, text: &str) -> Problem {
        Problem::new(Code::PluginFailed, format!("auth-provider {:?}: {text}", self.config.name)).with_remedy(
            "Log in again with the tool that wrote this kubeconfig entry, or move to an exec plugin.",
        )
    }
}
