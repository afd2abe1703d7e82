//! Settings: typed for those that the host acts on, kept as they are for everybody else's.

use std::collections::BTreeMap;
use std::sync::Arc;

use kftray_commons::api::{Settings, SettingsPatch};
use kftray_commons::store::{Known, RELAY, relay_settings};
use kftray_commons::{Code, Problem};
use kftray_kube::deploy::with_environment;
use serde_json::Value;

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
    let relay = relay_settings(&stored);
    stored.retain(|name, _| Known::of(name).is_none() || !name.starts_with(RELAY));
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
        relay,
        other: stored,
    }
}

/// What a patch writes, by name.
///
/// # Errors
/// `request_invalid` for a setting of relays that there is not.
fn changes(patch: SettingsPatch) -> Result<Vec<(String, Option<String>)>, Problem> {
    let SettingsPatch {
        restore,
        idle_minutes,
        ttl_minutes,
        host_idle_minutes,
        network_monitor,
        relay,
        other,
    } = patch;
    let typed = [
        (RESTORE, restore.map(|value| value.to_string())),
        (IDLE, idle_minutes.map(|value| value.to_string())),
        (TTL, ttl_minutes.map(|value| value.to_string())),
        (HOST_IDLE, host_idle_minutes.map(|value| value.to_string())),
        (NETWORK, network_monitor.map(|value| value.to_string())),
    ];
    let typed = typed.into_iter().filter(|(_, value)| value.is_some());
    let typed = typed.map(|(name, value)| (name.to_owned(), value));
    let relay = relay.iter().map(|(field, value)| of_relay(field, value)).collect::<Result<Vec<_>, _>>()?;
    Ok(typed.chain(relay).chain(other).collect())
}

/// A field of the relays' settings as it is stored.
fn of_relay(field: &str, value: &Value) -> Result<(String, Option<String>), Problem> {
    let name = format!("{RELAY}{field}");
    let Some(known) = Known::of(&name) else {
        let message = format!("relays have no setting {field}");
        return Err(Problem::new(Code::RequestInvalid, message));
    };
    let text = (!value.is_null()).then(|| known.text(value));
    Ok((name, text))
}

/// Relays become what the settings say, now and with every change. Never ends.
pub(crate) async fn follow_relay_settings(core: Arc<Core>) {
    let mut settings = core.board().settings_changes();
    apply_relay_settings(&core);
    while settings.changed().await.is_ok() {
        apply_relay_settings(&core);
    }
}

/// Relays become what the settings say; the environment wins.
pub(crate) fn apply_relay_settings(core: &Core) {
    let wanted = core.board().settings().relay.clone();
    core.fleet().kube().relays().set_settings(with_environment(wanted, core.environment()));
}

/// Changes settings for everybody; answers all of them.
///
/// # Errors
/// `request_invalid` for a value that a setting does not take, and for what is no setting of relays; what the store says.
pub(crate) async fn change(core: &Core, patch: SettingsPatch) -> Result<Arc<Settings>, Problem> {
    let changes = changes(patch)?;
    let board = Arc::clone(core.board());
    let archive = core.archive();
    let changed = archive.call(move |store| {
        for (name, value) in &changes {
            store.set_setting(name, value.as_deref())?;
        }
        board.put_settings(read(store.settings()?));
        Ok(board.settings())
    });
    let settings = changed.await?;
    // Whoever starts a forward next finds it done.
    apply_relay_settings(core);
    Ok(settings)
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
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let patch = SettingsPatch {
            restore: Some(false),
            idle_minutes: Some(7),
            relay: [
                ("image".to_owned(), json!("mirror/relay:1")),
                ("annotations".to_owned(), json!({"mesh": "a,b"})),
                ("idle_exit".to_owned(), json!(60)),
                ("deny".to_owned(), Value::Null),
            ]
            .into(),
            other: [("theme".to_owned(), Some("dark".to_owned()))].into(),
            ..SettingsPatch::default()
        };
        let written = changes(patch).expect("all are known");
        let stored = written.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let settings = read(stored);
        assert!(!settings.restore);
        assert_eq!(settings.idle_minutes, 7);
        assert_eq!(settings.host_idle_minutes, Settings::default().host_idle_minutes);
        assert_eq!(settings.other.get("theme").map(String::as_str), Some("dark"));
        assert_eq!(settings.other.len(), 1);
        assert_eq!(settings.relay.image.as_deref(), Some("mirror/relay:1"));
        assert_eq!(settings.relay.annotations.get("mesh").map(String::as_str), Some("a,b"));
        assert_eq!(settings.relay.idle_exit, Some(60));
    }

    #[test]
    fn relays_have_no_such_setting() {
        let relay = [("colour".to_owned(), json!("blue"))].into();
        let problem =
            changes(SettingsPatch { relay, ..SettingsPatch::default() }).expect_err("no such setting");
        assert_eq!(problem.code, Code::RequestInvalid);
        assert!(problem.message.contains("colour"), "{problem}");
    }

    #[test]
    fn a_value_of_its_own_wins_and_zero_is_never() {
        let settings = Settings { idle_minutes: 10, ttl_minutes: 0, ..Settings::default() };
        let minutes = |count: u64| Some(std::time::Duration::from_secs(count * 60));
        assert_eq!(lifetime(None, None, &settings), Lifetime { idle: minutes(10), ttl: None });
        assert_eq!(lifetime(Some(0), Some(5), &settings), Lifetime { idle: None, ttl: minutes(5) });
    }
}
