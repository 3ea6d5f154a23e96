//! Damaged exports: those in eka's cache are exported again, all others are reported.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use eka::{device_spec::Verify, model::Scope};

use crate::support::{
    files::{cut, flip, make_fifo},
    model_folder::Folder,
    program::{argument, root, run, text},
};

/// A source directory and a separate cache.
struct Source {
    dir: tempfile::TempDir,
}

impl Source {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("small")).unwrap();
        std::os::unix::fs::symlink(root().join("tests/fixtures/llama/base"), dir.path().join("small/base"))
            .unwrap();
        Self { dir }
    }

    /// Asks the model for a few tokens.
    fn generate(&self, verify: &str) -> Output {
        let cache = format!("model.cache_dir={}", self.dir.path().join("cache").display());
        let (model, verify) = (self.dir.path().join("small"), format!("model.verify={verify}"));
        let flags = ["--model", argument(&model), "--set", &cache, "--set", &verify, "--max-new-tokens", "3"];
        run(&[&["generate", "Once"], &flags[..]].concat())
    }

    fn export(&self) -> PathBuf {
        let exports = self.dir.path().join("cache/exports");
        let found: Vec<_> = fs::read_dir(exports).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }
}

fn content(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

#[test]
fn a_damaged_cached_export_is_exported_again_and_logged() {
    let source = Source::new();
    let first = source.generate("size");
    assert!(first.status.success(), "{}", text(&first.stderr));
    let export = source.export();
    let (weights, manifest) = (export.join("model.onnx.data"), export.join("eka.json"));
    let right = content(&weights);
    let damages: [(&str, &dyn Fn()); 5] = [
        ("size", &|| cut(&weights, 1)),
        ("size", &|| fs::remove_file(export.join("tokenizer.json")).unwrap()),
        ("size", &|| cut(&manifest, 9)),
        ("size", &|| fs::remove_file(&manifest).unwrap()),
        ("hash", &|| flip(&weights)),
    ];
    for (number, (verify, damage)) in damages.into_iter().enumerate() {
        damage();
        let again = source.generate(verify);
        let log = text(&again.stderr);
        assert!(again.status.success(), "{number}: {log}");
        assert!(log.contains("event=\"export_damaged\""), "{number}: {log}");
        assert_eq!(again.stdout, first.stdout, "{number}");
        assert!(content(&weights) == right, "{number}");
    }
    let undamaged = source.generate("hash");
    assert!(!text(&undamaged.stderr).contains("export_damaged"), "{}", text(&undamaged.stderr));
}

#[test]
fn a_file_in_place_of_a_cached_export_is_replaced() {
    let source = Source::new();
    let first = source.generate("size");
    let export = source.export();
    let places: [&dyn Fn(); 2] = [&|| fs::write(&export, "").unwrap(), &|| make_fifo(&export)];
    for place in places {
        fs::remove_dir_all(&export).unwrap();
        place();
        let again = source.generate("size");
        assert!(again.status.success(), "{}", text(&again.stderr));
        assert_eq!(again.stdout, first.stdout);
    }
}

#[test]
fn an_unreadable_adapter_is_an_error_and_not_ignored() {
    let source = Source::new();
    let adapter = source.dir.path().join("small/adapter");
    let places: [&dyn Fn(); 3] = [&|| fs::write(&adapter, "").unwrap(), &|| make_fifo(&adapter), &|| {
        std::os::unix::fs::symlink("nowhere", &adapter).unwrap()
    }];
    for place in places {
        place();
        let refused = source.generate("size");
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(4), "{error}");
        assert!(error.contains("adapter"), "{error}");
        fs::remove_file(&adapter).unwrap();
    }
}

#[test]
fn a_damaged_user_folder_is_reported_with_both_sizes_and_unchanged() {
    let folder = Folder::new();
    let weights = folder.file("model.onnx.data");
    let recorded = fs::metadata(&weights).unwrap().len();
    cut(&weights, 4096);
    let refused = run(&["generate", "Once", "--model", argument(&folder.path())]);
    let error = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{error}");
    for told in [argument(&weights), &(recorded - 4096).to_string(), "export the model again"] {
        assert!(error.contains(told), "{told}: {error}");
    }
    assert_eq!(fs::metadata(&weights).unwrap().len(), recorded - 4096);
    // Longer than recorded, so that the graph finds all of its weights.
    fs::File::options().write(true).open(&weights).unwrap().set_len(recorded + 1).unwrap();
    let problem = folder.problem(Verify::Size, Scope::Weights);
    assert!(
        problem.contains(&recorded.to_string()) && problem.contains(&(recorded + 1).to_string()),
        "{problem}"
    );
}

#[test]
fn tokenizer_files_may_be_edited_but_not_weights() {
    let folder = Folder::new();
    assert!(folder.is_whole());
    fs::write(folder.file("generation_config.json"), "{}").unwrap();
    eka::model::check_directory(&folder.path(), Verify::Hash, Scope::Weights).unwrap();
    assert!(folder.problem(Verify::Hash, Scope::All).contains("generation_config.json"));
    flip(&folder.file("model.onnx.data"));
    let problem = folder.problem(Verify::Hash, Scope::Weights);
    assert!(problem.contains("model.onnx.data") && problem.contains("SHA-256"), "{problem}");
    eka::model::check_directory(&folder.path(), Verify::Size, Scope::Weights).unwrap();
}

#[test]
fn inspect_verify_names_every_changed_or_missing_file() {
    let folder = Folder::new();
    let inspect = || run(&["inspect", argument(&folder.path()), "--verify", "--json"]);
    let whole = inspect();
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    flip(&folder.file("model.onnx.data"));
    fs::remove_file(folder.file("tokenizer_config.json")).unwrap();
    let changed = inspect();
    assert_eq!(changed.status.code(), Some(4));
    let error = text(&changed.stderr);
    assert!(error.contains("model.onnx.data, tokenizer_config.json"), "{error}");
    let document: serde_json::Value = serde_json::from_slice(&changed.stdout).unwrap();
    let state = |name: &str| {
        let files = document["files"].as_array().unwrap();
        files.iter().find(|file| file["name"] == name).unwrap()["state"].clone()
    };
    assert_eq!(state("model.onnx.data"), "changed");
    assert_eq!(state("tokenizer_config.json"), "missing");
    assert_eq!(state("model.onnx"), "unchanged");
    assert_eq!(state("eka.json"), "not_recorded");
}
