//! Sequences that branch off the one in the cache.
//!
//! ```text
//! rows of the cache   0 ‥ trunk      ‥ rest of a prompt ‥ answer ‥ answer ‥ answer
//! branch 0            └── segment    └── segment        └── segment
//! branch 1            └── segment    └── segment                 └── segment
//! ```
//!
//! Each branch writes rows of its own; what it has in common with others is in the cache once.

use super::error::EngineError;
use crate::{
    device::{
        DeviceError,
        operators::{CacheSegment, PassSequence},
    },
    model::{Cache, Model, Pass},
};

/// The branches of a sequence.
#[derive(Debug)]
pub(super) struct Branches {
    pass: Pass,
    /// Positions of the sequence that they branch off.
    trunk: usize,
    all: Vec<Branch>,
    /// The first row of the cache that no branch has.
    free: usize,
}

#[derive(Debug)]
struct Branch {
    segments: Vec<CacheSegment>,
    /// Positions in use, and those that there is room for.
    length: usize,
    room: usize,
}

impl Branches {
    /// None yet, of a sequence of `trunk` positions in `cache`; up to `sequences` can be fed at once, or a chunk of `chunk`
    /// tokens.
    pub(super) fn new(
        model: &Model,
        cache: &Cache,
        trunk: usize,
        [chunk, sequences]: [usize; 2],
    ) -> Result<Self, DeviceError> {
        let mut pass = model.pass_of_sequences(chunk.max(sequences), sequences)?;
        pass.attach(model, cache)?;
        Ok(Self { pass, trunk, all: Vec::new(), free: trunk })
    }

    /// A new branch, which begins with all positions of the branch `from`, or of the trunk.
    pub(super) fn fork(&mut self, from: Option<usize>, more: usize) -> usize {
        let base = from.and_then(|from| self.all.get(from));
        let length = base.map_or(self.trunk, |base| base.length);
        let mut segments =
            base.map_or_else(|| vec![CacheSegment { position: 0, row: 0 }], |base| base.segments.clone());
        // One that would be empty is replaced.
        segments.retain(|segment| segment.position < length);
        segments.push(CacheSegment { position: length, row: self.free });
        self.free += more;
        self.all.push(Branch { segments, length, room: length + more });
        self.all.len() - 1
    }

    /// Rows of the cache that the trunk and all branches have.
    pub(super) const fn rows(&self) -> usize {
        self.free
    }

    /// See [`ForwardBranches::forward_branches`](super::forward::ForwardBranches::forward_branches).
    pub(super) fn forward(
        &mut self,
        model: &mut Model,
        fed: &[(usize, &[u32])],
    ) -> Result<&mut [f32], EngineError> {
        let (mut tokens, mut sequences) = (Vec::new(), Vec::with_capacity(fed.len()));
        for (branch, new) in fed {
            let Branch { segments, length, room } = &self.all[*branch];
            let total = length + new.len();
            if total > *room {
                return Err(EngineError::Context { used: *length, asked: new.len(), capacity: *room });
            }
            tokens.extend_from_slice(new);
            sequences.push(PassSequence { tokens: new.len(), total, segments: segments.clone() });
        }
        let logits = self.pass.run_sequences(model, &tokens, &sequences)?;
        for (branch, new) in fed {
            self.all[*branch].length += new.len();
        }
        Ok(logits)
    }
}
