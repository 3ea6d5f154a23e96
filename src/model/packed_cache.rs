//! Packed matrices in a file beside the graph, so that later starts map it instead of packing again.
//!
//! `model.onnx.packed` is a cache: it may be deleted at any time, and nothing else refers to it. It is made at the first start
//! on a CPU, and again when a data file has another length or time of change, or the layout of eka's operators is another.
//!
//! # Format
//! ```text
//! matrices    codes, scales and zero points of each, each part at a multiple of 64 bytes
//! index       JSON: layout, identities of the data files, place of each matrix, SHA-256 of all before the index
//! trailer     length of the index (u64, little-endian), then "ekapack\n"
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::{Builder, NamedTempFile};

use super::packed_matrices::{Matrices, MatrixSource, Packer};
use crate::{
    device::{
        operators::{PackedFile, PackedShape, PackedWeights},
        process_memory,
    },
    device_spec::PackedFileChoice,
    files,
};

/// The layout of [`PackedWeights`]; another number for another layout.
const LAYOUT: u32 = if cfg!(target_endian = "little") { 1 } else { 2 };

const MAGIC: &[u8; 8] = b"ekapack\n";

/// Bytes of the trailer.
const TRAILER: u64 = 16;

/// Longest index, in bytes.
const MAX_INDEX: u64 = 16 << 20;

/// Size of a write, which begins at a multiple of it: large pages of the page cache come from large aligned writes.
const WRITE: usize = 8 << 20;

/// Age of a temporary file that no process writes any more, where files cannot be locked.
const STALE: Duration = Duration::from_secs(3600);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    layout: u32,
    files: BTreeMap<String, FileIdentity>,
    matrices: Vec<Record>,
    sha256: String,
}

/// What tells a data file from a changed one.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIdentity {
    bytes: u64,
    /// Nanoseconds from 1970 to the last change.
    modified: u128,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    source: MatrixSource,
    /// `None` for a matrix that cannot be packed.
    place: Option<Place>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    /// In bytes.
    start: u64,
    /// See [`PackedWeights::unit`].
    unit: f32,
}

/// The matrices of the graph `name` in `dir` that eka's operators can use, each packed once.
pub(super) fn load(dir: &Path, name: &str, sources: Vec<MatrixSource>, choice: PackedFileChoice) -> Matrices {
    let mut packer = Packer::new(dir);
    let bytes = sources.iter().filter_map(|source| source.shape()?.bytes()).sum();
    let from_file = if choice.applies_to(bytes) { kept(dir, name, &sources, &mut packer) } else { None };
    let packed = from_file.unwrap_or_else(|| sources.iter().map(|source| packer.pack(source)).collect());
    let found = |(source, matrix): (_, Option<_>)| Some((source, Arc::new(matrix?)));
    sources.into_iter().zip(packed).filter_map(found).collect()
}

/// The file of the graph `name` in `dir`.
pub(super) fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.packed"))
}

/// The matrices of `sources` from the file of the graph `name` in `dir`, which is made if there is none, or not for these
/// sources. `None` where it cannot be made; the reason is logged.
fn kept(
    dir: &Path,
    name: &str,
    sources: &[MatrixSource],
    packer: &mut Packer,
) -> Option<Vec<Option<PackedWeights>>> {
    let path = path(dir, name);
    let identities = identities(sources, packer)?;
    let found = files::open(&path).and_then(|file| open(&file, sources, &identities));
    let (map, places) = match found {
        Ok(found) => found,
        Err(e) => {
            tracing::debug!("{} is made: {e}", path.display());
            match create(&path, sources, identities, packer) {
                Ok(made) => made,
                Err(e) => {
                    tracing::warn!(
                        "cannot write {}: {e}; each start packs the weights again, unless the directory can be written \
                         (or set engine.packed_file = \"never\")",
                        path.display()
                    );
                    return None;
                }
            }
        }
    };
    Some(matrices(&map, sources, &places, packer))
}

/// The matrices in the file, or copies in memory of this process where that is faster.
fn matrices(
    map: &PackedFile,
    sources: &[MatrixSource],
    places: &[Option<Place>],
    packer: &mut Packer,
) -> Vec<Option<PackedWeights>> {
    let fits = |available: u64| available > 2 * map.bytes() as u64;
    let is_copied = !map.is_in_large_pages()
        && process_memory::machine_memory().is_some_and(|(_, available)| fits(available.0));
    packer.storage = Default::default();
    let matrices = sources.iter().zip(places).map(|(source, place)| {
        let mapped = in_file(map, source.shape()?, (*place)?)?;
        if is_copied { mapped.copied(&mut packer.storage) } else { Some(mapped) }
    });
    matrices.collect()
}

