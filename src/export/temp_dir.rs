//! Hidden directories beside an output, while it is being written.
//!
//! A process that is killed leaves its directory behind, and the next export to the same output removes it, or continues
//! it. The owner holds a lock on the directory itself, which the system releases with the process: a directory whose lock can
//! be taken has no owner. On a file system without locks nothing is removed.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use crate::manifest;

/// Random letters at the end of a name.
const RANDOM: usize = 6;

/// One try is nearly always enough: another process would have to clean up between the making and the locking.
const TRIES: usize = 8;

/// A hidden directory beside an output. Dropping it removes the directory at its path.
#[derive(Debug)]
pub(super) struct TempSibling {
    dir: PathBuf,
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
                Ok(lock) if dir.path().exists() => return Ok(Self { dir: dir.keep(), _lock: Some(lock) }),
                Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::NotFound => {
                    return Ok(Self { dir: dir.keep(), _lock: None });
                }
                Ok(_) | Err(_) => {}
            }
        }
        Err(io::Error::other("other exports to the same output keep removing what this one makes"))
    }

    /// Takes over what a killed export to `parent/name` left, if it has all of `files`; its other files are removed, and so is
    /// what other killed exports left.
    pub(super) fn take_over(parent: &Path, name: &OsStr, files: &[&str]) -> Option<Self> {
        let mut taken = None;
        for (dir, lock) in abandoned(parent, name) {
            let is_usable = taken.is_none() && files.iter().all(|file| dir.join(file).is_file());
            if is_usable && remove_except(&dir, files).is_ok() {
                taken = Some(Self { dir, _lock: Some(lock) });
            } else {
                remove(&dir);
            }
        }
        taken
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for TempSibling {
    fn drop(&mut self) {
        remove(self.path());
    }
}

/// Removes what killed exports to `parent/name` left.
pub(super) fn clear(parent: &Path, name: &OsStr) {
    for (dir, _lock) in abandoned(parent, name) {
        remove(&dir);
    }
}

/// What killed exports to `parent/name` left, with a lock on each. A model that one of them had put aside goes back to its place.
fn abandoned(parent: &Path, name: &OsStr) -> impl Iterator<Item = (PathBuf, File)> {
    let prefix = prefix(name);
    let entries = parent.read_dir().into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(move |entry| {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_dir || !is_sibling(&entry.file_name(), &prefix) {
            return None;
        }
        let path = entry.path();
        let lock = lock(&path).ok()?;
        let (aside, output) = (path.join(name), parent.join(name));
        if aside.join(manifest::FILE_NAME).is_file() && !output.exists() {
            drop(fs::rename(aside, output));
        }
        Some((path, lock))
    })
}

/// Removes everything in `dir` but these files.
fn remove_except(dir: &Path, files: &[&str]) -> io::Result<()> {
    unmake(dir);
    for entry in dir.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if !files.iter().any(|file| entry.file_name() == *file) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove(dir: &Path) {
    unmake(dir);
    drop(fs::remove_dir_all(dir));
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
    fn directories_of_killed_exports_are_removed_and_those_of_running_ones_are_not() {
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
    fn one_unfinished_export_is_taken_over_with_the_files_that_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let left = killed(dir.path(), "model");
        for file in ["data", "progress", manifest::FILE_NAME, "model.onnx"] {
            fs::write(left.join(file), file).unwrap();
        }
        fs::create_dir(left.join("adapters")).unwrap();
        let useless = dir.path().join(".model.partial-zyx987");
        fs::create_dir(&useless).unwrap();
        fs::write(useless.join("data"), "").unwrap();
        let files = ["data", "progress"];
        let taken = TempSibling::take_over(dir.path(), "model".as_ref(), &files).unwrap();
        assert!(taken.path() == left && !useless.exists());
        assert_eq!(count(&left), 2);
        assert!(TempSibling::take_over(dir.path(), "model".as_ref(), &files).is_none(), "it has an owner");
        drop(taken);
        assert_eq!(count(dir.path()), 0);
    }

    #[test]
    fn directories_with_similar_names_are_not_touched() {
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
