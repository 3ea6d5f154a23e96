//! Reads and writes at positions of a file, from several threads.
//!
//! Tensors are read, merged, quantized and written in pieces by a pool of threads, each piece at a place that is known
//! beforehand. Memory-mapping would do the same, but needs `unsafe`, and turns a truncated file into a signal.

use std::{fs::File, io};

/// A file without a cursor.
#[derive(Debug)]
pub(super) struct PositionedFile {
    #[cfg(unix)]
    file: File,
    // Elsewhere there is one cursor, which only one thread at a time may move.
    #[cfg(not(unix))]
    file: std::sync::Mutex<File>,
}

#[cfg(unix)]
impl PositionedFile {
    pub(super) fn new(file: File) -> Self {
        Self { file }
    }

    pub(super) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, offset)
    }

    pub(super) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset)
    }

    pub(super) fn into_file(self) -> io::Result<File> {
        Ok(self.file)
    }
}

#[cfg(not(unix))]
impl PositionedFile {
    pub(super) fn new(file: File) -> Self {
        Self { file: std::sync::Mutex::new(file) }
    }

    pub(super) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut file = self.at(offset)?;
        io::Read::read_exact(&mut *file, bytes)
    }

    pub(super) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut file = self.at(offset)?;
        io::Write::write_all(&mut *file, bytes)
    }

    pub(super) fn into_file(self) -> io::Result<File> {
        self.file.into_inner().map_err(|_| io::Error::other("a thread that wrote to the file panicked"))
    }

    fn at(&self, offset: u64) -> io::Result<std::sync::MutexGuard<'_, File>> {
        let mut file =
            self.file.lock().map_err(|_| io::Error::other("a thread that used the file panicked"))?;
        io::Seek::seek(&mut *file, io::SeekFrom::Start(offset))?;
        Ok(file)
    }
}
