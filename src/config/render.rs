//! The settings as TOML and JSON with their origins, and the reference of all settings as Markdown.

use std::fmt::Write;

use config::ValueKind;
use serde_json::{Map, Value, json};

use super::{
    merged::Merged,
    setting::{Kind, Setting},
    settings_table::SETTINGS,
};

/// A file that gives the same settings again, with the origin of each as a comment.
pub(super) fn to_toml(merged: &Merged) -> String {
    let mut toml = String::new();
    for section in sections() {
        let gap = if toml.is_empty() { "" } else { "\n" };
        let _ = writeln!(toml, "{gap}[{}]", section[0].section);
        toml.extend(section.iter().map(|setting| line(setting, merged)));
    }
    toml
}

/// One object with every setting by its path: `value` and `origin`, or null; for an unset one what happens `instead`; for a
/// secret `secret`, without its value.
pub(super) fn to_json(merged: &Merged) -> Value {
    let entry = |setting: &Setting| (setting.path.to_owned(), document(setting, merged));
    SETTINGS.iter().map(entry).collect::<Map<_, _>>().into()
}

/// The reference of all settings.
#[must_use]
pub fn reference() -> String {
    let mut markdown = String::from(INTRODUCTION);
    for section in sections() {
        let _ = write!(markdown, "\n## {}\n\n", section[0].section_doc.trim());
        markdown += "| Setting | Default | Values | Description |\n|---|---|---|---|\n";
        markdown.extend(section.iter().map(row));
    }
    markdown
}

const INTRODUCTION: &str = "\
# Settings

<!-- Generated from src/config/settings_table.rs by `cargo run -- settings >docs/settings.md`. Do not edit. -->

A setting comes from a flag, an environment variable, the file `eka.toml` in the working directory (or `--config FILE`), or
its default, in this order. For `queue.max_jobs`:

| | |
|---|---|
| flag | `--set queue.max_jobs=8`, or its own flag, if it has one: `--queue 8` |
| environment variable | `EKA_QUEUE_MAX_JOBS=8` |
| file | `[queue]` and below it `max_jobs = 8` |

`eka serve --print-config` prints every setting with its value and origin.
";

/// The settings of each section.
fn sections() -> impl Iterator<Item = &'static [Setting]> {
    SETTINGS.chunk_by(|a, b| a.section == b.section)
}

fn row(setting: &Setting) -> String {
    let flag = setting.flag.as_ref().map(|flag| format!("<br>`--{}`", flag.name)).unwrap_or_default();
    let default = match (setting.default, setting.unset) {
        (Some(default), _) => format!("`{default}`"),
        (None, unset) => unset.unwrap_or("none").to_owned(),
    };
    let cells =
        [setting.expected(), setting.summary()].map(|cell| cell.replace('|', "\\|").replace('<', "&lt;"));
    let [values, summary] = cells;
    format!("| `{}`{flag} | {default} | {values} | {summary} |\n", setting.path)
}

fn document(setting: &Setting, merged: &Merged) -> Value {
    let Some(value) = merged.get(setting.path) else {
        return match setting.unset {
            Some(unset) => json!({"value": null, "origin": null, "instead": unset}),
            None => json!({"value": null, "origin": null}),
        };
    };
    let origin = merged.origin(setting.path);
    match (setting.kind, &value.kind) {
        (Kind::Secret, _) => json!({"value": null, "origin": origin, "secret": true}),
        (_, ValueKind::I64(n)) => json!({"value": n, "origin": origin}),
        (_, ValueKind::Boolean(is)) => json!({"value": is, "origin": origin}),
        (_, other) => json!({"value": other.to_string(), "origin": origin}),
    }
}

fn line(setting: &Setting, merged: &Merged) -> String {
    let name = setting.name;
    let Some(value) = merged.get(setting.path) else {
        return setting.unset.map(|unset| format!("# {name} is not set: {unset}\n")).unwrap_or_default();
    };
    // An origin may be a path with any characters, and a comment ends with its line.
    let origin = merged.origin(setting.path).replace(char::is_control, "\u{fffd}");
    match setting.kind {
        Kind::Secret => format!("# {name} is set, and not shown  # {origin}\n"),
        _ => format!("{name} = {}  # {origin}\n", setting.show(&value.kind)),
    }
}
