//! The directory that saved prompts lie in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Head, Name, Reader, SavedError, failed};

/// How the names of files end.
const EXTENSION: &str = ".safetensors";

/// A directory of saved prompts, which need not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    dir: PathBuf,
}

/// A file that is called as a saved prompt's.
#[derive(Debug)]
pub struct Listed {
    /// What it is called.
    pub name: Name,
    /// What is in it and its size in bytes, or why that cannot be told.
    pub found: Result<(Head, u64), SavedError>,
}

impl Store {
    /// That in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of a name.
    #[must_use]
    pub fn path(&self, name: &Name) -> PathBuf {
        self.dir.join(format!("{name}{EXTENSION}"))
    }

    /// What is in the file of a name, and its size in bytes.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn head(&self, name: &Name) -> Result<(Head, u64), SavedError> {
        let path = self.path(name);
        let reader = Reader::open(&path)?;
        Ok((reader.head().clone(), reader.bytes()))
    }

    /// All saved prompts, in the order of their names.
    ///
    /// # Errors
    /// [`SavedError::Io`] when the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, SavedError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed(&self.dir))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(failed(&self.dir))?.file_name();
            let name = file.to_str().and_then(|file| Name::try_from(file.strip_suffix(EXTENSION)?).ok());
            names.extend(name);
        }
        names.sort();
        Ok(names.into_iter().map(|name| Listed { found: self.head(&name), name }).collect())
    }

    /// Removes a saved prompt, whatever is in its file.
    ///
    /// # Errors
    /// [`SavedError::Missing`], or [`SavedError::Io`] when the system refuses.
    pub fn delete(&self, name: &Name) -> Result<(), SavedError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(SavedError::Missing),
            removed => removed.map_err(failed(&path)),
        }
    }
}
