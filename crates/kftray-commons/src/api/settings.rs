//! Settings of the host, shared by all faces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::relay::RelaySettings;

/// Every setting with its present value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Settings {
    /// Start again what ran when the host ended.
    pub restore: bool,
    /// Minutes without traffic after which a forward ends, where its config says nothing; 0: never.
    pub idle_minutes: u32,
    /// Minutes after its start at which a forward ends, where its config says nothing; 0: never.
    pub ttl_minutes: u32,
    /// Minutes without any forward and client after which a background host ends; 0: never.
    pub host_idle_minutes: u32,
    /// Whether changes of the network and wake-ups are watched.
    pub network_monitor: bool,
    /// What relays are to be like; `KFTRAY_RELAY_IMAGE` in the host's environment wins over its image.
    pub relay: RelaySettings,
    /// Settings of faces and of other versions, as they are stored.
    pub other: BTreeMap<String, String>,
}

/// Settings to change; what is absent stays. `PATCH /v1/settings`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct SettingsPatch {
    /// As in [`Settings`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore: Option<bool>,
    /// As in [`Settings`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_minutes: Option<u32>,
    /// As in [`Settings`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_minutes: Option<u32>,
    /// As in [`Settings`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_idle_minutes: Option<u32>,
    /// As in [`Settings`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_monitor: Option<bool>,
    /// Settings of relays by their names in [`RelaySettings`]; `null` takes one back to its default.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub relay: BTreeMap<String, Value>,
    /// Other settings by name, those above too, as texts; `null` removes one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub other: BTreeMap<String, Option<String>>,
}

impl Default for Settings {
    /// Restores, ends nothing by itself, and a host without work leaves after five minutes.
    fn default() -> Self {
        Self {
            restore: true,
            idle_minutes: 0,
            ttl_minutes: 0,
            host_idle_minutes: 5,
            network_monitor: true,
            relay: RelaySettings::default(),
            other: BTreeMap::new(),
        }
    }
}
