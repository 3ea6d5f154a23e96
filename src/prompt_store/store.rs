//! The directory of saved prompts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{PromptInfo, PromptName, PromptReader, PromptStoreError, error::failed};

/// Suffix of file names.
const EXTENSION: &str = ".safetensors";

/// A directory of saved prompts, which need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptStore {
    dir: PathBuf,
}

/// A file with the name of a saved prompt.
#[derive(Debug)]
pub struct StoredPrompt {
    /// The prompt's name.
    pub name: PromptName,
    /// Its description and size in bytes, or the error from reading it.
    pub found: Result<(PromptInfo, u64), PromptStoreError>,
}

impl PromptStore {
    /// The store in `dir`.
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
    pub fn path(&self, name: &PromptName) -> PathBuf {
        self.dir.join(format!("{name}{EXTENSION}"))
    }

    /// The description of a saved prompt, and the file's size in bytes.
    ///
    /// # Errors
    /// As [`PromptReader::open`].
    pub fn head(&self, name: &PromptName) -> Result<(PromptInfo, u64), PromptStoreError> {
        let path = self.path(name);
        let reader = PromptReader::open(&path)?;
        Ok((reader.head().clone(), reader.bytes()))
    }

    /// All saved prompts, in the order of their names.
    ///
    /// # Errors
    /// [`PromptStoreError::Io`] when the directory cannot be read.
    pub fn list(&self) -> Result<Vec<StoredPrompt>, PromptStoreError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed(&self.dir))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(failed(&self.dir))?.file_name();
            let name =
                file.to_str().and_then(|file| PromptName::try_from(file.strip_suffix(EXTENSION)?).ok());
            names.extend(name);
        }
        names.sort();
        Ok(names.into_iter().map(|name| StoredPrompt { found: self.head(&name), name }).collect())
    }

    /// Deletes a saved prompt, even if its file is damaged.
    ///
    /// # Errors
    /// [`PromptStoreError::Missing`], or [`PromptStoreError::Io`] when the system rejects.
    pub fn delete(&self, name: &PromptName) -> Result<(), PromptStoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(PromptStoreError::Missing),
            removed => removed.map_err(failed(&path)),
        }
    }
}
