//! An exported model in a directory that tests may damage.

use std::{fs, path::PathBuf};

use eka::{
    device_spec::Verify,
    export::{Options, Source, export},
    model::{Scope, check_directory},
};
use serde_json::Value;
use tempfile::TempDir;

use super::program::root;

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
