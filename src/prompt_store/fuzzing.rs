//! Entry point of `tests/fuzz` into the reader of saved prompts.

use std::{fs, path::Path};

use super::{ExpectedPrompt, PromptReader};

/// Writes `bytes` to `path` and reads them as a saved prompt of the model that they name. Returns whether they are valid.
pub fn prompt(bytes: &[u8], path: &Path) -> bool {
    if fs::write(path, bytes).is_err() {
        return false;
    }
    let Ok(mut reader) = PromptReader::open(path) else { return false };
    let head = reader.head().clone();
    let expected = ExpectedPrompt {
        model: head.model.clone(),
        identity: head.identity.clone(),
        shape: head.shape,
        capacity: 1 << 20,
        vocabulary: 1 << 20,
    };
    let Ok(tokens) = reader.tokens(&expected) else { return false };
    let tensor = head.shape.tensor_bytes(tokens.len()).filter(|tensor| *tensor <= bytes.len());
    let read = tensor.is_some_and(|tensor| {
        let mut row = vec![0; tensor];
        (0..2 * head.shape.layers).all(|_| reader.tensor(&mut row).is_ok())
    });
    read && reader.finish().is_ok()
}
