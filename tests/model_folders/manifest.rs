//! `eka.json`, damaged field by field.

use eka::{
    device_spec::Verify,
    engine::Forward,
    model::{Model, Scope},
};
use serde_json::{Value, json};

use crate::support::{
    files::cut,
    model_folder::Folder,
    models::{OPTIONS, open_directory, runtime},
};

/// Every place of a number, a text or a list in the manifest, as JSON pointers.
fn places(document: &Value, at: &str, found: &mut Vec<String>) {
    match document {
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| *name != "provenance") {
                places(value, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            found.push(at.into());
            places(&items[0], &format!("{at}/0"), found);
        }
        _ => found.push(at.into()),
    }
}

/// The values written instead of `value`.
fn damages(value: &Value) -> Vec<Value> {
    let mut damages = vec![json!(null), json!(0), json!(-1), json!("x"), json!([]), json!({}), json!(1.5)];
    damages.extend([json!("../x"), json!(1_u64 << 24), json!(u64::MAX)]);
    if let Some(n) = value.as_u64() {
        damages.extend([json!(n + 1), json!(n * 2), json!(n / 2), json!(n.saturating_sub(1))]);
    }
    damages
}

#[test]
fn a_wrong_manifest_is_rejected_at_load_or_harmless() {
    let folder = Folder::new();
    let manifest = folder.manifest();
    let mut all = Vec::new();
    places(&manifest, "", &mut all);
    assert!(all.len() > 25, "{all:?}");
    let mut loaded = 0;
    for place in all {
        for damage in damages(manifest.pointer(&place).unwrap()) {
            let mut damaged = manifest.clone();
            *damaged.pointer_mut(&place).unwrap() = damage.clone();
            folder.write_manifest(&damaged);
            let Ok(model) = Model::open(runtime(), &folder.path(), OPTIONS) else { continue };
            drop(model);
            loaded += 1;
            let mut timeline = open_directory(&folder.path(), 64);
            let prompt = vec![1; timeline.capacity()];
            timeline.forward_all(&prompt).unwrap_or_else(|e| panic!("{place} is {damage}: {e}"));
        }
    }
    assert!(loaded > 10, "only {loaded} of them do not matter");
}

#[test]
fn a_context_longer_than_the_position_tables_is_rejected_with_both_numbers() {
    let folder = Folder::new();
    let mut manifest = folder.manifest();
    let rows = manifest["context_length"].as_u64().unwrap();
    manifest["context_length"] = json!(rows + 1);
    folder.write_manifest(&manifest);
    let problem = folder.problem(Verify::Size, Scope::Weights);
    let told = format!("context_length is {}, and \"rotary.0.cos\" has {rows} positions", rows + 1);
    assert!(problem.contains(&told), "{problem}");
    let error = Model::open(runtime(), &folder.path(), OPTIONS).unwrap_err().to_string();
    assert!(error.contains(&told), "{error}");
}

#[test]
fn a_folder_of_an_older_version_is_served_and_its_weights_are_still_checked() {
    let folder = Folder::new();
    let mut manifest = folder.manifest();
    assert_eq!(manifest["schema"], 3);
    manifest["schema"] = json!(2);
    manifest.as_object_mut().unwrap().remove("files");
    folder.write_manifest(&manifest);
    open_directory(&folder.path(), 64).forward(&[1, 2, 3]).unwrap();
    cut(&folder.file("model.onnx.data"), 4096);
    let problem = folder.problem(Verify::Size, Scope::Weights);
    assert!(problem.contains("model.onnx.data") && problem.contains("truncated"), "{problem}");
}
