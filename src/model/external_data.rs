//! The data files beside a graph, and where a tensor lies in them.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::{File, Metadata},
    io,
    path::Path,
};

use bytemuck::Pod;
use half::f16;
use serde::{Deserialize, Serialize};

use crate::{
    files,
    onnx::{DataLocation, ElementType, Tensor},
};

/// The tensors of a graph, by name.
pub(super) type Initializers<'a> = BTreeMap<&'a str, &'a Tensor>;

/// Where the content of a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TensorRange {
    /// A file in the directory of the graph.
    pub(super) file: String,
    /// In bytes.
    start: u64,
    /// In bytes.
    length: u64,
    /// An [`ElementType`].
    element: i32,
}

impl TensorRange {
    /// The place of `tensor`, if it is in a file beside the graph.
    pub(super) fn of(tensor: &Tensor) -> Option<Self> {
        Self::part(tensor, 0, 1)
    }

    /// The place of part number `part` of `parts` equal ones of `tensor`.
    pub(super) fn part(tensor: &Tensor, part: usize, parts: usize) -> Option<Self> {
        let entry =
            |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &*entry.value);
        let number = |key: &str| entry(key)?.parse::<u64>().ok();
        if tensor.data_location != i32::from(DataLocation::External) {
            return None;
        }
        let (part, parts) = (u64::try_from(part).ok()?, u64::try_from(parts).ok()?);
        let (start, whole) = (number("offset")?, number("length")?);
        let length = whole.checked_div(parts).filter(|length| length * parts == whole)?;
        let start = start.checked_add(length.checked_mul(part)?)?;
        Some(Self { file: entry("location")?.into(), start, length, element: tensor.data_type })
    }
}

/// Data files, opened when they are first needed. They are read and not mapped, because each tensor is read once and then
/// packed.
pub(super) struct ExternalData<'a> {
    dir: &'a Path,
    files: BTreeMap<String, File>,
}

impl<'a> ExternalData<'a> {
    pub(super) fn new(dir: &'a Path) -> Self {
        Self { dir, files: BTreeMap::new() }
    }

    /// What the system knows about the file `name`.
    pub(super) fn metadata(&mut self, name: &str) -> Option<Metadata> {
        self.file(name)?.metadata().ok()
    }

    /// Reads codes into `buffer`.
    pub(super) fn read_codes(&mut self, range: &TensorRange, buffer: &mut Vec<u8>) -> Option<()> {
        if range.element != i32::from(ElementType::Uint8) {
            return None;
        }
        self.read(range, buffer)
    }

    /// Reads float32 or float16 into `floats`. `halfs` is a buffer.
    pub(super) fn read_floats(
        &mut self,
        range: &TensorRange,
        floats: &mut Vec<f32>,
        halfs: &mut Vec<u16>,
    ) -> Option<()> {
        // Files are little-endian.
        match ElementType::try_from(range.element) {
            Ok(ElementType::Float) => {
                self.read(range, floats)?;
                floats.iter_mut().for_each(|one| *one = f32::from_bits(u32::from_le(one.to_bits())));
            }
            Ok(ElementType::Float16) => {
                self.read(range, halfs)?;
                floats.clear();
                floats.extend(halfs.iter().map(|half| f16::from_bits(u16::from_le(*half)).to_f32()));
            }
            _ => return None,
        }
        Some(())
    }

    fn file(&mut self, name: &str) -> Option<&File> {
        Some(match self.files.entry(name.into()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => place.insert(files::open(&self.dir.join(name)).ok()?),
        })
    }

    fn read<T: Pod>(&mut self, range: &TensorRange, buffer: &mut Vec<T>) -> Option<()> {
        let file = self.file(&range.file)?;
        let bytes = usize::try_from(range.length).ok()?;
        let end = range.start.checked_add(range.length)?;
        if file.metadata().ok()?.len() < end || !bytes.is_multiple_of(size_of::<T>()) {
            return None;
        }
        buffer.resize(bytes / size_of::<T>(), T::zeroed());
        read_at(file, bytemuck::cast_slice_mut(buffer), range.start).ok()
    }
}

/// Fills `bytes` from offset `start` of the file, in parallel.
#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    use rayon::prelude::*;
    const PIECE: usize = 1 << 20;
    bytes.par_chunks_mut(PIECE).enumerate().try_for_each(|(i, piece)| {
        std::os::unix::fs::FileExt::read_exact_at(file, piece, start + (i * PIECE) as u64)
    })
}

/// Fills `bytes` from offset `start` of the file.
#[cfg(not(unix))]
fn read_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    use io::{Read, Seek};
    let mut file = file;
    file.seek(io::SeekFrom::Start(start))?;
    file.read_exact(bytes)
}
