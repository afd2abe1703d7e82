//! What can be chosen about the relays that forwards start in a cluster.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::problem::{Code, Problem};

/// Where releases are published. A build of one's own names its image by setting, flag or variable.
const REPOSITORY: &str = "ghcr.io/kftray/kftray-server";

/// Settings of relays. Everything is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct RelaySettings {
    /// The image with tag or digest, for example from a mirror; `None` is this version's own.
    pub image: Option<String>,
    /// Pins the image to a digest, `sha256:` and 64 hexadecimal digits; replaces one in `image`.
    pub digest: Option<String>,
    /// `Always`, `IfNotPresent` or `Never`; `None` leaves it to the cluster.
    pub pull_policy: Option<PullPolicy>,
    /// Names of Secrets in the relay's namespace with the credentials of the image's registry.
    pub pull_secrets: Vec<String>,
    /// Tolerations as in a pod's specification.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub tolerations: Vec<Value>,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// `priorityClassName`.
    pub priority_class: Option<String>,
    /// `resources` of the container, instead of 5m CPU and 16 MiB requested, 128 MiB at most.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub resources: Option<Value>,
    /// Further annotations of object and pod, for example for a service mesh.
    pub annotations: BTreeMap<String, String>,
    /// Further environment variables of the container.
    pub env: BTreeMap<String, String>,
    /// What the relay may reach: host, `*.suffix` or CIDR, each with an optional port or range. Empty: all but what is
    /// denied.
    pub allow: Vec<String>,
    /// What it may not reach, beside what it denies by itself.
    pub deny: Vec<String>,
    /// Seconds without a tunnel after which it ends, 10 to 86,400; `None` is 120.
    pub idle_exit: Option<u32>,
    /// Seconds after which it ends in any case (`activeDeadlineSeconds`); `None` is never.
    pub active_deadline: Option<u32>,
    /// Changes to the finished manifest: a JSON merge patch (RFC 7386), with lists of named things merged by name.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub patch: Option<Value>,
    /// Namespace of a relay that an administrator has installed; `None` is `kftray-system`.
    pub system_namespace: Option<String>,
    /// Whether an installed relay is used where there is one; `None` is yes.
    pub use_installed: Option<bool>,
}

/// When the node asks the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PullPolicy {
    /// At each start.
    Always,
    /// When the node has no such image.
    IfNotPresent,
    /// Never; the image must be there.
    Never,
}

impl fmt::Display for PullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        })
    }
}

impl RelaySettings {
    /// Seconds without a tunnel after which a relay ends unless told otherwise.
    pub const IDLE_EXIT: u32 = 120;
    /// The namespace of an installed relay unless told otherwise, as the documents name it.
    pub const SYSTEM_NAMESPACE: &str = "kftray-system";

    /// The settings with another image, if one is given.
    #[must_use]
    pub fn with_image(mut self, image: Option<&str>) -> Self {
        if let Some(image) = image {
            self.image = Some(image.to_owned());
            // A digest of the stored setting belongs to the stored image.
            self.digest = None;
        }
        self
    }

    /// Namespace of an installed relay.
    #[must_use]
    pub fn system_namespace(&self) -> &str {
        self.system_namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or(Self::SYSTEM_NAMESPACE)
    }

