//! What an export does with input that it should not trust, and when it is cut off.

mod damage;
mod disk;
mod fuzz;
mod kill;
mod reproducible;
mod tensors;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::program::{argument, eka, root};

/// A copy of a fixture's base and adapter that may be damaged, and a place for outputs.
pub(crate) struct Sources {
    dir: TempDir,
}

impl Sources {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for part in ["base", "adapter"] {
            copy(&root().join("tests/fixtures/llama").join(part), &dir.path().join(part));
        }
        fs::create_dir(dir.path().join("out")).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join("out").join(name)
    }

    /// `eka export` of these sources.
    pub(crate) fn export(&self, out: &Path, flags: &[&str]) -> Command {
        let (base, adapter) = (self.dir.path().join("base"), self.dir.path().join("adapter"));
        let mut command = eka(&["export", "--base", argument(&base), "--adapter", argument(&adapter)]);
        command.arg(format!("--out={}", argument(out))).args(flags);
        command
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Runs to the end, which must come within a minute.
pub(crate) fn finish(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it hangs: {command:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

/// Names in a directory, also hidden ones; none where there is no directory.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file of a model directory with its content.
pub(crate) fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
    names(dir).into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}
