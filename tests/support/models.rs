//! Exported models, and ONNX Runtime in the process of the tests.
//!
//! ONNX Runtime allows one environment in a process, so every test that runs a model in this process gets it here.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use eka::{
    device::{Pool, Runtime, SessionOptions, pool::PoolOptions},
    device_spec::{CacheChoice, PackedFileChoice},
    engine::{Timeline, TimelineOptions},
    export::Options,
    model::Model,
    units::Bytes,
};

use super::program::{argument, cache, root, run};
use crate::soak;

/// ONNX Runtime in this process.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::load(None).unwrap())
}

pub(crate) const OPTIONS: SessionOptions = SessionOptions {
    threads: 1,
    own_operators: true,
    captures: false,
    cache: CacheChoice::Auto,
    packed_file: PackedFileChoice::Auto,
};

pub(crate) fn open_directory(dir: &Path, chunk: usize) -> Timeline {
    open_with(dir, chunk, OPTIONS)
}

pub(crate) fn open_with(dir: &Path, chunk: usize, options: SessionOptions) -> Timeline {
    let model = Model::open(runtime(), dir, options).unwrap();
    Timeline::new(model, TimelineOptions { chunk, ..TimelineOptions::default() }).unwrap()
}

/// A process has at most one pool of host memory; hold this lock while a test uses it.
pub(crate) fn lock_host_pool() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn pool(limit: Option<Bytes>) -> Pool {
    Pool::on_host(runtime(), PoolOptions { limit, ..PoolOptions::default() }).unwrap()
}

/// A fixture's model directory, exported once for all tests.
pub(crate) fn exported(fixture: &str) -> String {
    let out = cache().join(format!("{fixture}-{}", std::process::id()));
    if !out.join("eka.json").is_file() {
        let sources = format!("tests/fixtures/{fixture}");
        let arguments = ["--base", &format!("{sources}/base"), "--adapter", &format!("{sources}/adapter")];
        std::fs::create_dir_all(cache()).unwrap();
        // Tests run in parallel: the second one finds the directory.
        run(&[&["export", "--out", argument(&out)], &arguments[..]].concat());
    }
    assert!(out.join("eka.json").is_file(), "{} was not exported", out.display());
    argument(&out).into()
}

/// A model of 2048 positions, exported once for all tests.
pub(crate) fn long_model() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| export_long("long", |options| options))
}

pub(crate) fn export_long(name: &str, options: impl FnOnce(Options) -> Options) -> PathBuf {
    let dir = cache().join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(cache()).unwrap();
    soak::model(&dir, options).unwrap();
    dir
}

/// A models folder with the demo's base without its adapter: a second model with other answers.
pub(crate) fn base_only_model() -> tempfile::TempDir {
    let models = tempfile::tempdir().unwrap();
    let base = models.path().join("base-only");
    std::fs::create_dir(&base).unwrap();
    symlink(root().join("models/demo/base"), base.join("base")).unwrap();
    models
}
