//! PyTorch's `.bin` files: a zip archive of a pickle and of the bytes of tensors.
//!
//! A pickle is a program, and Python runs it when the file is loaded. Here nothing is run: `pickle` understands the few
//! instructions that describe tensors and refuses everything else by name. `archive` finds the bytes, which are read in pieces
//! like those of a safetensors file.

mod archive;
mod pickle;

use std::{
    collections::BTreeMap,
    io::{Read, Seek},
    path::Path,
};

use self::{
    archive::ArchiveError,
    pickle::{PickleError, View},
};
use super::{
    tensors::{StoredTensor, TensorFile, stored_type},
    tensors_error::TensorsError,
};
use crate::files;

/// The extension of PyTorch's files.
pub(super) const EXTENSION: &str = "bin";

/// The largest pickle that is read: a tensor takes about 200 bytes.
const MAX_PICKLE_BYTES: u64 = 32 << 20;

/// How a pickle begins, and so a file of PyTorch before 1.6.
const PICKLE_MAGIC: u8 = 0x80;

/// How a zip archive begins.
const ZIP_MAGIC: [u8; 4] = *b"PK\x03\x04";

/// Opens the file of tensors at `path`: PyTorch's if its extension says so, else a safetensors file.
pub(super) fn open(path: &Path) -> Result<TensorFile, TensorsError> {
    if path.extension().is_none_or(|extension| extension != EXTENSION) {
        return TensorFile::open(path);
    }
    let failed = |source| TensorsError::Read { path: path.into(), source };
    let file = files::open(path).map_err(failed)?;
    let tensors = read(&mut &file, path)?;
    Ok(TensorFile::new(path, file, tensors))
}

/// The tensors of the archive `file`, which lies at `path`.
pub(super) fn read(
    file: &mut (impl Read + Seek),
    path: &Path,
) -> Result<BTreeMap<String, StoredTensor>, TensorsError> {
    let failed = |source| TensorsError::Read { path: path.into(), source };
    let damaged = |problem: String| TensorsError::TorchDamaged { path: path.into(), problem };
    let refused = |found: String| TensorsError::TorchRefused { path: path.into(), found };
    let mut magic = Vec::new();
    file.take(ZIP_MAGIC.len() as u64).read_to_end(&mut magic).map_err(failed)?;
    if magic != ZIP_MAGIC {
        return Err(match magic.first() {
            Some(&PICKLE_MAGIC) => TensorsError::LegacyPickle { path: path.into() },
            _ => {
                damaged(format!("it begins with \"{}\" and not as a zip archive does", magic.escape_ascii()))
            }
        });
    }
    let archive_error = |error| match error {
        ArchiveError::Damaged(problem) => damaged(problem),
        ArchiveError::Refused(found) => refused(found),
    };
    let archive = archive::open(&mut *file).map_err(archive_error)?;
    let program = archive.read("data.pkl", MAX_PICKLE_BYTES).map_err(archive_error)?;
    let views = pickle::read(&program).map_err(|error| match error {
        PickleError::Damaged { position, problem } => {
            damaged(format!("its pickle, at byte {position}: {problem}"))
        }
        PickleError::Refused(found) => refused(found),
    })?;
    let mut tensors = BTreeMap::new();
    for (name, view) in views {
        let place = archive.place(&format!("data/{}", view.storage)).map_err(archive_error)?;
        let tensor = locate(&view, place).map_err(|problem| damaged(format!("{name}: {problem}")))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// Where the numbers of `view` are, whose storage is at `(start, bytes)` of the file.
fn locate(view: &View, (start, bytes): (u64, u64)) -> Result<StoredTensor, String> {
    let size = view.dtype.bitsize() as u64 / 8;
    let offset = view.offset.checked_mul(size).filter(|offset| *offset <= bytes);
    let is_within =
        elements_spanned(view).and_then(|spanned| spanned.checked_mul(size)?.checked_add(offset?));
    let (Some(offset), true) = (offset, is_within.is_some_and(|end| end <= bytes)) else {
        return Err(format!(
            "a view of shape {:?}, strides {:?} and offset {} goes beyond the {bytes} bytes of its storage",
            view.shape, view.strides, view.offset
        ));
    };
    Ok(StoredTensor {
        stored_type: stored_type(view.dtype).ok_or(view.dtype),
        start: start + offset,
        bytes: bytes - offset,
        view: (!is_contiguous(view))
            .then(|| view.shape.iter().copied().zip(view.strides.iter().copied()).collect()),
        ..StoredTensor::plain(view.shape.clone())
    })
}

/// Elements from the first to the last of `view`; no element of it is beyond them.
fn elements_spanned(view: &View) -> Option<u64> {
    let elements = view.shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size))?;
    if elements == 0 {
        return Some(0);
    }
    let last = |size: &usize, stride: &usize| (size - 1).checked_mul(*stride);
    let last = view
        .shape
        .iter()
        .zip(&view.strides)
        .try_fold(0usize, |sum, (size, stride)| sum.checked_add(last(size, stride)?))?;
    last.checked_add(1).map(|count| count as u64)
}

