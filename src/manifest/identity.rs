//! The identity of a model directory, independent of its name and place. Saved prompts are valid only for the same identity.

use std::{path::Path, time::UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::{
    FILE_NAME, ManifestError,
    read::{path, read},
};
use crate::files::{self, ListedFile, hexadecimal};

/// The identity of an export: 64 hexadecimal digits.
///
/// eka's manifest contains the SHA-256 of every source and all options, and equal manifests give equal bytes. So its content
/// and the sizes of graph and weights are enough, and gigabytes need not be read. Other manifests do not describe the
/// weights: for them the size and modification time of every file count. A copy is then a different model, which does no
/// harm.
///
/// # Errors
/// [`ManifestError::Read`] when the directory cannot be read.
pub fn identity(model_dir: &Path) -> Result<String, ManifestError> {
    let manifest = path(model_dir);
    let identify = || {
        let is_eka_manifest = manifest.ends_with(FILE_NAME);
        let mut sum = Sha256::new_with_prefix(read(&manifest)?);
        for ListedFile { name, metadata, .. } in files::list(model_dir)? {
            let bytes = metadata.len();
            if !is_eka_manifest {
                let nanos =
                    metadata.modified()?.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
                sum.update(format!("\n{name} {bytes} {nanos}"));
            } else if name.ends_with(".onnx") || name.ends_with(".data") {
                sum.update(format!("\n{name} {bytes}"));
            }
        }
        Ok(sum)
    };
    let sum = identify().map_err(|source| ManifestError::Read { path: manifest.clone(), source })?;
    Ok(hexadecimal(sum))
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn the_identity_changes_with_the_manifest_and_with_the_weights() {
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
    fn without_a_manifest_the_modification_time_counts() {
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
