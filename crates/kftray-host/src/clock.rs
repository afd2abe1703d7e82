//! The one place where the host looks at the clock on the wall.

use std::time::Duration;

use jiff::Timestamp;
use kftray_commons::api::Millis;

/// Milliseconds since the Unix epoch.
pub(crate) fn now() -> Millis {
    Millis::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// A duration in milliseconds, as far as they can be counted.
pub(crate) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// Minutes as people set them; 0 is never.
pub(crate) fn minutes(minutes: u32) -> Option<Duration> {
    (minutes > 0).then(|| Duration::from_secs(u64::from(minutes) * 60))
}
