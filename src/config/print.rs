//! `--print-config`: the settings as a file, each with where it came from.

use std::fmt::Write;

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
