//! Saves prompts to files and restores them.

use super::{error::WorkerError, loaded_model::LoadedModel};
use crate::{
    device::DeviceError,
    engine::{EngineError, Forward, Timeline},
    job::{AdapterKey, Failure, Job, JobAdapter, ModelId, PromptScope, PromptToRestore, SaveAs},
    prompt_store::{
        ExpectedPrompt, PromptInfo, PromptName, PromptNameError, PromptReader, PromptStoreError, PromptWriter,
    },
    units::Bytes,
    wire::WireError,
};

/// Bytes written between two progress frames.
const CHUNK: usize = 16 << 20;

/// Why a prompt was not saved.
#[derive(Debug)]
pub(super) enum SaveError {
    /// The job was cancelled.
    Cancelled,
    Name(PromptNameError),
    File(PromptStoreError),
    Device(DeviceError),
    Pipe(WireError),
}

impl From<PromptStoreError> for SaveError {
    fn from(e: PromptStoreError) -> Self {
        Self::File(e)
    }
}

impl From<DeviceError> for SaveError {
    fn from(e: DeviceError) -> Self {
        Self::Device(e)
    }
}

impl SaveError {
    /// The job's error; `None` if it was cancelled.
    pub(super) fn into_failure(self, name: &str) -> Result<Option<EngineError>, WorkerError> {
        let failed = |message: String| Failure::SavedFile { name: name.to_owned(), message };
        Ok(match self {
            Self::Cancelled => None,
            Self::Name(e) => Some(EngineError::Job(failed(e.to_string()))),
            Self::File(e) => Some(EngineError::Job(failed(e.to_string()))),
            Self::Device(e) => Some(EngineError::Device(e)),
            Self::Pipe(e) => return Err(e.into()),
        })
    }
}

/// Writes the prompt of `job`, which must be in the timeline, with its keys and values to a file. `progress` gets the number of bytes
/// so far and can stop the work with an error.
pub(super) fn save(
    loaded: &LoadedModel,
    job: &Job,
    to: &SaveAs,
    mut progress: impl FnMut(Bytes) -> Result<(), SaveError>,
) -> Result<Bytes, SaveError> {
    progress(Bytes(0))?;
    let (LoadedModel { timeline, identity, .. }, tokens) = (loaded, &job.prompt);
    let name = PromptName::try_from(to.name.as_str()).map_err(SaveError::Name)?;
    let head = PromptInfo {
        model: model_name(&job.model, &job.adapters),
        identity: AdapterKey::of(&job.adapters).identity(identity),
        saved_at: PromptInfo::now(),
        tokens: tokens.len(),
        shape: timeline.model().cache_shape(),
    };
    let mut writer = PromptWriter::create(&to.dir, &name, head, tokens)?;
    timeline.copy_out(|tensor| {
        for chunk in tensor.chunks(CHUNK) {
            progress(writer.append(chunk)?)?;
        }
        Ok::<_, SaveError>(())
    })?;
    Ok(writer.finish()?)
}

/// The model's name in requests: with its adapter, if it has one.
fn model_name(model: &ModelId, adapters: &[JobAdapter]) -> String {
    let names = adapters.iter().map(|adapter| adapter.name.as_str());
    [model.0.as_str()].into_iter().chain(names).collect::<Vec<_>>().join(":")
}

/// Restores a prompt from its file; returns its number of tokens.
pub(super) fn restore(loaded: &mut LoadedModel, prompt: &PromptToRestore) -> Result<usize, Failure> {
    let LoadedModel { timeline, identity, .. } = loaded;
    let expected = ExpectedPrompt {
        model: model_name(&prompt.model, &prompt.adapters),
        identity: AdapterKey::of(&prompt.adapters).identity(identity),
        shape: timeline.model().cache_shape(),
        capacity: timeline.capacity(),
        vocabulary: timeline.vocabulary(),
    };
    try_restore(timeline, &expected, prompt).map_err(|e| {
        let (name, message) = (prompt.name.clone(), e.to_string());
        if matches!(e, RestoreError::File(ref e) if !e.is_io()) {
            Failure::SavedPrompt { name, message }
        } else {
            Failure::SavedFile { name, message }
        }
    })
}

/// Why a prompt was not restored.
#[derive(Debug, thiserror::Error)]
enum RestoreError {
    #[error(transparent)]
    File(#[from] PromptStoreError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

fn try_restore(
    timeline: &mut Timeline,
    expected: &ExpectedPrompt,
    PromptToRestore { name, file, salt, adapters, .. }: &PromptToRestore,
) -> Result<usize, RestoreError> {
    let mut reader = PromptReader::open(file)?;
    // The tokens come first: their number gives the size, which must fit before it is allocated.
    let tokens = reader.tokens(expected)?;
    let needed = expected.shape.bytes(tokens.len());
    let room = timeline.room_to_restore(name);
    if needed > room {
        return Err(PromptStoreError::Room { needed, room }.into());
    }
    let mut cache = timeline.model().host_cache(tokens.len())?;
    cache.tensors_mut().try_for_each(|tensor| reader.tensor(tensor))?;
    reader.finish()?;
    let count = tokens.len();
    let scope = PromptScope { salt: *salt, adapters: AdapterKey::of(adapters) };
    timeline.restore(name.clone(), scope, tokens, cache);
    Ok(count)
}