    /// The settings as they are used.
    ///
    /// # Errors
    /// [`Code::SpecInvalid`] naming the field that cannot be.
    pub fn resolve(&self) -> Result<RelaySpec, Problem> {
        let image = match (&self.image, &self.digest) {
            (None, None) => format!("{REPOSITORY}:{}", env!("CARGO_PKG_VERSION")),
            (Some(image), None) => image.trim().to_owned(),
            (image, Some(digest)) => {
                let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
                if !hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())) {
                    return Err(invalid("digest", digest, "expected `sha256:` and 64 hexadecimal digits"));
                }
                let image = image.as_deref().unwrap_or(REPOSITORY).trim();
                let bare = image.split_once('@').map_or(image, |(before, _)| before);
                format!("{bare}@{digest}")
            }
        };
        if image.is_empty() || image.len() > 512 || !image.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(invalid(
                "image",
                &image,
                "expected an image reference such as registry.example.com/kftray-server:1",
            ));
        }
        if let Some(seconds) = self.idle_exit.filter(|seconds| !(10..=86_400).contains(seconds)) {
            return Err(invalid("idle_exit", &seconds.to_string(), "expected 10 to 86400 seconds"));
        }
        for entry in self.allow.iter().chain(&self.deny) {
            if entry.is_empty() || entry.contains(|c: char| c == ',' || c.is_whitespace()) {
                return Err(invalid(
                    "allow",
                    entry,
                    "expected host, *.suffix or CIDR, with an optional :port",
                ));
            }
        }
        if let Some(bad) = self.tolerations.iter().find(|toleration| !toleration.is_object()) {
            return Err(invalid(
                "tolerations",
                &bad.to_string(),
                "expected objects as in a pod's specification",
            ));
        }
        for (field, value) in [("resources", &self.resources), ("patch", &self.patch)] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_object()) {
                return Err(invalid(field, &value.to_string(), "expected an object"));
            }
        }
        Ok(RelaySpec { image, settings: self.clone() })
    }
}

fn invalid(field: &str, value: &str, expected: &str) -> Problem {
    Problem::new(Code::SpecInvalid, format!("the relay's setting {field} cannot be `{value}`: {expected}"))
        .with_remedy("Correct the relay's settings.")
}

/// Checked settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySpec {
    image: String,
    settings: RelaySettings,
}

impl RelaySpec {
    /// The image, whole.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// The settings it was made of.
    #[must_use]
    pub fn settings(&self) -> &RelaySettings {
        &self.settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(image: Option<&str>, digest: Option<&str>) -> Result<String, String> {
        let settings = RelaySettings {
            image: image.map(str::to_owned),
            digest: digest.map(str::to_owned),
            ..RelaySettings::default()
        };
        settings.resolve().map(|spec| spec.image).map_err(|problem| problem.message)
    }

    #[test]
    fn images_and_digests() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(image(None, None).unwrap(), format!("{REPOSITORY}:{}", env!("CARGO_PKG_VERSION")));
        assert_eq!(image(Some("mirror:5000/x:1"), None).unwrap(), "mirror:5000/x:1");
        assert_eq!(image(None, Some(&digest)).unwrap(), format!("{REPOSITORY}@{digest}"));
        assert_eq!(image(Some("m/x:1@sha256:00"), Some(&digest)).unwrap(), format!("m/x:1@{digest}"));
        for (bad, digest, field) in [
            (Some("two words"), None, "image"),
            (Some(""), None, "image"),
            (None, Some("sha256:12"), "digest"),
        ] {
            let told = image(bad, digest).unwrap_err();
            assert!(told.contains(field), "{told}");
        }
    }

    #[test]
    fn another_image_takes_the_digest_of_the_first_away() {
        let stored = RelaySettings {
            image: Some("a".to_owned()),
            digest: Some("sha256:x".to_owned()),
            ..RelaySettings::default()
        };
        assert_eq!(stored.clone().with_image(Some("b:2")).resolve().unwrap().image(), "b:2");
        assert_eq!(stored.clone().with_image(None), stored);
    }

    #[test]
    fn what_cannot_be_names_its_field() {
        let parse = |text: &str| serde_json::from_str::<RelaySettings>(text).unwrap().resolve();
        for (text, field) in [
            (r#"{"idle_exit": 1}"#, "idle_exit"),
            (r#"{"allow": ["a b"]}"#, "allow"),
            (r#"{"deny": ["a,b"]}"#, "allow"),
            (r#"{"tolerations": ["x"]}"#, "tolerations"),
            (r#"{"patch": []}"#, "patch"),
            (r#"{"resources": 5}"#, "resources"),
        ] {
            let problem = parse(text).unwrap_err();
            assert_eq!(problem.code, Code::SpecInvalid);
            assert!(problem.message.contains(field), "{}", problem.message);
        }
    }
}
