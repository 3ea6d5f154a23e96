//! The identity of a model directory, independent of its name and place.

use std::{
    fs, io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};

use super::{
    FILE_NAME, ManifestError,
    read::{path, read},
};
use crate::files::hexadecimal;

/// The identity of an export: 64 hexadecimal digits.
///
/// eka's manifest contains the SHA-256 of every source and all options, and equal manifests give equal bytes. So its content
/// and the sizes of graph and weights are enough, and gigabytes need not be read. Other manifests do not describe the weights:
/// for them the size and modification time of every file count. A copy is then a different model, which does no harm.
///
/// # Errors
/// [`ManifestError::Read`] when the directory cannot be read.
pub fn identity(model_dir: &Path) -> Result<String, ManifestError> {
    let manifest = path(model_dir);
    let identify = || {
        let names_sources = manifest.ends_with(FILE_NAME);
        let mut sum = Sha256::new_with_prefix(read(&manifest)?);
        for (name, bytes, modified) in files(model_dir)? {
            let is_graph = name.ends_with(".onnx") || name.ends_with(".data");
            if names_sources && is_graph {
                sum.update(format!("\n{name} {bytes}"));
            } else if !names_sources {
                sum.update(format!("\n{name} {bytes} {modified}"));
            }
        }
        Ok(sum)
    };
    let sum = identify().map_err(|source| ManifestError::Read { path: manifest.clone(), source })?;
    Ok(hexadecimal(sum))
}

/// Name, size and time (nanoseconds since 1970) of each file, in the order of their names.
fn files(dir: &Path) -> io::Result<Vec<(String, u64, u128)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A dangling link is skipped.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if metadata.is_file() {
            let modified: SystemTime = metadata.modified()?;
            let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
            files.push((entry.file_name().to_string_lossy().into_owned(), metadata.len(), modified));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_export_is_another_when_its_manifest_or_its_weights_are() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("eka.json", "{}");
        write("model.onnx", "graph");
        write("model.onnx.data", "weights");
        let first = identity(dir.path()).unwrap();
        assert_eq!(first.len(), 64);
        write("notes.txt", "what does not compute");
        write("model.onnx", "graph");
        assert_eq!(identity(dir.path()).unwrap(), first);
        write("model.onnx.data", "more weights");
        let second = identity(dir.path()).unwrap();
        write("eka.json", "{ }");
        let third = identity(dir.path()).unwrap();
        assert!(first != second && second != third && third != first);
    }

    #[test]
    fn where_no_manifest_names_the_weights_their_time_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let weights = dir.path().join("model.onnx.data");
        fs::write(dir.path().join("genai_config.json"), "{}").unwrap();
        fs::write(&weights, "weights").unwrap();
        let first = identity(dir.path()).unwrap();
        assert_eq!(identity(dir.path()).unwrap(), first);
        let file = fs::File::options().write(true).open(&weights).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(7)).unwrap();
        assert_ne!(identity(dir.path()).unwrap(), first);
        assert!(identity(&dir.path().join("none")).is_err());
    }
}
