//! Reading a file: nothing in it is believed before it was looked at.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{
    Head, SavedError, Shape, failed,
    head::{Header, PREFIX},
};
use crate::{
    files::{self, hexadecimal},
    units::Tokens,
};

/// The longest header that is read: that of a thousand layers has less than a third of it.
const MOST_HEADER: u64 = 1 << 20;

/// What a file must be for a model to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// What the model is called here.
    pub model: String,
    /// What it is.
    pub identity: String,
    /// The sizes of its cache.
    pub shape: Shape,
    /// Most positions; one is left for an answer.
    pub capacity: usize,
    /// Number of token ids.
    pub vocabulary: usize,
}

/// A file whose header is that of a saved prompt and tells the truth about its length.
#[derive(Debug)]
pub struct Reader<'a> {
    file: File,
    path: &'a Path,
    header: Header,
    bytes: u64,
    sum: Sha256,
}

impl<'a> Reader<'a> {
    /// Opens the file and reads its header.
    ///
    /// # Errors
    /// [`SavedError::Missing`], [`SavedError::Io`], or what is wrong with header or length.
    pub fn open(path: &'a Path) -> Result<Self, SavedError> {
        let (file, bytes) = match open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(SavedError::Missing),
            opened => opened.map_err(failed(path))?,
        };
        let mut prefix = [0; PREFIX];
        within(bytes, PREFIX as u64)?;
        (&file).read_exact(&mut prefix).map_err(failed(path))?;
        let length = u64::from_le_bytes(prefix);
        let size = usize::try_from(length).ok().filter(|_| length <= MOST_HEADER);
        let too_long = || SavedError::Header { message: format!("it would have {length} bytes") };
        let mut json = vec![0; size.ok_or_else(too_long)?];
        within(bytes, length + PREFIX as u64)?;
        (&file).read_exact(&mut json).map_err(failed(path))?;
        let (header, follows) = Header::decode(&json)?;
        let expected = follows.saturating_add(length + PREFIX as u64);
        if bytes > expected {
            return Err(SavedError::Length { found: bytes, expected });
        }
        within(bytes, expected)?;
        Ok(Self { file, path, header, bytes, sum: Sha256::new() })
    }

    /// What is in it.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.header.head
    }

    /// Its size.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the tokens, if the file is what is expected. The tensors follow, as they were written.
    ///
    /// # Errors
    /// What is otherwise than expected; [`SavedError::Io`].
    pub fn tokens(&mut self, expected: &Expected) -> Result<Vec<u32>, SavedError> {
        let Head { model, identity, tokens, shape, .. } = &self.header.head;
        if *identity != expected.identity {
            return Err(SavedError::Model { saved: model.clone(), model: expected.model.clone() });
        }
        if shape.kind != expected.shape.kind {
            return Err(SavedError::Kind { found: shape.kind, expected: expected.shape.kind });
        }
        if shape.sizes() != expected.shape.sizes() {
            return Err(SavedError::Sizes { found: shape.sizes(), expected: expected.shape.sizes() });
        }
        if *tokens >= expected.capacity {
            let capacity = Tokens(expected.capacity);
            return Err(SavedError::Context { tokens: Tokens(*tokens), capacity });
        }
        let mut ids = vec![0; tokens * size_of::<u32>()];
        self.fill_summed(&mut ids)?;
        let ids: Vec<u32> = ids.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let vocabulary = expected.vocabulary;
        match ids.iter().find(|id| **id as usize >= vocabulary) {
            Some(&id) => Err(SavedError::Token { id, vocabulary }),
            None => Ok(ids),
        }
    }

    /// Reads the next tensor.
    ///
    /// # Errors
    /// [`SavedError::Io`].
    pub fn tensor(&mut self, bytes: &mut [u8]) -> Result<(), SavedError> {
        self.fill_summed(bytes)
    }

    /// Whether all that was read is what was written.
    ///
    /// # Errors
    /// [`SavedError::Sum`] when it is not.
    pub fn finish(self) -> Result<(), SavedError> {
        if hexadecimal(self.sum) == self.header.sum { Ok(()) } else { Err(SavedError::Sum) }
    }

    fn fill_summed(&mut self, bytes: &mut [u8]) -> Result<(), SavedError> {
        for piece in bytes.chunks_mut(1 << 20) {
            self.file.read_exact(piece).map_err(failed(self.path))?;
            self.sum.update(piece);
        }
        Ok(())
    }
}

/// Whether a file of `bytes` has as many as are `expected`.
fn within(bytes: u64, expected: u64) -> Result<(), SavedError> {
    if bytes < expected { Err(SavedError::Length { found: bytes, expected }) } else { Ok(()) }
}

/// Opens a regular file and asks for its length.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = files::open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}
