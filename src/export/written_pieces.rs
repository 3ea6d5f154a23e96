//! Which pieces of the weights have been written, so that an export that was killed continues where it stopped.
//!
//! The file lies beside the weights until the export is complete. It begins with what identifies the export: its options, its
//! sources and the exporter's version. Eight bytes for each piece follow: the CRC-32 of what was written, and its
//! complement. A piece is not written again if its bytes still have this checksum. So a process that was killed during a
//! write leaves no wrong weights, and neither does a machine that lost power before the system had written its cache.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use super::positioned_io::PositionedFile;

/// Its name in the directory of an unfinished export.
pub(super) const FILE: &str = "export.progress";

/// Bytes for each piece.
const ENTRY: usize = 8;

/// The pieces that have been written, with their checksums.
#[derive(Debug)]
pub(super) struct WrittenPieces {
    file: PositionedFile,
    /// Bytes before the first entry.
    header: u64,
    /// Those of an earlier run; `None` for pieces that it had not written.
    checksums: Vec<Option<u32>>,
}

impl WrittenPieces {
    /// Reads the file of an earlier run of the same export, with the same number of pieces; `None` without one.
    pub(super) fn read(path: &Path, export: &str, pieces: usize) -> Option<Self> {
        let header = format!("{export}\n");
        let content = fs::read(path).ok()?;
        let entries = content.strip_prefix(header.as_bytes())?;
        let (entries, rest) = entries.as_chunks::<ENTRY>();
        if entries.len() != pieces || !rest.is_empty() {
            return None;
        }
        let file = File::options().write(true).open(path).ok()?;
        let header = header.len() as u64;
        Some(Self {
            file: PositionedFile::new(file),
            header,
            checksums: entries.iter().map(decode).collect(),
        })
    }

    /// Makes the file of an export of which nothing has been written.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn create(path: &Path, export: &str, pieces: usize) -> io::Result<Self> {
        let header = format!("{export}\n");
        let mut content = header.clone().into_bytes();
        content.resize(header.len() + pieces * ENTRY, 0);
        fs::write(path, content)?;
        let file = File::options().write(true).open(path)?;
        let checksums = vec![None; pieces];
        Ok(Self { file: PositionedFile::new(file), header: header.len() as u64, checksums })
    }

    /// The checksum of a piece that an earlier run has written.
    pub(super) fn checksum(&self, piece: usize) -> Option<u32> {
        self.checksums.get(piece).copied().flatten()
    }

    /// Notes that a piece has been written.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn note(&self, piece: usize, checksum: u32) -> io::Result<()> {
        let at = self.header + (piece * ENTRY) as u64;
        let [a, b, c, d] = checksum.to_le_bytes();
        let [e, f, g, h] = (!checksum).to_le_bytes();
        self.file.write_all_at(&[a, b, c, d, e, f, g, h], at)
    }
}

/// A checksum, if its complement follows; `None` for zeros and for half an entry.
fn decode(&[a, b, c, d, e, f, g, h]: &[u8; ENTRY]) -> Option<u32> {
    let checksum = u32::from_le_bytes([a, b, c, d]);
    (u32::from_le_bytes([e, f, g, h]) == !checksum).then_some(checksum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_were_noted_are_read_again_by_the_same_export_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(WrittenPieces::read(&path, "a", 3).is_none());
        let written = WrittenPieces::create(&path, "a", 3).unwrap();
        written.note(0, 0).unwrap();
        written.note(2, 0xdead_beef).unwrap();
        assert_eq!(written.checksum(2), None, "it is of this run");
        let again = WrittenPieces::read(&path, "a", 3).unwrap();
        let checksums: Vec<_> = (0..4).map(|piece| again.checksum(piece)).collect();
        assert_eq!(checksums, [Some(0), None, Some(0xdead_beef), None]);
        for (export, pieces) in [("b", 3), ("a", 2), ("a", 4), ("", 3)] {
            assert!(WrittenPieces::read(&path, export, pieces).is_none(), "{export:?}, {pieces}");
        }
    }

    #[test]
    fn zeros_and_half_an_entry_are_not_read() {
        assert_eq!(decode(&[1, 2, 3, 4, 0, 0, 0, 0]), None);
        assert_eq!(decode(&[0; ENTRY]), None);
    }
}
