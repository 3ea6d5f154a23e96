//! What the folder of a model can do to the server: damage, hostile files, and files in other places than usual.

mod cache;
mod disabled;
mod links;
mod manifest;
mod special_files;
mod templates;

use std::{
    fs,
    path::{Path, PathBuf},
};

use eka::{
    device_spec::Verify,
    export::{Options, Source, export},
    model::{Scope, check_directory},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::program::root;

/// A small model that was exported, in a directory that may be damaged.
pub(crate) struct Folder {
    dir: TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = root().join("tests/fixtures/llama/base");
        let source = Source::Checkpoint { base, adapters: Vec::new() };
        export(&Options::new(source, dir.path().join("model")), &()).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The error of `check_directory`.
    pub(crate) fn problem(&self, verify: Verify, scope: Scope) -> String {
        check_directory(&self.path(), verify, scope).unwrap_err().to_string()
    }

    pub(crate) fn is_whole(&self) -> bool {
        check_directory(&self.path(), Verify::Hash, Scope::All).is_ok()
    }

    pub(crate) fn manifest(&self) -> Value {
        serde_json::from_slice(&fs::read(self.file("eka.json")).unwrap()).unwrap()
    }

    pub(crate) fn write_manifest(&self, manifest: &Value) {
        fs::write(self.file("eka.json"), manifest.to_string()).unwrap();
    }
}

/// Cuts off the last `bytes` of a file.
pub(crate) fn cut(path: &Path, bytes: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}

/// Changes one bit in the middle of a file.
pub(crate) fn flip(path: &Path) {
    let mut content = fs::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(path, content).unwrap();
}

pub(crate) fn make_fifo(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}