fn is_contiguous(view: &View) -> bool {
    let mut expected = 1;
    view.shape.iter().zip(&view.strides).rev().all(|(size, stride)| {
        let is_next = *size == 1 || *stride == expected;
        expected *= size;
        is_next
    })
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
    }

    /// The numbers of a tensor, or its bytes if it is not a weight.
    fn content(file: &TensorFile, name: &str) -> (Vec<usize>, Option<Dtype>, Vec<u8>) {
        let shape = file.shape(name).to_vec();
        let elements: usize = shape.iter().product();
        let dtype = file.part_type(name);
        let bytes = match dtype {
            None => file.read(name, 0..elements).unwrap().into_iter().flat_map(f32::to_le_bytes).collect(),
            Some(Dtype::I32) => {
                file.read_words(name, 0..elements).unwrap().into_iter().flat_map(u32::to_le_bytes).collect()
            }
            Some(Dtype::I8 | Dtype::U8 | Dtype::F8_E4M3) => file.read_bytes(name, 0..elements).unwrap(),
            Some(_) => Vec::new(),
        };
        (shape, dtype, bytes)
    }

    #[test]
    fn every_type_and_every_view_is_read_as_by_torch() {
        let (torch, expected) =
            (open(&fixture("views.bin")).unwrap(), open(&fixture("views.safetensors")).unwrap());
        let names: Vec<&str> = expected.names().collect();
        assert_eq!(torch.names().collect::<Vec<_>>(), names);
        assert_eq!(names.len(), 19);
        for name in names {
            assert_eq!(content(&torch, name), content(&expected, name), "{name}");
        }
        // Pieces that begin and end within rows.
        let piece = |file: &TensorFile| file.read("permuted", 7..31).unwrap();
        assert_eq!(piece(&torch), piece(&expected));
        assert!(torch.read("permuted", 0..61).is_err());
    }

    #[test]
    fn what_is_not_a_dictionary_of_stored_tensors_is_refused_with_the_way_out() {
        for (name, expected) in [
            ("legacy.bin", &["before version 1.6", "torch.save"][..]),
            ("module.bin", &["torch.nn.modules.linear.Linear", "safetensors"]),
            ("training.bin", &["\"state_dict\" that is a dictionary", "safetensors"]),
            ("compressed.bin", &["compressed", "safetensors"]),
        ] {
            let message = open(&fixture(name)).unwrap_err().to_string();
            for part in expected {
                assert!(message.contains(part), "{part} in {message}");
            }
        }
    }

    #[test]
    fn a_truncated_file_and_a_view_beyond_its_storage_are_errors() {
        let whole = std::fs::read(fixture("views.bin")).unwrap();
        for cut in [0, 3, 100, whole.len() / 2, whole.len() - 1] {
            let message =
                read(&mut std::io::Cursor::new(&whole[..cut]), Path::new("cut.bin")).unwrap_err().to_string();
            assert!(message.contains("download it again"), "{cut}: {message}");
        }
        let view = |shape: &[usize], strides: &[usize], offset| View {
            storage: "0".into(),
            dtype: Dtype::F32,
            offset,
            shape: shape.into(),
            strides: strides.into(),
        };
        let located = |view| locate(&view, (64, 40)).map(|tensor| (tensor.start, tensor.view));
        assert_eq!(located(view(&[2, 5], &[5, 1], 0)), Ok((64, None)));
        assert_eq!(located(view(&[5, 2], &[1, 5], 0)), Ok((64, Some(vec![(5, 1), (2, 5)]))));
        assert_eq!(located(view(&[4], &[1], 6)), Ok((88, None)));
        assert_eq!(located(view(&[1 << 40, 2], &[0, 1], 0)), Ok((64, Some(vec![(1 << 40, 0), (2, 1)]))));
        for beyond in [
            view(&[2, 5], &[6, 1], 0),
            view(&[4], &[1], 7),
            view(&[1], &[1], u64::MAX),
            view(&[usize::MAX, 2], &[1, 1], 0),
            view(&[2], &[usize::MAX], 0),
        ] {
            assert!(located(beyond.clone()).is_err(), "{beyond:?}");
        }
    }
}
