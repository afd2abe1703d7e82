//! What can be chosen about a relay, by setting, environment and flag, in this order of rising weight.

pub use kftray_commons::relay::{PullPolicy, RelaySettings, RelaySpec};

use crate::config::Environment;

/// The environment variable with the image of the relay.
pub const IMAGE_VARIABLE: &str = "KFTRAY_RELAY_IMAGE";

/// The settings with what the environment says about them.
#[must_use]
pub fn with_environment(settings: RelaySettings, environment: &Environment) -> RelaySettings {
    settings.with_image(environment.text(IMAGE_VARIABLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_wins_over_the_setting() {
        let stored = RelaySettings { image: Some("a".to_owned()), ..RelaySettings::default() };
        let environment = Environment::new([(IMAGE_VARIABLE, "b:2")], "/");
        assert_eq!(with_environment(stored.clone(), &environment).resolve().unwrap().image(), "b:2");
        let empty = Environment::new([("X", "y")], "/");
        assert_eq!(with_environment(stored.clone(), &empty), stored);
    }
}
