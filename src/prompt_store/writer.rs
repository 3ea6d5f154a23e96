//! Writes a file atomically.

use std::{
    fs::{self, File},
    io::{Seek, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::{PromptInfo, PromptName, PromptStore, PromptStoreError, error::failed, header::Header};
use crate::{files::hexadecimal, units::Bytes};

/// Suffix of files that are being written.
const UNFINISHED: &str = ".part";

/// Bytes between two syncs. A single sync at the end would report no progress for as long as gigabytes take.
const SYNC_EVERY: u64 = 32 << 20;

/// A temporary file that is this old was left by a worker that was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A file that is being written. Dropping it before [`finish`](Self::finish) deletes it.
#[derive(Debug)]
pub struct PromptWriter {
    file: NamedTempFile,
    path: PathBuf,
    header: Header,
    sum: Sha256,
    written: u64,
    unsynced: u64,
}

impl PromptWriter {
    /// Begins the file of `name` in `dir`, which is made if need be, with its tokens. The tensors follow, each layer's keys
    /// and then its values.
    ///
    /// # Errors
    /// [`PromptStoreError::Io`] when the system rejects.
    pub fn create(
        dir: &Path,
        name: &PromptName,
        head: PromptInfo,
        tokens: &[u32],
    ) -> Result<Self, PromptStoreError> {
        private_dir(dir).map_err(failed(dir))?;
        sweep(dir);
        let prefix = format!(".{name}.");
        // `tempfile` makes it readable for its owner only.
        let file = tempfile::Builder::new().prefix(&prefix).suffix(UNFINISHED).tempfile_in(dir);
        let file = file.map_err(failed(dir))?;
        let header = Header { head, sum: "0".repeat(2 * <Sha256 as Digest>::output_size()) };
        let path = PromptStore::new(dir).path(name);
        let mut writer = Self { file, path, header, sum: Sha256::new(), written: 0, unsynced: 0 };
        let header = writer.header.encode()?;
        writer.file.write_all(&header).map_err(failed(dir))?;
        let ids: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
        writer.append(&ids)?;
        Ok(writer)
    }

    /// Appends bytes; returns how many there are so far.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn append(&mut self, bytes: &[u8]) -> Result<Bytes, PromptStoreError> {
        for piece in bytes.chunks(1 << 20) {
            self.sum.update(piece);
            self.file.write_all(piece).map_err(failed(&self.path))?;
        }
        self.written += bytes.len() as u64;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_EVERY {
            self.file.as_file().sync_data().map_err(failed(&self.path))?;
            self.unsynced = 0;
        }
        Ok(Bytes(self.written))
    }

    /// Moves the file to its final name; returns its size.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn finish(self) -> Result<Bytes, PromptStoreError> {
        let Self { mut file, path, mut header, sum, .. } = self;
        header.sum = hexadecimal(sum);
        let header = header.encode()?;
        let write = |file: &mut File| {
            file.rewind()?;
            file.write_all(&header)?;
            file.sync_all()?;
            file.metadata().map(|metadata| metadata.len())
        };
        let bytes = write(file.as_file_mut()).map_err(failed(&path))?;
        file.persist(&path).map_err(|e| failed(&path)(e.error))?;
        // Makes the rename durable as well. Not every system supports it; the file exists either way.
        #[cfg(unix)]
        if let Some(dir) = path.parent()
            && let Err(e) = File::open(dir).and_then(|dir| dir.sync_all())
        {
            tracing::debug!("{}: {e}", dir.display());
        }
        Ok(Bytes(bytes))
    }
}

/// Creates a directory that only its owner may read; an existing one keeps its mode.
fn private_dir(dir: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// Removes abandoned temporary files. A failure is harmless.
fn sweep(dir: &Path) {
    let is_abandoned = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        name.starts_with('.') && name.ends_with(UNFINISHED) && age.is_some_and(|age| age >= ABANDONED)
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if is_abandoned(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
