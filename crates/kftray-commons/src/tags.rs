//! Tags: small `key=value` marks by which forwards are grouped and filtered.
//!
//! Rules as in the reference's format since 0.35 (keys 1-63 characters of `a-z 0-9 . _ - /`, lower-cased on entry; values
//! at most 128 characters without `,` and `=`), so that what we accept it accepts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest key, in characters.
pub const KEY_MAX: usize = 63;
/// Longest value, in characters.
pub const VALUE_MAX: usize = 128;

/// Tags of one forward, sorted by key; every key and value in it is valid.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Tags(BTreeMap<String, String>);

/// What is wrong with a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TagFault {
    /// No key.
    #[error("a tag has no key")]
    NoKey,
    /// Too many characters in the key.
    #[error("the key `{key}` is longer than {KEY_MAX} characters")]
    KeyTooLong {
        /// The key as written.
        key: String,
    },
    /// A character that a key may not have.
    #[error("the key `{key}` has `{letter}`; allowed are a-z, 0-9 and . _ - /")]
    KeyLetter {
        /// The key as written.
        key: String,
        /// The first such character.
        letter: char,
    },
    /// Two keys that are equal after trimming and lower-casing.
    #[error("the key `{key}` is there twice (capital letters do not count)")]
    Twice {
        /// The key in lower case.
        key: String,
    },
    /// Too many characters in the value.
    #[error("the value of `{key}` is longer than {VALUE_MAX} characters")]
    ValueTooLong {
        /// The key.
        key: String,
    },
    /// A character that a value may not have.
    #[error("the value of `{key}` has `{letter}`, which separates tags")]
    ValueLetter {
        /// The key.
        key: String,
        /// The first such character.
        letter: char,
    },
}

impl Tags {
    /// The key whose value is the name of the group that a forward belongs to.
    pub const GROUP: &'static str = "group";

    /// No tags.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one; the key is trimmed and lower-cased, the value trimmed.
    ///
    /// # Errors
    /// What is wrong with it; the tags are as before then.
    pub fn insert(&mut self, key: &str, value: &str) -> Result<(), TagFault> {
        let key = key.trim().to_ascii_lowercase();
        let value = value.trim();
        if key.is_empty() {
            return Err(TagFault::NoKey);
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
        if let Some(letter) = key.chars().find(|c| !allowed(*c)) {
            return Err(TagFault::KeyLetter { key, letter });
        }
        if key.len() > KEY_MAX {
            return Err(TagFault::KeyTooLong { key });
        }
        if let Some(letter) = value.chars().find(|c| matches!(c, ',' | '=') || c.is_control()) {
            return Err(TagFault::ValueLetter { key, letter });
        }
        if value.chars().count() > VALUE_MAX {
            return Err(TagFault::ValueTooLong { key });
        }
        if self.0.contains_key(&key) {
            return Err(TagFault::Twice { key });
        }
        self.0.insert(key, value.to_owned());
        Ok(())
    }

    /// Adds one or replaces its value.
    ///
    /// # Errors
    /// What is wrong with it; the tags are as before then.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), TagFault> {
        let known = self.0.remove_entry(&key.trim().to_ascii_lowercase());
        let result = self.insert(key, value);
        if result.is_err() {
            self.0.extend(known);
        }
        result
    }

    /// Removes one; its value, if it was there.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        self.0.remove(&key.trim().to_ascii_lowercase())
    }

    /// The name of the group, if it belongs to one.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        self.get(Self::GROUP).filter(|name| !name.is_empty())
    }

    /// Reads the text form of editors: `key=value, key2`; a key alone has an empty value.
    ///
    /// # Errors
    /// The first fault.
    pub fn from_text(text: &str) -> Result<Self, TagFault> {
        let mut tags = Self::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            tags.insert(key, value)?;
        }
        Ok(tags)
    }

    /// Key and value, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

impl TryFrom<BTreeMap<String, String>> for Tags {
    type Error = TagFault;

    fn try_from(map: BTreeMap<String, String>) -> Result<Self, TagFault> {
        let mut tags = Self::new();
        for (key, value) in &map {
            tags.insert(key, value)?;
        }
        Ok(tags)
    }
}

impl From<Tags> for BTreeMap<String, String> {
    fn from(tags: Tags) -> Self {
        tags.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        let tags = Tags::from_text(" Team = Blue , urgent,, app/x.y_z-1=2").expect("valid");
        let all: Vec<_> = tags.iter().collect();
        assert_eq!(all, [("app/x.y_z-1", "2"), ("team", "Blue"), ("urgent", "")]);
        assert_eq!(tags.get("team"), Some("Blue"));
    }

    #[test]
    fn refused() {
        assert_eq!(Tags::from_text("=x"), Err(TagFault::NoKey));
        assert_eq!(Tags::from_text("a=1,A=2"), Err(TagFault::Twice { key: "a".into() }));
        assert_eq!(Tags::from_text("a b=1"), Err(TagFault::KeyLetter { key: "a b".into(), letter: ' ' }));
        assert_eq!(Tags::from_text("a=1=2"), Err(TagFault::ValueLetter { key: "a".into(), letter: '=' }));
        let long = "k".repeat(64);
        assert_eq!(Tags::from_text(&long), Err(TagFault::KeyTooLong { key: long.clone() }));
        assert_eq!(
            Tags::new().insert("k", &"v".repeat(129)),
            Err(TagFault::ValueTooLong { key: "k".into() })
        );
        assert_eq!(Tags::new().insert("k", &"é".repeat(128)), Ok(()));
    }

    #[test]
    fn a_value_is_replaced_or_stays() {
        let mut tags = Tags::from_text("group=a").expect("valid");
        assert_eq!(tags.set("Group", "b"), Ok(()));
        assert_eq!(tags.group(), Some("b"));
        assert!(tags.set("group", "b,c").is_err());
        assert_eq!(tags.group(), Some("b"));
        assert_eq!(tags.remove("group").as_deref(), Some("b"));
        assert_eq!((tags.group(), tags.is_empty()), (None, true));
    }

    #[test]
    fn json_is_checked() {
        assert!(serde_json::from_str::<Tags>(r#"{"a":"1"}"#).is_ok());
        assert!(serde_json::from_str::<Tags>(r#"{"a!":"1"}"#).is_err());
    }
}
