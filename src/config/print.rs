//! `--print-config`: the settings as a file or as JSON, each with where it came from.

use std::fmt::Write;

use config::ValueKind;
use serde_json::{Map, Value, json};

use super::{
    keys::{Default, KEYS, Key, Kind},
    layers::Merged,
};

/// TOML that, used as the file, gives the same settings again.
pub(super) fn to_toml(merged: &Merged) -> String {
    let mut toml = String::new();
    let mut current = "";
    for key in &KEYS {
        let (section, name) = key.path.split_once('.').unwrap_or(("", key.path));
        if section != current {
            let gap = if toml.is_empty() { "" } else { "\n" };
            let _ = writeln!(toml, "{gap}[{section}]");
            current = section;
        }
        toml += &line(key, name, merged);
    }
    toml
}

/// One object with every setting by its path: its `value`, or null, and its `origin`, or null; of one that nobody set,
/// what is done `instead`; of one that is set and not shown, that it is `secret`.
pub(super) fn to_json(merged: &Merged) -> Value {
    let entry = |key: &Key| (key.path.to_owned(), document(key, merged));
    KEYS.iter().map(entry).collect::<Map<_, _>>().into()
}

fn document(key: &Key, merged: &Merged) -> Value {
    match (merged.get(key.path), &key.default) {
        (Some(value), _) => match (&key.kind, &value.kind) {
            (Kind::Secret(_), _) => json!({"value": null, "origin": merged.origin(key.path), "secret": true}),
            (_, ValueKind::I64(n)) => json!({"value": n, "origin": merged.origin(key.path)}),
            (_, ValueKind::Boolean(is)) => json!({"value": is, "origin": merged.origin(key.path)}),
            (_, other) => json!({"value": other.to_string(), "origin": merged.origin(key.path)}),
        },
        (None, Default::Derived(instead)) => json!({"value": null, "origin": null, "instead": instead}),
        (None, Default::Is(_)) => json!({"value": null, "origin": null}),
    }
}

fn line(key: &Key, name: &str, merged: &Merged) -> String {
    match (merged.get(key.path), &key.default) {
        (Some(value), _) => {
            // An origin is a path or a flag; a path may hold anything, a comment ends with its line.
            let origin = merged.origin(key.path).replace(char::is_control, "\u{fffd}");
            match key.kind {
                Kind::Secret(_) => format!("# {name} is set, and not shown  # {origin}\n"),
                _ => format!("{name} = {}  # {origin}\n", key.show(&value.kind)),
            }
        }
        (None, Default::Derived(instead)) => format!("# {name} is not set: {instead}\n"),
        (None, Default::Is(_)) => String::new(),
    }
}
