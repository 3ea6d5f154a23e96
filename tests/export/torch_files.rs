//! PyTorch's `.bin` files as base and adapter.

use std::{fs, path::Path};

use crate::support::{
    export_sources::finish,
    files::copy,
    program::{argument, eka, root, text},
};

/// A base and an adapter under tests/fixtures/models, with their tensors in PyTorch's files.
fn in_torch_files(dir: &Path) {
    let models = root().join("tests/fixtures/models/qwen2-late-windows");
    for part in ["base", "adapter"] {
        copy(&models.join(part), &dir.join(part));
        for entry in fs::read_dir(dir.join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                fs::remove_file(path).unwrap();
            }
        }
        let torch = root().join("tests/fixtures/torch").join(part);
        for entry in fs::read_dir(torch).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.join(part).join(path.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn an_export_of_torch_files_has_the_weights_of_the_safetensors_files() {
    let dir = tempfile::tempdir().unwrap();
    in_torch_files(dir.path());
    let models = root().join("tests/fixtures/models/qwen2-late-windows");
    let weights = |sources: &Path, out: &Path| {
        let (base, adapter) = (sources.join("base"), sources.join("adapter"));
        let flags =
            ["export", "--base", argument(&base), "--adapter", argument(&adapter), "--out", argument(out)];
        let done = finish(&mut eka(&flags));
        assert!(done.status.success(), "{}", text(&done.stderr));
        fs::read(out.join("model.onnx.data")).unwrap()
    };
    let (one, other) = (dir.path().join("torch"), dir.path().join("safetensors"));
    assert!(weights(dir.path(), &one) == weights(&models, &other));
    let manifest = fs::read_to_string(one.join("eka.json")).unwrap();
    for source in [
        "base/pytorch_model-00002-of-00002.bin",
        "base/pytorch_model.bin.index.json",
        "adapter/adapter_model.bin",
    ] {
        assert!(manifest.contains(source), "{source} is a source");
    }
}

#[test]
fn an_index_of_torch_files_may_only_name_such_files_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    in_torch_files(dir.path());
    let index = dir.path().join("base/pytorch_model.bin.index.json");
    let whole = fs::read_to_string(&index).unwrap();
    for file in ["../secret.bin", "model.safetensors"] {
        fs::write(&index, whole.replace("pytorch_model-00001-of-00002.bin", file)).unwrap();
        let (base, out) = (dir.path().join("base"), dir.path().join("out"));
        let done = finish(&mut eka(&["export", "--base", argument(&base), "--out", argument(&out)]));
        let message = text(&done.stderr);
        assert!(!done.status.success() && message.contains(file) && message.contains(".bin"), "{message}");
    }
}
