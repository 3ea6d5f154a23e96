//! The directory that saved prompts lie in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{PromptInfo, PromptName, PromptReader, PromptStoreError, error::failed};

/// How the names of files end.
const EXTENSION: &str = ".safetensors";

/// A directory of saved prompts, which need not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptStore {
    dir: PathBuf,
}

/// A file that is called as a saved prompt's.
#[derive(Debug)]
pub struct StoredPrompt {
    /// What it is called.
    pub name: PromptName,
    /// What is in it and its size in bytes, or why that cannot be told.
    pub found: Result<(PromptInfo, u64), PromptStoreError>,
}

impl PromptStore {
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
    pub fn path(&self, name: &PromptName) -> PathBuf {
        self.dir.join(format!("{name}{EXTENSION}"))
    }

    /// What is in the file of a name, and its size in bytes.
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

    /// Removes a saved prompt, whatever is in its file.
    ///
    /// # Errors
    /// [`PromptStoreError::Missing`], or [`PromptStoreError::Io`] when the system refuses.
    pub fn delete(&self, name: &PromptName) -> Result<(), PromptStoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(PromptStoreError::Missing),
            removed => removed.map_err(failed(&path)),
        }
    }
}
