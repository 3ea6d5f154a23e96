//! Writes a directory atomically: it appears complete or not at all.
//!
//! Everything is written to a hidden sibling of the output, synced, and renamed: a crash, an error or a full disk leaves
//! the output as it was. What a killed export has left can be continued (see [`written_pieces`](super::written_pieces)). To
//! replace one, the two are exchanged. Where the file system cannot do that it takes two
//! renames, with a moment between them when the output does not exist. A reader that has the old files open keeps them.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::{files, manifest, units::Bytes};

use super::{
    disk,
    temp_dir::{self, TempSibling},
};

/// Why the output cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The output exists.
    #[error("{}: it exists; choose another output, or replace it with --force", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The output exists, and no export wrote it.
    #[error(
        "{}: it exists and holds no {manifest}, so it was not written by an export; remove it yourself, or choose another \
         output",
        path.display()
    )]
    NotAModel {
        /// The output.
        path: PathBuf,
        /// The file that an export writes there.
        manifest: &'static str,
    },
    /// It has no name, like `/` or `..`.
    #[error("{}: expected the name of a directory to create", path.display())]
    NoName {
        /// The output.
        path: PathBuf,
    },
    /// It would lie within a source.
    #[error("{}: it is inside the source {}, which an export must not change; choose another output",
        path.display(), dir.display())]
    WithinSource {
        /// The output.
        path: PathBuf,
        /// The source.
        dir: PathBuf,
    },
    /// The disk has no room for the weights.
    #[error(
        "{}: the disk is full: the weights need {needed}, and {available} are available; free some space, or choose \
         another output",
        dir.display()
    )]
    Full {
        /// The directory that the output was to be made in.
        dir: PathBuf,
        /// Length of the weights' file.
        needed: Bytes,
        /// Free space.
        available: Bytes,
    },
    /// No file may be as large as the weights.
    #[error(
        "{}: the weights need {needed}, and no file may be as large there; choose another file system, raise `ulimit -f`, \
         or check the sizes in config.json",
        dir.display()
    )]
    TooLarge {
        /// The directory that the output was to be made in.
        dir: PathBuf,
        /// Length of the weights' file.
        needed: Bytes,
    },
    /// A file or directory cannot be written.
    #[error("{}: {source}; {}", path.display(), way_out(source))]
    Write {
        /// The path that was written.
        path: PathBuf,
        /// The system's error.
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

fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "the disk is full: free some space",
        io::ErrorKind::FileTooLarge => "see `ulimit -f`",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a directory above the output is a file"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "choose a writable output",
        _ => "choose another output",
    }
}

/// The output while it is being written. Dropped without [`Staging::commit`], it leaves nothing.
#[derive(Debug)]
pub(super) struct Staging {
    dir: TempSibling,
    output: PathBuf,
    existing: Existing,
    /// The file that marks an output of an earlier export.
    manifest: &'static str,
}

impl Staging {
    /// Makes the hidden sibling of `output`, and the directories above it; removes what killed exports left there. If one of them
    /// left all of `unfinished`, these files are in the directory.
    pub(super) fn new(output: &Path, existing: Existing, unfinished: &[&str]) -> Result<Self, StagingError> {
        Self::make(output, existing, manifest::FILE_NAME, unfinished)
    }

    /// As [`new`](Self::new), for an output that the file `manifest` marks.
    pub(super) fn with_manifest(
        output: &Path,
        existing: Existing,
        manifest: &'static str,
    ) -> Result<Self, StagingError> {
        Self::make(output, existing, manifest, &[])
    }

    fn make(
        output: &Path,
        existing: Existing,
        manifest: &'static str,
        unfinished: &[&str],
    ) -> Result<Self, StagingError> {
        let no_name = || StagingError::NoName { path: output.into() };
        let name = output.file_name().ok_or_else(no_name)?;
        check_existing(output, existing, manifest)?;
        let parent = parent(output);
        let failed = |source| StagingError::Write { path: parent.into(), source };
        fs::create_dir_all(parent).map_err(failed)?;
        let taken = if unfinished.is_empty() {
            temp_dir::clear(parent, name);
            None
        } else {
            TempSibling::take_over(parent, name, unfinished)
        };
        // A killed export may have left the old output aside, and it has been put back.
        check_existing(output, existing, manifest)?;
        let dir = taken.map_or_else(|| TempSibling::new(parent, name), Ok).map_err(failed)?;
        Ok(Self { dir, output: output.into(), existing, manifest })
    }

    /// The path to write the file `name` to.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Creates the file `name` of `bytes` zeros and reserves its space, so that a full disk is an error before the weights are
    /// computed. A file of the same length that a killed export has left stays as it is.
    pub(super) fn reserve(&self, name: &str, bytes: Bytes) -> Result<(), StagingError> {
        let path = self.path(name);
        if path.metadata().is_ok_and(|left| left.len() == bytes.0) {
            return Ok(());
        }
        self.reserve_again(name, bytes)
    }

    /// As [`reserve`](Self::reserve), in place of what a killed export has left.
    pub(super) fn reserve_again(&self, name: &str, bytes: Bytes) -> Result<(), StagingError> {
        self.remove(name)?;
        let (path, dir) = (self.path(name), parent(&self.output));
        let done = File::create_new(&path).and_then(|file| disk::reserve(&file, bytes.0));
        done.map_err(|source| match (source.kind(), disk::available(dir)) {
            (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, Some(available)) => {
                StagingError::Full { dir: dir.into(), needed: bytes, available }
            }
            (io::ErrorKind::FileTooLarge, _) => StagingError::TooLarge { dir: dir.into(), needed: bytes },
            _ => StagingError::Write { path, source },
        })
    }

