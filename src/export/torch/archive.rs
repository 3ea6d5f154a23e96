//! The zip archive of a PyTorch file: `NAME/data.pkl`, `NAME/data/0` and so on, none of them compressed.

use std::{
    collections::BTreeMap,
    io::{Read, Seek},
};

use rawzip::{
    CompressionMethod, RECOMMENDED_BUFFER_SIZE, RangeReader, ReaderAt, ZipArchive, ZipArchiveEntryWayfinder,
};

/// Most files in an archive.
const MAX_FILES: usize = 1 << 17;

/// Most bytes of a file's name.
const MAX_NAME: usize = 512;

/// Why an archive cannot be read.
#[derive(Debug)]
pub(super) enum ArchiveError {
    /// What is wrong with it.
    Damaged(String),
    /// What it is instead of weights.
    Refused(String),
}

impl From<rawzip::Error> for ArchiveError {
    fn from(error: rawzip::Error) -> Self {
        Self::Damaged(error.to_string().to_lowercase())
    }
}

/// An archive, open: its files by their names without the folder that all of them are in.
pub(super) struct Archive<R> {
    archive: ZipArchive<R>,
    files: BTreeMap<String, Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    place: ZipArchiveEntryWayfinder,
    is_stored: bool,
}

/// Reads the directory of the archive `reader`.
pub(super) fn open(reader: impl Read + Seek) -> Result<Archive<impl ReaderAt>, ArchiveError> {
    let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
    let archive = ZipArchive::from_seekable(reader, &mut buffer)?;
    let mut files = BTreeMap::new();
    let mut entries = archive.entries(&mut buffer);
    while let Some(entry) = entries.next_entry()? {
        let path = entry.file_path();
        let name = std::str::from_utf8(path.as_bytes()).ok().filter(|name| name.len() <= MAX_NAME);
        let Some(name) = name else {
            return Err(ArchiveError::Damaged(format!("a file in it has a name of {} bytes", path.len())));
        };
        // The folder is called as the file was when it was saved.
        let Some((_, name)) = name.split_once('/') else { continue };
        let is_stored =
            entry.compression_method() == CompressionMethod::STORE && !entry.flags().is_encrypted();
        let entry = Entry { place: entry.wayfinder(), is_stored };
        if files.len() >= MAX_FILES || files.insert(name.to_owned(), entry).is_some() {
            return Err(ArchiveError::Damaged(format!(
                "{name} is in it twice, or more than {MAX_FILES} files are"
            )));
        }
    }
    let archive = Archive { archive, files };
    archive.check()?;
    Ok(archive)
}

impl<R: ReaderAt> Archive<R> {
    fn check(&self) -> Result<(), ArchiveError> {
        if self.files.contains_key("constants.pkl") {
            return Err(ArchiveError::Refused("a TorchScript program".into()));
        }
        let is_other = self.files.contains_key("byteorder") && self.read("byteorder", 16)? != b"little";
        if is_other {
            return Err(ArchiveError::Refused("numbers in big-endian order".into()));
        }
        Ok(())
    }

    /// Where the bytes of the file `name` are: the first, and how many.
    pub(super) fn place(&self, name: &str) -> Result<(u64, u64), ArchiveError> {
        let missing = || ArchiveError::Damaged(format!("{name} is not in it"));
        let entry = self.files.get(name).ok_or_else(missing)?;
        if !entry.is_stored {
            return Err(ArchiveError::Refused(format!("{name}, which is compressed or encrypted")));
        }
        let (start, end) = self.archive.get_entry(entry.place)?.compressed_data_range();
        Ok((start, end.saturating_sub(start)))
    }

    /// The content of the file `name`, which may have `max` bytes.
    pub(super) fn read(&self, name: &str, max: u64) -> Result<Vec<u8>, ArchiveError> {
        let (start, bytes) = self.place(name)?;
        if bytes > max {
            return Err(ArchiveError::Damaged(format!(
                "{name} has {bytes} bytes, and at most {max} are read"
            )));
        }
        let mut content = Vec::new();
        RangeReader::new(self.archive.get_ref(), start..start + bytes)
            .read_to_end(&mut content)
            .map_err(|error| ArchiveError::Damaged(format!("{name}: {error}")))?;
        Ok(content)
    }
}
