//! Reads tensors from the data files beside a graph.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    io,
    path::Path,
};

use bytemuck::Pod;
use half::f16;

use crate::{
    device::operators::PackedStorage,
    files,
    onnx::{DataLocation, ElementType, Tensor},
};

/// The data files beside a graph. They are read and not mapped, because each tensor is read once and then packed.
pub(super) struct ExternalData<'a> {
    dir: &'a Path,
    files: BTreeMap<String, File>,
}

impl<'a> ExternalData<'a> {
    /// The files in `dir`.
    pub(super) fn new(dir: &'a Path) -> Self {
        Self { dir, files: BTreeMap::new() }
    }

    /// Reads codes into `buffer`.
    pub(super) fn read_codes(&mut self, tensor: &Tensor, buffer: &mut Vec<u8>) -> Option<()> {
        self.read_codes_of(tensor, (0, 1), buffer)
    }

    /// Reads codes of one of several equal parts into `buffer`.
    pub(super) fn read_codes_of(
        &mut self,
        tensor: &Tensor,
        part: (usize, usize),
        buffer: &mut Vec<u8>,
    ) -> Option<()> {
        if tensor.data_type != i32::from(ElementType::Uint8) {
            return None;
        }
        self.read(tensor, part, buffer)
    }

    /// Reads float32 or float16 into the scales of `scratch`.
    pub(super) fn read_floats(&mut self, tensor: &Tensor, scratch: &mut Scratch) -> Option<()> {
        self.read_floats_of(tensor, (0, 1), scratch)
    }

    /// Reads one of several equal parts of float32 or float16 into the scales of `scratch`.
    pub(super) fn read_floats_of(
        &mut self,
        tensor: &Tensor,
        part: (usize, usize),
        scratch: &mut Scratch,
    ) -> Option<()> {
        // Files are little-endian.
        match ElementType::try_from(tensor.data_type) {
            Ok(ElementType::Float) => {
                self.read(tensor, part, &mut scratch.scales)?;
                scratch.scales.iter_mut().for_each(|one| *one = f32::from_bits(u32::from_le(one.to_bits())));
            }
            Ok(ElementType::Float16) => {
                self.read(tensor, part, &mut scratch.halfs)?;
                scratch.scales.clear();
                scratch
                    .scales
                    .extend(scratch.halfs.iter().map(|half| f16::from_bits(u16::from_le(*half)).to_f32()));
            }
            _ => return None,
        }
        Some(())
    }

    /// Reads part number `part` of `of` equal ones of `tensor` into `buffer`, if its data is in a file beside the graph.
    fn read<T: Pod>(
        &mut self,
        tensor: &Tensor,
        (part, of): (usize, usize),
        buffer: &mut Vec<T>,
    ) -> Option<()> {
        let entry =
            |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &*entry.value);
        let number = |key: &str| entry(key)?.parse::<u64>().ok();
        if tensor.data_location != i32::from(DataLocation::External) {
            return None;
        }
        let (name, start, length) = (entry("location")?, number("offset")?, number("length")?);
        let file = match self.files.entry(name.into()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => place.insert(files::open(&self.dir.join(name)).ok()?),
        };
        let whole = usize::try_from(length).ok()?;
        let bytes = whole.checked_div(of)?;
        if file.metadata().ok()?.len() < start.checked_add(length)?
            || !whole.is_multiple_of(of)
            || !bytes.is_multiple_of(size_of::<T>())
        {
            return None;
        }
        buffer.resize(bytes / size_of::<T>(), T::zeroed());
        read_at(file, bytemuck::cast_slice_mut(buffer), start + (bytes * part) as u64).ok()
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

/// Buffers that are reused for every tensor, because allocating them again would cost more than the read.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<f32>,
    halfs: Vec<u16>,
    pub(super) zero_points: Vec<u8>,
    pub(super) packed: PackedStorage,
}
