//! A directory that appears complete or not at all.
//!
//! Everything is written to a hidden sibling of the output, synced, and renamed: a crash, an error or a full disk leaves
//! the output as it was. Replacing takes two renames (portable file systems cannot exchange two directories in one): for
//! the moment between them there is no output, and a reader that has the old files open keeps them.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::manifest;

/// Why the output cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// Something is there already.
    #[error("{}: it exists; choose another output, or replace it with --force", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// Something is there that no export wrote.
    #[error(
        "{}: it exists and holds no {}, so it was not written by an export; remove it yourself, or choose another \
         output",
        path.display(), manifest::FILE_NAME
    )]
    NotAModel {
        /// The output.
        path: PathBuf,
    },
    /// It has no name, like `/` or `..`.
    #[error("{}: expected the name of a directory to create", path.display())]
    NoName {
        /// The output.
        path: PathBuf,
    },
    /// A file or directory cannot be written.
    #[error("{}: {source}; is the disk full, or the directory read-only?", path.display())]
    Write {
        /// What was being written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What to do about an output that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    #[default]
    Keep,
    /// Replace it, if it is a model directory.
    Replace,
}

/// The output while it is being written. Dropped without [`Staging::commit`], it leaves nothing.
#[derive(Debug)]
pub(super) struct Staging {
    dir: TempDir,
    output: PathBuf,
    existing: Existing,
}

impl Staging {
    /// Makes the hidden sibling of `output`, and the directories above it.
    pub(super) fn new(output: &Path, existing: Existing) -> Result<Self, StagingError> {
        let no_name = || StagingError::NoName { path: output.into() };
        let name = output.file_name().ok_or_else(no_name)?;
        check_existing(output, existing)?;
        let parent = parent(output);
        fs::create_dir_all(parent).map_err(|source| StagingError::Write { path: parent.into(), source })?;
        let dir = sibling(parent, name)?;
        Ok(Self { dir, output: output.into(), existing })
    }

    /// Where the file `name` is to be written.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the file `name`.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), StagingError> {
        self.copy(name, &mut { content })
    }

    /// Writes the file `name` with all that `content` gives, and syncs it.
    pub(super) fn copy(&self, name: &str, content: &mut impl io::Read) -> Result<(), StagingError> {
        let path = self.path(name);
        let mut write = || {
            let mut file = File::create_new(&path)?;
            io::copy(content, &mut file)?;
            file.sync_all()
        };
        write().map_err(|source| StagingError::Write { path: path.clone(), source })
    }

    /// Puts the directory in its place.
    pub(super) fn commit(self) -> Result<(), StagingError> {
        check_existing(&self.output, self.existing)?;
        let failed = |source| StagingError::Write { path: self.output.clone(), source };
        sync_dir(self.dir.path()).map_err(failed)?;
        let parent = parent(&self.output);
        if self.output.exists() {
            self.replace(parent)?;
        } else {
            fs::rename(self.dir.path(), &self.output).map_err(failed)?;
        }
        sync_dir(parent).map_err(failed)
    }

    fn replace(&self, parent: &Path) -> Result<(), StagingError> {
        let failed = |source| StagingError::Write { path: self.output.clone(), source };
        let name = self.output.file_name().unwrap_or_default();
        // Dropped at the end, with the old directory in it.
        let aside = sibling(parent, name)?;
        let old = aside.path().join(name);
        fs::rename(&self.output, &old).map_err(failed)?;
        fs::rename(self.dir.path(), &self.output).map_err(|source| {
            // Nothing is lost if this fails too, but it stays aside; the first error says more.
            drop(fs::rename(&old, &self.output));
            failed(source)
        })
    }
}

fn check_existing(output: &Path, existing: Existing) -> Result<(), StagingError> {
    let path = || output.to_owned();
    if output.symlink_metadata().is_err() {
        return Ok(());
    }
    match existing {
        Existing::Keep => Err(StagingError::Exists { path: path() }),
        // A slip of the hand must not remove a home directory.
        Existing::Replace if !output.join(manifest::FILE_NAME).is_file() || output.is_symlink() => {
            Err(StagingError::NotAModel { path: path() })
        }
        Existing::Replace => Ok(()),
    }
}

/// `parent()` of a bare name is the empty path, which no system call takes.
fn parent(output: &Path) -> &Path {
    output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sibling(parent: &Path, name: &std::ffi::OsStr) -> Result<TempDir, StagingError> {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".partial-");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    // Temporary directories are private, but this one becomes the output, which others may read as any other.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(parent).map_err(|source| StagingError::Write { path: parent.into(), source })
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Directories cannot be opened as files elsewhere.
#[cfg(not(unix))]
fn sync_dir(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn model(output: &Path, existing: Existing, content: &[u8]) -> Result<(), StagingError> {
        let staging = Staging::new(output, existing)?;
        staging.write(manifest::FILE_NAME, content)?;
        staging.commit()
    }

    #[test]
    fn nothing_is_left_without_a_commit() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(&dir.path().join("model"), Existing::Keep).unwrap();
        staging.write("a", b"a").unwrap();
        assert_eq!(names(dir.path()).len(), 1);
        assert!(names(dir.path())[0].starts_with(".model.partial-"));
        drop(staging);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn an_output_is_kept_unless_it_may_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("deep/model");
        model(&output, Existing::Keep, b"1").unwrap();
        assert!(matches!(model(&output, Existing::Keep, b"2"), Err(StagingError::Exists { .. })));
        assert_eq!(fs::read(output.join(manifest::FILE_NAME)).unwrap(), b"1");
        model(&output, Existing::Replace, b"2").unwrap();
        assert_eq!(fs::read(output.join(manifest::FILE_NAME)).unwrap(), b"2");
        assert_eq!(names(output.parent().unwrap()), ["model"]);
    }

    #[test]
    fn what_no_export_wrote_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        for name in ["home", "file"] {
            let error = model(&dir.path().join(name), Existing::Replace, b"").unwrap_err();
            assert!(matches!(error, StagingError::NotAModel { .. }), "{error}");
        }
        assert!(matches!(model(Path::new("/"), Existing::Replace, b""), Err(StagingError::NoName { .. })));
    }

    #[test]
    fn a_bare_name_lies_in_the_current_directory() {
        assert_eq!(parent(Path::new("model")), Path::new("."));
        assert_eq!(parent(Path::new("models/model")), Path::new("models"));
    }
}
