//! Prompts that go to files and come from there.

use std::path::Path;

use super::{Loaded, WorkerError};
use crate::{
    device::DeviceError,
    engine::{EngineError, Forward, Timeline},
    job::{CacheSalt, Failure, ModelId, SaveAs},
    prompt_store::{
        ExpectedPrompt, PromptInfo, PromptName, PromptNameError, PromptReader, PromptStoreError, PromptWriter,
    },
    units::Bytes,
    wire::WireError,
};

/// What is written between two signs of life.
const PIECE: usize = 16 << 20;

/// Why a prompt was not saved.
#[derive(Debug)]
pub(super) enum NotSaved {
    /// Whoever wanted it has gone.
    Stopped,
    Name(PromptNameError),
    File(PromptStoreError),
    Device(DeviceError),
    Pipe(WireError),
}

impl From<PromptStoreError> for NotSaved {
    fn from(e: PromptStoreError) -> Self {
        Self::File(e)
    }
}

impl From<DeviceError> for NotSaved {
    fn from(e: DeviceError) -> Self {
        Self::Device(e)
    }
}

impl NotSaved {
    /// What it means for the job; nothing for one that nobody wants.
    pub(super) fn into_failure(self, name: &str) -> Result<Option<EngineError>, WorkerError> {
        let failed = |message: String| Failure::SavedFile { name: name.to_owned(), message };
        Ok(match self {
            Self::Stopped => None,
            Self::Name(e) => Some(EngineError::Job(failed(e.to_string()))),
            Self::File(e) => Some(EngineError::Job(failed(e.to_string()))),
            Self::Device(e) => Some(EngineError::Device(e)),
            Self::Pipe(e) => return Err(e.into()),
        })
    }
}

/// Puts `tokens`, which are what was fed to the timeline, with their keys and values into a file. `beat` hears how much is
/// written, and says whether to go on.
pub(super) fn save(
    loaded: &Loaded,
    model: &ModelId,
    tokens: &[u32],
    to: &SaveAs,
    mut beat: impl FnMut(Bytes) -> Result<(), NotSaved>,
) -> Result<Bytes, NotSaved> {
    beat(Bytes(0))?;
    let Loaded { timeline, identity, .. } = loaded;
    let name = PromptName::try_from(to.name.as_str()).map_err(NotSaved::Name)?;
    let head = PromptInfo {
        model: model.0.clone(),
        identity: identity.clone(),
        saved_at: PromptInfo::now(),
        tokens: tokens.len(),
        shape: timeline.model().cache_shape(),
    };
    let mut writer = PromptWriter::create(&to.dir, &name, head, tokens)?;
    timeline.copy_out(|tensor| {
        for piece in tensor.chunks(PIECE) {
            beat(writer.append(piece)?)?;
        }
        Ok::<_, NotSaved>(())
    })?;
    Ok(writer.finish()?)
}

/// A prompt in a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct SavedPrompt<'a> {
    pub(super) name: &'a str,
    pub(super) file: &'a Path,
    /// Which jobs may begin with it; `None` is all of them.
    pub(super) salt: Option<CacheSalt>,
}

/// Keeps what is in a file for sequences that begin like it; how many tokens those are.
pub(super) fn restore(
    loaded: &mut Loaded,
    model: &ModelId,
    prompt: SavedPrompt<'_>,
) -> Result<usize, Failure> {
    let Loaded { timeline, identity, .. } = loaded;
    let expected = ExpectedPrompt {
        model: model.0.clone(),
        identity: identity.clone(),
        shape: timeline.model().cache_shape(),
        capacity: timeline.capacity(),
        vocabulary: timeline.vocabulary(),
    };
    try_restore(timeline, &expected, prompt).map_err(|e| {
        let (name, message) = (prompt.name.to_owned(), e.to_string());
        if matches!(e, NotRestored::File(ref e) if !e.is_io()) {
            Failure::SavedPrompt { name, message }
        } else {
            Failure::SavedFile { name, message }
        }
    })
}

/// Why a prompt was not restored.
#[derive(Debug, thiserror::Error)]
enum NotRestored {
    #[error(transparent)]
    File(#[from] PromptStoreError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

fn try_restore(
    timeline: &mut Timeline,
    expected: &ExpectedPrompt,
    SavedPrompt { name, file, salt }: SavedPrompt<'_>,
) -> Result<usize, NotRestored> {
    let mut reader = PromptReader::open(file)?;
    // Before there is room for it: tokens are few, and sizes are the model's then.
    let tokens = reader.tokens(expected)?;
    let needed = expected.shape.bytes(tokens.len());
    let room = timeline.room_to_restore(name);
    if needed > room {
        return Err(PromptStoreError::Room { needed, room }.into());
    }
    let mut kept = timeline.model().host_cache(tokens.len())?;
    kept.tensors_mut().try_for_each(|tensor| reader.tensor(tensor))?;
    reader.finish()?;
    let count = tokens.len();
    timeline.restore(name.to_owned(), salt, tokens, kept);
    Ok(count)
}
