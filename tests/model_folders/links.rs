//! Links, and graphs that name files elsewhere.

use std::{fs, os::unix::fs::symlink, path::Path};

use eka::{
    device::SessionOptions,
    device_spec::Verify,
    engine::Forward,
    export::{Options, Source, Storage, WeightFormat, export},
    model::{Model, Scope, check_directory},
};

use crate::support::{
    model_folder::Folder,
    models::{OPTIONS, open_with, runtime},
    program::root,
};

/// The files of `model` as the Hugging Face cache has them: named by their content, and linked to by their names.
fn hugging_face_cache(model: &Path, cache: &Path) -> std::path::PathBuf {
    let (blobs, snapshot) = (cache.join("blobs"), cache.join("snapshots/4f2b"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for (number, entry) in fs::read_dir(model).unwrap().enumerate() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), blobs.join(format!("{number:040x}"))).unwrap();
        symlink(format!("../../blobs/{number:040x}"), snapshot.join(entry.file_name())).unwrap();
    }
    snapshot
}

/// The two ways of computing on a CPU.
fn ways() -> [SessionOptions; 2] {
    [true, false].map(|own_operators| SessionOptions { own_operators, ..OPTIONS })
}

#[test]
fn the_hugging_face_cache_layout_gives_the_same_logits() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::Checkpoint { base: root().join("tests/fixtures/llama/base"), adapters: Vec::new() };
    let own = dir.path().join("own");
    let weights = Storage { format: WeightFormat::Int4, ..Storage::default() };
    export(&Options { weights, ..Options::new(source, own.clone()) }, &()).unwrap();
    for model in [own, root().join("tests/fixtures/genai/qwen3-biases")] {
        let cache = tempfile::tempdir().unwrap();
        let snapshot = hugging_face_cache(&model, cache.path());
        check_directory(&snapshot, Verify::Hash, Scope::All).unwrap();
        for options in ways() {
            let [expected, found] = [&model, &snapshot]
                .map(|dir| open_with(dir, 64, options).forward(&[1, 5, 9, 20]).unwrap().to_vec());
            assert_eq!(found, expected, "{}", model.display());
        }
    }
}

#[test]
fn weights_on_another_disk_are_loaded_through_a_link() {
    let folder = Folder::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("weights");
    fs::copy(folder.file("model.onnx.data"), &moved).unwrap();
    fs::remove_file(folder.file("model.onnx.data")).unwrap();
    symlink(&moved, folder.file("model.onnx.data")).unwrap();
    for options in ways() {
        open_with(&folder.path(), 64, options).forward(&[1, 2, 3]).unwrap();
    }
}

#[test]
fn a_graph_cannot_name_files_outside_its_folder() {
    let folder = Folder::new();
    let graph = fs::read(folder.file("model.onnx")).unwrap();
    for outside in ["../../etc/hosts", "/etc/./hostname", "a/../../x/y.bin"] {
        let name = b"model.onnx.data";
        assert_eq!(outside.len(), name.len());
        let mut changed = graph.clone();
        for at in 0..changed.len() - name.len() {
            if changed[at..].starts_with(name) {
                changed[at..at + name.len()].copy_from_slice(outside.as_bytes());
            }
        }
        fs::write(folder.file("model.onnx"), changed).unwrap();
        let problem = folder.problem(Verify::Size, Scope::Weights);
        assert!(problem.contains(outside) && problem.contains("outside of the directory"), "{problem}");
        for options in ways() {
            let error = Model::open(runtime(), &folder.path(), options).unwrap_err().to_string();
            assert!(error.contains("outside of the directory"), "{error}");
        }
    }
}
