//! Which files an export was made from, by their content.

use std::{
    io,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use crate::{files, manifest::FileRecord, units::Bytes};

use super::{Progress, Stage};

/// A file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct SourceError {
    /// The file.
    path: PathBuf,
    /// The system's error.
    source: io::Error,
}

/// Files that an export reads, each with the name that provenance gives it.
#[derive(Debug, Default)]
pub(super) struct SourceFiles(Vec<(String, PathBuf)>);

impl SourceFiles {
    /// Adds `paths`, as files of the directory that is called `origin`.
    pub(super) fn add(&mut self, origin: &str, paths: impl IntoIterator<Item = PathBuf>) {
        self.0.extend(paths.into_iter().map(|path| {
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            (format!("{origin}/{name}"), path)
        }));
    }

    /// Adds files of the directory that is called `origin`, by their names in it.
    pub(super) fn add_named(
        &mut self,
        origin: &str,
        files: impl IntoIterator<Item = (&'static str, PathBuf)>,
    ) {
        self.0.extend(files.into_iter().map(|(name, path)| (format!("{origin}/{name}"), path)));
    }

    /// Reads every file once, in pieces, and gives what identifies it, in the order of the names.
    pub(super) fn identify(mut self, progress: &dyn Progress) -> Result<Vec<FileRecord>, SourceError> {
        self.0.sort();
        self.0.dedup();
        identify_all(&self.0, Stage::Sources, progress)
    }
}

/// Identifies files by their names, all at once.
pub(super) fn identify_all(
    files: &[(String, PathBuf)],
    stage: Stage,
    progress: &dyn Progress,
) -> Result<Vec<FileRecord>, SourceError> {
    let sizes: Vec<u64> = files.iter().map(|(_, path)| size(path)).collect::<Result<_, _>>()?;
    progress.begin(stage, sizes.iter().copied().map(Bytes).sum());
    files.par_iter().map(|(name, path)| identify(name, path, progress)).collect()
}

fn size(path: &Path) -> Result<u64, SourceError> {
    let metadata = path.metadata().map_err(|source| SourceError { path: path.into(), source })?;
    Ok(metadata.len())
}

pub(super) fn identify(name: &str, path: &Path, progress: &dyn Progress) -> Result<FileRecord, SourceError> {
    let hashed = files::hash(path, |by| progress.advance(by));
    let (bytes, sha256) = hashed.map_err(|source| SourceError { path: path.into(), source })?;
    Ok(FileRecord { path: name.into(), bytes: bytes.0, sha256 })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_are_identified_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.json", "a.json"] {
            fs::write(dir.path().join(name), "abc").unwrap();
        }
        let mut sources = SourceFiles::default();
        sources.add("base", ["b.json", "a.json", "b.json"].map(|name| dir.path().join(name)));
        let files = sources.identify(&()).unwrap();
        assert_eq!(files.iter().map(|file| &*file.path).collect::<Vec<_>>(), ["base/a.json", "base/b.json"]);
        assert_eq!(files[0].bytes, 3);
        assert_eq!(files[0].sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
