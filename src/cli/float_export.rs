//! A temporary float32 export beside an output: what a quantized export is compared with, and what calibration runs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use super::progress::Bars;
use crate::export::{self, Options};

/// A float32 export of the sources of another export. Dropping it removes it.
#[derive(Debug)]
pub(super) struct FloatExport {
    _dir: TempDir,
    path: PathBuf,
}

impl FloatExport {
    /// Exports the sources of `options`.
    ///
    /// # Errors
    /// When the export fails.
    pub(super) fn new(options: &Options) -> anyhow::Result<Self> {
        let beside = options.output.parent().filter(|parent| !parent.as_os_str().is_empty());
        let beside = beside.unwrap_or(Path::new("."));
        std::fs::create_dir_all(beside).with_context(|| format!("cannot create {}", beside.display()))?;
        let dir = tempfile::tempdir_in(beside).with_context(|| {
            format!("cannot create a temporary directory beside {}", options.output.display())
        })?;
        let path = dir.path().join("float32");
        let float32 = Options { output: path.clone(), ..options.unquantized() };
        export::export(&float32, &Bars::new()).context("the temporary float32 export")?;
        Ok(Self { _dir: dir, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
