//! The user's changes to a finished manifest.
//!
//! A JSON merge patch (RFC 7386) replaces lists whole, which would make everybody who wants one more environment variable
//! repeat the container. So, as `kubectl` does it with its strategic patch, lists of named things are merged by name; all
//! other lists are replaced.

use serde_json::Value;

/// Applies `patch`; `null` removes.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    match patch {
        Value::Object(changes) => {
            if !target.is_object() {
                *target = Value::Object(serde_json::Map::new());
            }
            let Some(map) = target.as_object_mut() else { return };
            for (name, change) in changes {
                if change.is_null() {
                    map.shift_remove(name);
                } else {
                    merge(map.entry(name.clone()).or_insert(Value::Null), change);
                }
            }
        }
        Value::Array(changes)
            if is_named(changes) && target.as_array().is_some_and(|list| is_named(list)) =>
        {
            let Some(list) = target.as_array_mut() else { return };
            for change in changes {
                match list.iter_mut().find(|known| known["name"] == change["name"]) {
                    Some(known) => merge(known, change),
                    None => list.push(change.clone()),
                }
            }
        }
        Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            *target = patch.clone();
        }
    }
}

fn is_named(list: &[Value]) -> bool {
    list.iter().all(|item| item["name"].is_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The examples of RFC 7386, appendix A, as far as they have no list.
    #[test]
    fn as_the_rfc_has_it() {
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, expected, "{target} + {patch}");
        }
    }

    #[test]
    fn named_things_are_merged_by_name_and_other_lists_replaced() {
        let mut target = json!({"containers": [{"name": "relay", "image": "a", "args": ["x"]}]});
        merge(
            &mut target,
            &json!({"containers": [{"name": "relay", "args": ["y", "z"]}, {"name": "side", "image": "b"}]}),
        );
        assert_eq!(
            target,
            json!({"containers": [{"name": "relay", "image": "a", "args": ["y", "z"]}, {"name": "side", "image": "b"}]})
        );
    }
}