fn in_file(map: &PackedFile, shape: PackedShape, place: Place) -> Option<PackedWeights> {
    PackedWeights::in_file(map, shape, place.unit, usize::try_from(place.start).ok()?)
}

fn identities(sources: &[MatrixSource], packer: &mut Packer) -> Option<BTreeMap<String, FileIdentity>> {
    let mut identities = BTreeMap::new();
    for name in sources.iter().flat_map(MatrixSource::files) {
        if !identities.contains_key(name) {
            let metadata = packer.data.metadata(name)?;
            let modified = metadata.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            let identity = FileIdentity { bytes: metadata.len(), modified: modified.as_nanos() };
            identities.insert(name.to_owned(), identity);
        }
    }
    Some(identities)
}

/// Maps the file, if its index is for these sources.
fn open(
    file: &File,
    sources: &[MatrixSource],
    identities: &BTreeMap<String, FileIdentity>,
) -> io::Result<(PackedFile, Vec<Option<Place>>)> {
    let index = read_index(file)?;
    let are_same = index.matrices.iter().map(|record| &record.source).eq(sources);
    if index.layout != LAYOUT || index.files != *identities || !are_same {
        return Err(invalid("it is for other weights or another version"));
    }
    let map = PackedFile::map(file)?;
    let places: Vec<_> = index.matrices.into_iter().map(|record| record.place).collect();
    let fits = |(source, place): (&MatrixSource, &Option<Place>)| {
        let Some(place) = *place else { return true };
        place.unit.is_finite()
            && place.unit > 0.0
            && source.shape().is_some_and(|shape| in_file(&map, shape, place).is_some())
    };
    if !sources.iter().zip(&places).all(fits) {
        return Err(invalid("a matrix lies outside of the file"));
    }
    Ok((map, places))
}

fn read_index(mut file: &File) -> io::Result<Index> {
    let length = file.metadata()?.len();
    let end = length.checked_sub(TRAILER).ok_or_else(|| invalid("it is too short"))?;
    file.seek(SeekFrom::Start(end))?;
    let (mut bytes, mut magic) = ([0; 8], [0; 8]);
    file.read_exact(&mut bytes)?;
    file.read_exact(&mut magic)?;
    let bytes = u64::from_le_bytes(bytes);
    if &magic != MAGIC || bytes > end.min(MAX_INDEX) {
        return Err(invalid("it is damaged or incomplete"));
    }
    file.seek(SeekFrom::Start(end - bytes))?;
    Ok(serde_json::from_reader(io::BufReader::new(file.take(bytes)))?)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Packs the matrices into a new file.
fn create(
    path: &Path,
    sources: &[MatrixSource],
    files: BTreeMap<String, FileIdentity>,
    packer: &mut Packer,
) -> io::Result<(PackedFile, Vec<Option<Place>>)> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let prefix = format!(".{}-", path.file_name().unwrap_or_default().display());
    remove_stale(dir, &prefix);
    let file = temporary(dir, &prefix)?;
    let mut writer = AlignedWriter::new(file.as_file());
    let mut matrices = Vec::with_capacity(sources.len());
    for source in sources {
        packer.storage.reuse();
        let place = match packer.pack(source) {
            Some(matrix) => Some(Place { start: writer.append(&matrix)?, unit: matrix.unit() }),
            None => None,
        };
        matrices.push(Record { source: source.clone(), place });
    }
    let places = matrices.iter().map(|record| record.place).collect();
    let sha256 = files::hexadecimal(writer.hash.clone());
    writer.finish(&Index { layout: LAYOUT, files, matrices, sha256 })?;
    let map = PackedFile::map(file.as_file())?;
    let path = path.to_path_buf();
    // The name is given when the content is on the disk, so that it never names half of it. That may take seconds, and the
    // mapping does not need the name.
    std::thread::Builder::new().name("packed-file".into()).spawn(move || keep(file, &path))?;
    Ok((map, places))
}

