//! Files and directories that tests copy, list and damage.

use std::{fs, path::Path};

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Names in a directory, including hidden ones; empty without a directory.
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

/// C source of a library that looks like an old ONNX Runtime.
pub(crate) const OLD_LIBRARY: &str = r#"
struct base { void *(*api)(unsigned); const char *(*version)(void); };
static void *api(unsigned version) { (void)version; return 0; }
static const char *version(void) { return "1.17.3"; }
static struct base it = { api, version };
struct base *OrtGetApiBase(void) { return &it; }
"#;
