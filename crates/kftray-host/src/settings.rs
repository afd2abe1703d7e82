//! Settings: typed for those that the host acts on, kept as they are for everybody else's.

use std::collections::BTreeMap;
use std::sync::Arc;

use kftray_commons::Problem;
use kftray_commons::api::{Settings, SettingsPatch};

use crate::core::Core;
use crate::forwards::Lifetime;

const RESTORE: &str = "restore";
const IDLE: &str = "idle_minutes";
const TTL: &str = "ttl_minutes";
const HOST_IDLE: &str = "host_idle_minutes";
const NETWORK: &str = "network_monitor";

/// What is stored, with defaults for what is not.
pub(crate) fn read(mut stored: BTreeMap<String, String>) -> Settings {
    let usual = Settings::default();
    let mut take = |name: &str| stored.remove(name);
    let flag = |text: Option<String>, usual| match text.as_deref() {
        Some("true" | "1") => true,
        Some("false" | "0") => false,
        Some(_) | None => usual,
    };
    let count = |text: Option<String>, usual| text.and_then(|text| text.parse().ok()).unwrap_or(usual);
    Settings {
        restore: flag(take(RESTORE), usual.restore),
        idle_minutes: count(take(IDLE), usual.idle_minutes),
        ttl_minutes: count(take(TTL), usual.ttl_minutes),
        host_idle_minutes: count(take(HOST_IDLE), usual.host_idle_minutes),
        network_monitor: flag(take(NETWORK), usual.network_monitor),
        other: stored,
    }
}

/// What a patch writes, by name.
fn changes(patch: SettingsPatch) -> Vec<(String, Option<String>)> {
    let SettingsPatch { restore, idle_minutes, ttl_minutes, host_idle_minutes, network_monitor, other } =
        patch;
    let typed = [
        (RESTORE, restore.map(|value| value.to_string())),
        (IDLE, idle_minutes.map(|value| value.to_string())),
        (TTL, ttl_minutes.map(|value| value.to_string())),
        (HOST_IDLE, host_idle_minutes.map(|value| value.to_string())),
        (NETWORK, network_monitor.map(|value| value.to_string())),
    ];
    let typed = typed.into_iter().filter(|(_, value)| value.is_some());
    typed.map(|(name, value)| (name.to_owned(), value)).chain(other).collect()
}

/// Changes settings for everybody; answers all of them.
///
/// # Errors
/// `request_invalid` for a value that a setting does not take; what the store says.
pub(crate) async fn change(core: &Core, patch: SettingsPatch) -> Result<Arc<Settings>, Problem> {
    let changes = changes(patch);
    let board = Arc::clone(core.board());
    let archive = core.archive();
    archive
        .call(move |store| {
            for (name, value) in &changes {
                store.set_setting(name, value.as_deref())?;
            }
            board.put_settings(read(store.settings()?));
            Ok(board.settings())
        })
        .await
}

/// When a forward ends by itself: its own word, else the settings'.
pub(crate) fn lifetime(idle: Option<u32>, ttl: Option<u32>, settings: &Settings) -> Lifetime {
    Lifetime {
        idle: crate::clock::minutes(idle.unwrap_or(settings.idle_minutes)),
        ttl: crate::clock::minutes(ttl.unwrap_or(settings.ttl_minutes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let patch = SettingsPatch {
            restore: Some(false),
            idle_minutes: Some(7),
            other: [("theme".to_owned(), Some("dark".to_owned()))].into(),
            ..SettingsPatch::default()
        };
        let stored = changes(patch).into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let settings = read(stored);
        assert!(!settings.restore);
        assert_eq!(settings.idle_minutes, 7);
        assert_eq!(settings.host_idle_minutes, Settings::default().host_idle_minutes);
        assert_eq!(settings.other.get("theme").map(String::as_str), Some("dark"));
        assert_eq!(settings.other.len(), 1);
    }

    #[test]
    fn a_value_of_its_own_wins_and_zero_is_never() {
        let settings = Settings { idle_minutes: 10, ttl_minutes: 0, ..Settings::default() };
        let minutes = |count: u64| Some(std::time::Duration::from_secs(count * 60));
        assert_eq!(lifetime(None, None, &settings), Lifetime { idle: minutes(10), ttl: None });
        assert_eq!(lifetime(Some(0), Some(5), &settings), Lifetime { idle: None, ttl: minutes(5) });
    }
}
