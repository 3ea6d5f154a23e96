//! Hidden directories beside an output, while it is being written.
//!
//! A process that is killed leaves its directory behind, and the next export to the same output removes it. The
//! owner holds a lock on the directory itself, which the system releases with the process: a directory whose lock can
//! be taken has no owner. On a file system without locks nothing is removed.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, TryLockError},
    io,
    path::Path,
};

use tempfile::TempDir;

use crate::manifest;

/// Random letters at the end of a name.
const RANDOM: usize = 6;

/// One try is nearly always enough: another process would have to clean up between the making and the locking.
const TRIES: usize = 8;

/// A hidden directory beside an output. Dropped, it is removed with whatever is at its place then.
#[derive(Debug)]
pub(super) struct TempSibling {
    dir: TempDir,
    _lock: Option<File>,
}

impl TempSibling {
    /// Makes one in `parent` for the output `name`.
    pub(super) fn new(parent: &Path, name: &OsStr) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        let prefix = prefix(name);
        builder.prefix(&prefix).rand_bytes(RANDOM);
        // Temporary directories are private, but this one becomes the output, which others may read as any other.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        for _ in 0..TRIES {
            let dir = builder.tempdir_in(parent)?;
            match lock(dir.path()) {
                Ok(lock) if dir.path().exists() => return Ok(Self { dir, _lock: Some(lock) }),
                Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::NotFound => {
                    return Ok(Self { dir, _lock: None });
                }
                Ok(_) | Err(_) => {}
            }
        }
        Err(io::Error::other("other exports to the same output keep removing what this one makes"))
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for TempSibling {
    fn drop(&mut self) {
        unmake(self.path());
    }
}

/// Removes what killed exports to `parent/name` left. A model that one of them had put aside goes back to its place.
pub(super) fn clear(parent: &Path, name: &OsStr) {
    let prefix = prefix(name);
    for entry in parent.read_dir().into_iter().flatten().filter_map(Result::ok) {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_dir || !is_sibling(&entry.file_name(), &prefix) {
            continue;
        }
        let path = entry.path();
        if let Ok(lock) = lock(&path) {
            let (aside, output) = (path.join(name), parent.join(name));
            if aside.join(manifest::FILE_NAME).is_file() && !output.exists() {
                drop(fs::rename(aside, output));
            }
            unmake(&path);
            drop(fs::remove_dir_all(&path));
            drop(lock);
        }
    }
}

/// Removes the manifest first, so that a partly removed directory is not taken for a model.
fn unmake(dir: &Path) {
    drop(fs::remove_file(dir.join(manifest::FILE_NAME)));
}

fn prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".partial-");
    prefix
}

fn is_sibling(name: &OsStr, prefix: &OsStr) -> bool {
    let random = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
    random.is_some_and(|random| random.len() == RANDOM && random.iter().all(u8::is_ascii_alphanumeric))
}

#[cfg(unix)]
fn lock(dir: &Path) -> Result<File, TryLockError> {
    let dir = File::open(dir).map_err(TryLockError::Error)?;
    dir.try_lock()?;
    Ok(dir)
}

/// Directories cannot be opened as files elsewhere.
#[cfg(not(unix))]
fn lock(_: &Path) -> Result<File, TryLockError> {
    Err(TryLockError::Error(io::ErrorKind::Unsupported.into()))
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn count(dir: &Path) -> usize {
        dir.read_dir().unwrap().count()
    }

    /// The state after a process is killed: the directory exists, the lock is free.
    fn killed(parent: &Path, name: &str) -> PathBuf {
        let dir = parent.join(format!(".{name}.partial-abc123"));
        fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn what_a_killed_export_left_is_removed_and_what_a_running_one_has_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let running = TempSibling::new(dir.path(), "model".as_ref()).unwrap();
        let left = killed(dir.path(), "model");
        fs::write(left.join("model.onnx"), "").unwrap();
        let other = killed(dir.path(), "models");
        clear(dir.path(), "model".as_ref());
        assert!(running.path().exists() && other.exists() && !left.exists());
        drop(running);
        assert_eq!(count(dir.path()), 1);
    }

    #[test]
    fn names_that_only_look_alike_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".model.partial-", ".model.partial-abc", ".model.partial-abcdef.partial-abcdef", "model"]
        {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join(".model.partial-abcdef"), "a file").unwrap();
        clear(dir.path(), "model".as_ref());
        assert_eq!(count(dir.path()), 5);
    }

    #[test]
    fn a_model_that_was_put_aside_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let aside = killed(dir.path(), "model").join("model");
        fs::create_dir(&aside).unwrap();
        fs::write(aside.join(manifest::FILE_NAME), "old").unwrap();
        clear(dir.path(), "model".as_ref());
        assert_eq!(fs::read(dir.path().join("model").join(manifest::FILE_NAME)).unwrap(), b"old");
        assert_eq!(count(dir.path()), 1);
    }
}
