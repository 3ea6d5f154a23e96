//! The libraries that ONNX Runtime's CUDA provider is linked with, loaded before it.
//!
//! The provider has no search path, so the system would find them only where an administrator installed them. A library that
//! is loaded already is found by its name. So they are loaded by their paths from the directory of the core library, each
//! after its dependencies. The system's search path is never used, as it may have another version.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::NoCuda;
use crate::device::library_search::numbers;

/// The provider's file, beside the core library.
pub(in crate::device) const PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// Libraries that the provider is linked with, each after its dependencies. It opens cuDNN and cuFFT only for operators that
/// no language model has, and cuDNN is disabled.
const NEEDED: [&str; 4] = ["libcudart.so", "libcublasLt.so", "libcublas.so", "libcurand.so"];

/// Loads the dependencies of the provider in `directory`, until the process ends.
///
/// # Errors
/// [`NoCuda::NoDependency`] for a missing library, [`NoCuda::BadDependency`] for one that cannot be loaded.
pub(in crate::device) fn preload(directory: &Path) -> Result<(), NoCuda> {
    // All are located first: otherwise half a gigabyte is loaded before a missing library is noticed.
    let needed = NEEDED.map(|name| {
        newest(directory, name)
            .ok_or_else(|| NoCuda::NoDependency { name: name.into(), dir: directory.into() })
    });
    let needed = needed.into_iter().collect::<Result<Vec<_>, _>>()?;
    needed.into_iter().try_for_each(|path| match load_globally(&path) {
        Ok(()) => Ok(()),
        Err(reason) => Err(NoCuda::BadDependency { path, reason }),
    })
}

/// `libcublas.so.13` for `libcublas.so`, and of several the newest.
fn newest(directory: &Path, name: &str) -> Option<PathBuf> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_version = |version: &str| {
        version.is_empty() || version.strip_prefix('.').is_some_and(|parts| parts.split('.').all(is_number))
    };
    let is_it = |file: &str| file.strip_prefix(name).is_some_and(is_version);
    let files = fs::read_dir(directory).ok()?.filter_map(Result::ok).filter_map(|entry| {
        let file = entry.file_name().into_string().ok()?;
        is_it(&file).then(|| (numbers(&file), entry.path()))
    });
    files.max().map(|(_, path)| path)
}

/// Loads a library so that libraries that are loaded later find its functions.
#[cfg(unix)]
fn load_globally(path: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    // SAFETY: it is in the directory of ONNX Runtime's library, and is trusted in the same way, so its initializers may run.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    // Never unloaded: its functions are in use until the process ends.
    library.map(std::mem::forget).map_err(|e| reason(&e))
}

#[cfg(not(unix))]
fn load_globally(path: &Path) -> Result<(), String> {
    // SAFETY: as on other systems.
    let library = unsafe { libloading::Library::new(path) };
    library.map(std::mem::forget).map_err(|e| reason(&e))
}

/// The system's message, which libloading keeps as a cause.
pub(super) fn reason(e: &libloading::Error) -> String {
    std::error::Error::source(e).map_or_else(|| e.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            fs::write(directory.path().join(file), "no library").unwrap();
        }
        directory
    }

    #[test]
    fn the_newest_of_a_library_is_taken_and_none_whose_name_only_begins_so() {
        let files = ["libcublas.so.9", "libcublas.so.13", "libcublas.so", "libcublasLt.so.14"];
        let directory = directory(&files);
        assert_eq!(newest(directory.path(), "libcublas.so"), Some(directory.path().join("libcublas.so.13")));
        assert_eq!(newest(directory.path(), "libcudart.so"), None);
        assert_eq!(newest(Path::new("/nowhere/at/all"), "libcudart.so"), None);
    }

    #[test]
    fn the_first_that_is_missing_is_named_before_any_is_loaded() {
        let directory = directory(&["libcudart.so.13", "libcublasLt.so.13", "libcurand.so.10"]);
        let missing = NoCuda::NoDependency { name: "libcublas.so".into(), dir: directory.path().into() };
        assert_eq!(preload(directory.path()), Err(missing));
    }

    #[test]
    fn a_file_that_is_not_a_library_is_named_with_the_systems_error() {
        let files = ["libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"];
        let directory = directory(&files);
        let refused = preload(directory.path()).unwrap_err().to_string();
        let path = directory.path().join("libcudart.so.13");
        assert!(refused.starts_with(&format!("{} cannot be loaded: ", path.display())), "{refused}");
    }
}