/// Gives the file its name.
fn keep(file: NamedTempFile, path: &Path) {
    let kept = file.as_file().sync_data().and_then(|()| Ok(file.persist(path)?));
    if let Err(e) = kept {
        tracing::warn!("cannot keep {}: {e}; the next start packs the weights again", path.display());
    }
}

/// A new file that others may read, as far as the system's default allows.
fn temporary(dir: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let file = builder.tempfile_in(dir)?;
    // Tells other processes that it is being written. Where files cannot be locked, they go by its age.
    let _ = file.as_file().try_lock();
    Ok(file)
}

/// Removes temporary files of processes that were killed: each is as large as the weights, and a server that is stopped again and again
/// while it writes one would fill the disk.
fn remove_stale(dir: &Path, prefix: &str) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix)
            && is_stale(&entry) == Some(true)
            && let Err(e) = fs::remove_file(entry.path())
        {
            tracing::debug!("{}: {e}", entry.path().display());
        }
    }
}

/// Whether no process writes to a temporary file.
fn is_stale(entry: &fs::DirEntry) -> Option<bool> {
    match File::open(entry.path()).ok()?.try_lock() {
        Ok(()) => Some(true),
        Err(TryLockError::WouldBlock) => Some(false),
        Err(TryLockError::Error(_)) => Some(entry.metadata().ok()?.modified().ok()?.elapsed().ok()? > STALE),
    }
}

/// Writes in large aligned pieces, and hashes what it writes.
struct AlignedWriter<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Bytes so far.
    length: u64,
    hash: Sha256,
}

impl<'a> AlignedWriter<'a> {
    fn new(file: &'a File) -> Self {
        Self { file, buffer: Vec::with_capacity(WRITE), length: 0, hash: Sha256::new() }
    }

    /// Writes a matrix; where it begins.
    fn append(&mut self, matrix: &PackedWeights) -> io::Result<u64> {
        let mut start = None;
        for part in matrix.parts() {
            let padding = self.length.next_multiple_of(PackedShape::ALIGNMENT as u64) - self.length;
            self.hashed(&[0; PackedShape::ALIGNMENT][..usize::try_from(padding).unwrap_or(0)])?;
            start.get_or_insert(self.length);
            self.hashed(part)?;
        }
        Ok(start.unwrap_or(self.length))
    }

    fn hashed(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.write(bytes)
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(WRITE - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            if self.buffer.len() == WRITE {
                self.file.write_all(&self.buffer)?;
                self.buffer.clear();
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Writes index and trailer.
    fn finish(mut self, index: &Index) -> io::Result<()> {
        let index = serde_json::to_vec(index)?;
        self.write(&index)?;
        self.write(&(index.len() as u64).to_le_bytes())?;
        self.write(MAGIC)?;
        self.file.write_all(&self.buffer)
    }
}

/// Removes the file of the graph `name` in `dir` if its content has changed since it was written.
///
/// # Errors
/// The system's, where a damaged file cannot be removed.
pub(super) fn remove_if_damaged(dir: &Path, name: &str) -> io::Result<()> {
    let path = path(dir, name);
    let Some(file) = files::optional(files::open(&path))? else { return Ok(()) };
    let is_whole = read_index(&file).and_then(|index| {
        let end = file.metadata()?.len() - TRAILER;
        let mut trailer = [0; 8];
        (&file).seek(SeekFrom::Start(end))?;
        (&file).read_exact(&mut trailer)?;
        (&file).rewind()?;
        let mut hash = HashWriter(Sha256::new());
        io::copy(&mut (&file).take(end - u64::from_le_bytes(trailer)), &mut hash)?;
        Ok(files::hexadecimal(hash.0) == index.sha256)
    });
    if !is_whole.unwrap_or(false) {
        fs::remove_file(&path)?;
        tracing::warn!("{} was damaged: it is removed, and made again at the next start", path.display());
    }
    Ok(())
}

/// Hashes what is written to it.
struct HashWriter(Sha256);

impl Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_processes_that_were_killed_are_removed_and_one_that_is_being_written_stays() {
        let dir = tempfile::tempdir().unwrap();
        let written = temporary(dir.path(), ".model.packed-").unwrap();
        let left = dir.path().join(".model.packed-abc123");
        let other = dir.path().join("model.packed");
        for path in [&left, &other] {
            fs::write(path, "weights").unwrap();
        }
        remove_stale(dir.path(), ".model.packed-");
        assert_eq!([written.path(), &left, &other].map(Path::exists), [true, false, true]);
    }
}
