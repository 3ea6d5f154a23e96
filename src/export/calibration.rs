//! What the linear layers of a model read while it processes a calibration text.

use std::{collections::BTreeMap, fs::File, io};

use ndarray::{Array2, ArrayView2};

use crate::manifest::CalibrationRecord;

use super::{positioned_io::PositionedFile, quantize::Feedback};

/// Most columns of one Gram matrix: 64 MiB. Wider inputs have one for each part of their columns.
const MAX_COLUMNS: usize = 4096;

/// The Gram matrices of the inputs of linear layers, in a temporary file: they are larger than the weights.
#[derive(Debug)]
pub struct Calibration {
    file: PositionedFile,
    end: u64,
    /// By module. Modules with the same input share one.
    grams: BTreeMap<String, GramPlace>,
    record: CalibrationRecord,
}

#[derive(Clone, Debug)]
struct GramPlace {
    offset: u64,
    columns: usize,
}

/// The parts of `columns` columns that have a Gram matrix each: first column and number of columns.
pub fn gram_parts(columns: usize) -> impl Iterator<Item = (usize, usize)> {
    let parts = columns.div_ceil(MAX_COLUMNS).max(1);
    let size = columns.div_ceil(parts);
    (0..columns).step_by(size.max(1)).map(move |first| (first, size.min(columns - first)))
}

impl Calibration {
    /// Without any matrix yet; `file` is empty.
    #[must_use]
    pub fn new(file: File, record: CalibrationRecord) -> Self {
        Self { file: PositionedFile::new(file), end: 0, grams: BTreeMap::new(), record }
    }

    /// Adds the input of `modules`: the sums of products of its columns, for each of its [parts](gram_parts).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&mut self, modules: &[String], columns: usize, parts: &[Array2<f32>]) -> io::Result<()> {
        let offset = self.end;
        for part in parts {
            for row in part.rows() {
                let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
                self.file.write_all_at(&bytes, self.end)?;
                self.end += bytes.len() as u64;
            }
        }
        let place = GramPlace { offset, columns };
        self.grams.extend(modules.iter().map(|module| (module.clone(), place.clone())));
        Ok(())
    }

    /// What the manifest says about it.
    #[must_use]
    pub fn record(&self) -> &CalibrationRecord {
        &self.record
    }

    /// How errors of the columns of `module` make up for each other; `None` for a module that has not been calibrated, or whose
    /// activations give no factor.
    pub(super) fn feedback(&self, module: &str) -> io::Result<Option<Feedback>> {
        let Some(GramPlace { mut offset, columns }) = self.grams.get(module).cloned() else {
            return Ok(None);
        };
        let mut parts = Vec::new();
        for (_, size) in gram_parts(columns) {
            let mut bytes = vec![0; size * size * size_of::<f32>()];
            self.file.read_exact_at(&mut bytes, offset)?;
            offset += bytes.len() as u64;
            let values: Vec<f32> =
                bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let gram = ArrayView2::from_shape((size, size), &values).map_err(io::Error::other)?;
            let Some(part) = Feedback::new(gram) else { return Ok(None) };
            parts.push(part);
        }
        Ok(Feedback::side_by_side(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_inputs_are_split_into_parts_of_almost_the_same_size() {
        let parts = |columns| gram_parts(columns).collect::<Vec<_>>();
        assert_eq!(parts(576), [(0, 576)]);
        assert_eq!(parts(4096), [(0, 4096)]);
        assert_eq!(parts(11_008), [(0, 3670), (3670, 3670), (7340, 3668)]);
    }

    #[test]
    fn modules_with_the_same_input_share_a_matrix_and_others_have_none() {
        let record = CalibrationRecord { text: "auto".into(), sha256: String::new(), tokens: 1 };
        let mut calibration = Calibration::new(tempfile::tempfile().unwrap(), record);
        let modules = ["gate", "up"].map(String::from);
        calibration.add(&modules, 3, &[Array2::eye(3) * 4.0]).unwrap();
        for module in modules {
            assert!(calibration.feedback(&module).unwrap().is_some(), "{module}");
        }
        assert!(calibration.feedback("down").unwrap().is_none());
    }
}
