//! Sources of an export that tests may damage, and runs that must end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    files::copy,
    program::{argument, eka, root},
};

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
