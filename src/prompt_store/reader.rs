//! Reads the file of a saved prompt. Everything in it is checked before it is used.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{
    CacheShape, PromptInfo, PromptStoreError,
    error::failed,
    header::{Header, PREFIX},
};
use crate::{
    files::{self, hexadecimal},
    units::Tokens,
};

/// The longest header that is read: that of a thousand layers has less than a third of it.
const MAX_HEADER: u64 = 1 << 20;

/// What a model expects of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedPrompt {
    /// Name of the model.
    pub model: String,
    /// Identity of the model's files.
    pub identity: String,
    /// The sizes of its cache.
    pub shape: CacheShape,
    /// Maximum number of positions; one is left for an answer.
    pub capacity: usize,
    /// Number of token ids.
    pub vocabulary: usize,
}

/// A file whose header is a saved prompt's and matches the file's length.
#[derive(Debug)]
pub struct PromptReader<'a> {
    file: File,
    path: &'a Path,
    header: Header,
    bytes: u64,
    sum: Sha256,
}

impl<'a> PromptReader<'a> {
    /// Opens the file and reads its header.
    ///
    /// # Errors
    /// [`PromptStoreError::Missing`], [`PromptStoreError::Io`], or an error of the header or the length.
    pub fn open(path: &'a Path) -> Result<Self, PromptStoreError> {
        let (file, bytes) = match open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(PromptStoreError::Missing),
            opened => opened.map_err(failed(path))?,
        };
        let mut prefix = [0; PREFIX];
        require(bytes, PREFIX as u64)?;
        (&file).read_exact(&mut prefix).map_err(failed(path))?;
        let length = u64::from_le_bytes(prefix);
        let size = usize::try_from(length).ok().filter(|_| length <= MAX_HEADER);
        let too_long = || PromptStoreError::Header {
            message: format!("its length is {length} bytes, more than {MAX_HEADER}"),
        };
        let mut json = vec![0; size.ok_or_else(too_long)?];
        require(bytes, length + PREFIX as u64)?;
        (&file).read_exact(&mut json).map_err(failed(path))?;
        let (header, data_bytes) = Header::decode(&json)?;
        let expected = data_bytes.saturating_add(length + PREFIX as u64);
        if bytes > expected {
            return Err(PromptStoreError::Length { found: bytes, expected });
        }
        require(bytes, expected)?;
        Ok(Self { file, path, header, bytes, sum: Sha256::new() })
    }

    /// The prompt's description.
    #[must_use]
    pub const fn head(&self) -> &PromptInfo {
        &self.header.head
    }

    /// Its size.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the tokens, if the file meets `expected`. The tensors follow, in the order they were written.
    ///
    /// # Errors
    /// The first difference from `expected`, or [`PromptStoreError::Io`].
    pub fn tokens(&mut self, expected: &ExpectedPrompt) -> Result<Vec<u32>, PromptStoreError> {
        let PromptInfo { model, identity, tokens, shape, .. } = &self.header.head;
        if *identity != expected.identity {
            return Err(PromptStoreError::Model { saved: model.clone(), model: expected.model.clone() });
        }
        if shape.kind != expected.shape.kind {
            return Err(PromptStoreError::CacheDtype { found: shape.kind, expected: expected.shape.kind });
        }
        if shape.sizes() != expected.shape.sizes() {
            return Err(PromptStoreError::Sizes { found: shape.sizes(), expected: expected.shape.sizes() });
        }
        if *tokens >= expected.capacity {
            let capacity = Tokens(expected.capacity);
            return Err(PromptStoreError::Context { tokens: Tokens(*tokens), capacity });
        }
        let mut ids = vec![0; tokens * size_of::<u32>()];
        self.fill_summed(&mut ids)?;
        let ids: Vec<u32> = ids.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let vocabulary = expected.vocabulary;
        match ids.iter().find(|id| **id as usize >= vocabulary) {
            Some(&id) => Err(PromptStoreError::Token { id, vocabulary }),
            None => Ok(ids),
        }
    }

    /// Reads the next tensor.
    ///
    /// # Errors
    /// [`PromptStoreError::Io`].
    pub fn tensor(&mut self, bytes: &mut [u8]) -> Result<(), PromptStoreError> {
        self.fill_summed(bytes)
    }

    /// Checks that the checksum of all bytes read matches the header.
    ///
    /// # Errors
    /// [`PromptStoreError::ChecksumMismatch`] when it does not.
    pub fn finish(self) -> Result<(), PromptStoreError> {
        if hexadecimal(self.sum) == self.header.sum {
            Ok(())
        } else {
            Err(PromptStoreError::ChecksumMismatch)
        }
    }

    fn fill_summed(&mut self, bytes: &mut [u8]) -> Result<(), PromptStoreError> {
        for piece in bytes.chunks_mut(1 << 20) {
            self.file.read_exact(piece).map_err(failed(self.path))?;
            self.sum.update(piece);
        }
        Ok(())
    }
}

/// Checks that a file of `bytes` has at least `expected` bytes.
fn require(bytes: u64, expected: u64) -> Result<(), PromptStoreError> {
    if bytes < expected { Err(PromptStoreError::Length { found: bytes, expected }) } else { Ok(()) }
}

/// Opens a regular file and asks for its length.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = files::open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}
