//! The JSON of manifests.

use serde::Serialize;

/// The content of a manifest's file: indented, with a final newline. Manifests are plain data with string keys, which always serialise.
pub(super) fn to_json(manifest: &impl Serialize) -> String {
    let mut json = serde_json::to_string_pretty(manifest).expect("plain data serialises");
    json.push('\n');
    json
}