    /// Removes the file `name`, if it exists.
    pub(super) fn remove(&self, name: &str) -> Result<(), StagingError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StagingError::Write { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Writes the file `name`.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), StagingError> {
        self.copy(name, &mut { content })
    }

    /// Writes the file `name` with all that `content` gives, and syncs it.
    pub(super) fn copy(&self, name: &str, content: &mut impl io::Read) -> Result<(), StagingError> {
        let path = self.path(name);
        let mut write = || {
            fs::create_dir_all(parent(&path))?;
            let mut file = File::create_new(&path)?;
            io::copy(content, &mut file)?;
            file.sync_all()?;
            if name.contains('/') { sync_dir(parent(&path)) } else { Ok(()) }
        };
        write().map_err(|source| StagingError::Write { path: path.clone(), source })
    }

    /// The files that were written, by their names, in the order of these.
    pub(super) fn files(&self) -> Result<Vec<(String, PathBuf)>, StagingError> {
        let mut files = Vec::new();
        collect_files(self.dir.path(), "", &mut files)
            .map_err(|source| StagingError::Write { path: self.dir.path().into(), source })?;
        files.sort();
        Ok(files)
    }

    /// Puts the directory in its place.
    pub(super) fn commit(self) -> Result<(), StagingError> {
        check_existing(&self.output, self.existing, self.manifest)?;
        let failed = |source| StagingError::Write { path: self.output.clone(), source };
        sync_dir(self.dir.path()).map_err(failed)?;
        if files::exists(&self.output) {
            self.replace()?;
        } else {
            disk::rename_new(self.dir.path(), &self.output).map_err(failed)?;
        }
        sync_dir(parent(&self.output)).map_err(failed)
    }

    /// After an exchange the old directory is in the temporary one and is removed with it.
    fn replace(&self) -> Result<(), StagingError> {
        match disk::exchange(self.dir.path(), &self.output) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.replace_in_two(),
            done => done.map_err(|source| StagingError::Write { path: self.output.clone(), source }),
        }
    }

    fn replace_in_two(&self) -> Result<(), StagingError> {
        let failed = |source| StagingError::Write { path: self.output.clone(), source };
        let name = self.output.file_name().unwrap_or_default();
        // Dropped at the end, with the old directory in it.
        let aside = TempSibling::new(parent(&self.output), name).map_err(failed)?;
        let old = aside.path().join(name);
        fs::rename(&self.output, &old).map_err(failed)?;
        fs::rename(self.dir.path(), &self.output).map_err(|source| {
            // If this fails too, the old output stays aside and is not lost. The first error is the useful one.
            drop(fs::rename(&old, &self.output));
            failed(source)
        })
    }
}

/// Adds the files in `dir`, whose names begin with `prefix`.
fn collect_files(dir: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect_files(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.push((name, entry.path()));
        }
    }
    Ok(())
}

/// Fails when `output` is the directory `source`, or would be made within it.
pub(super) fn check_apart(output: &Path, source: &Path) -> Result<(), StagingError> {
    let above = output.ancestors().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    let existing = above.filter_map(|dir| dir.canonicalize().ok()).next();
    match (existing, source.canonicalize()) {
        (Some(existing), Ok(dir)) if existing.starts_with(&dir) => {
            Err(StagingError::WithinSource { path: output.into(), dir: source.into() })
        }
        _ => Ok(()),
    }
}

/// Whether the output may be written.
pub(super) fn check_existing(
    output: &Path,
    existing: Existing,
    manifest: &'static str,
) -> Result<(), StagingError> {
    let path = || output.to_owned();
    if !files::exists(output) {
        return Ok(());
    }
    match existing {
        Existing::Keep => Err(StagingError::Exists { path: path() }),
        // A typing error must not remove a home directory.
        Existing::Replace if !output.join(manifest).is_file() || output.is_symlink() => {
            Err(StagingError::NotAModel { path: path(), manifest })
        }
        Existing::Replace => Ok(()),
    }
}

/// `parent()` of a bare name is the empty path, which no system call takes.
fn parent(output: &Path) -> &Path {
    output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
        let staging = Staging::new(output, existing, &[])?;
        staging.write(manifest::FILE_NAME, content)?;
        staging.commit()
    }

    #[test]
    fn nothing_is_left_without_a_commit() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(&dir.path().join("model"), Existing::Keep, &[]).unwrap();
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
    fn where_directories_cannot_be_exchanged_two_renames_replace_one() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("model");
        model(&output, Existing::Keep, b"1").unwrap();
        let staging = Staging::new(&output, Existing::Replace, &[]).unwrap();
        staging.write(manifest::FILE_NAME, b"2").unwrap();
        staging.replace_in_two().unwrap();
        drop(staging);
        assert_eq!(fs::read(output.join(manifest::FILE_NAME)).unwrap(), b"2");
        assert_eq!(names(dir.path()), ["model"]);
    }

    #[test]
    fn an_output_within_its_source_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (base, beside) = (dir.path().join("base"), dir.path().join("base-out"));
        fs::create_dir(&base).unwrap();
        for output in [base.clone(), base.join("out"), base.join("a/b/c"), base.join("../base/x")] {
            assert!(
                matches!(check_apart(&output, &base), Err(StagingError::WithinSource { .. })),
                "{output:?}"
            );
        }
        check_apart(&beside, &base).unwrap();
        check_apart(Path::new("model"), &base).unwrap();
    }

    #[test]
    fn weights_that_no_disk_holds_are_an_error_before_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(&dir.path().join("model"), Existing::Keep, &[]).unwrap();
        let message = staging.reserve("data", Bytes(1 << 60)).unwrap_err().to_string();
        assert!(message.contains("the weights need"), "{message}");
    }

    #[test]
    fn a_directory_that_no_export_wrote_is_never_replaced() {
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
