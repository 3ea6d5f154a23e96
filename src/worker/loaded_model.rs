//! A loaded model and its draft model.
//!
//! Both are loaded, trimmed and unloaded together, and memory reports count them as one. A draft model that cannot be loaded is
//! only a warning: answers are the same without it, but slower.

use std::path::{Path, PathBuf};

use super::error::LoadError;
use crate::{
    constraint::Guides,
    device::{Device, DeviceErrorKind, SessionOptions},
    engine::{EngineError, Forward, Speculation, Timeline, TimelineOptions},
    job::ModelId,
    manifest,
    model::{Model, ModelError},
    units::Bytes,
    wire::{DraftModel, WorkerSpec},
};

/// A model with its cache, its constraint guides and its speculative decoding.
pub(super) struct LoadedModel {
    pub(super) timeline: Timeline,
    pub(super) speculation: Speculation,
    pub(super) guides: Guides,
    /// Identity of the model's files. Saved prompts carry it.
    pub(super) identity: String,
    /// The directory that it was loaded from.
    pub(super) dir: PathBuf,
    /// Name of the draft model in `speculation`.
    pub(super) draft: Option<ModelId>,
}

impl LoadedModel {
    /// Ends a job; see [`Timeline::settle`].
    pub(super) fn settle(&mut self, may_be_kept: bool) {
        self.timeline.settle(may_be_kept);
        self.speculation.settle(may_be_kept);
    }

    /// Clears all caches, as after an error.
    pub(super) fn clear(&mut self) {
        self.timeline.clear();
        self.speculation.clear_to(Bytes(0));
    }

    /// See [`Timeline::clear_to`].
    pub(super) fn clear_to(&mut self, keep: Bytes) {
        self.timeline.clear_to(keep);
        self.speculation.clear_to(keep);
    }

    /// Size of the prefix caches.
    pub(super) fn kept(&self) -> Bytes {
        self.timeline.kept() + self.speculation.kept()
    }

    /// See [`Timeline::release_captured`].
    pub(super) fn release_captured(&mut self) {
        self.timeline.release_captured();
        self.speculation.release_captured();
    }
}

/// Opens models on a device.
pub(super) struct ModelOpener<'a> {
    pub(super) device: &'a Device,
    pub(super) spec: &'a WorkerSpec,
    pub(super) threads: usize,
}

/// A model and its draft model before their first run.
pub(super) struct OpenedModel {
    identity: String,
    timeline: Timeline,
    draft: Option<(ModelId, Timeline)>,
}

impl ModelOpener<'_> {
    /// Opens the model in `dir`, and `draft` if possible.
    pub(super) fn open(&self, dir: &Path, draft: Option<&DraftModel>) -> Result<OpenedModel, LoadError> {
        let identity = manifest::identity(dir).map_err(ModelError::from)?;
        let model = self.model(dir)?;
        let draft = draft.map(|draft| (&draft.id, self.draft(&model, draft)));
        let draft = draft.and_then(|(id, opened)| optional(id, opened).transpose()).transpose()?;
        let Some((id, draft)) = draft else {
            let timeline = self.timeline(model, self.spec.draft_tokens, None)?;
            return Ok(OpenedModel { identity, timeline, draft: None });
        };
        let positions = [model.position(), draft.position()];
        let timeline = self.timeline(model, self.spec.draft_tokens, Some(positions))?;
        let [of_model, of_draft] = positions;
        let draft = optional(&id, self.timeline(draft, 0, Some([of_draft, of_model])))?;
        Ok(OpenedModel { identity, timeline, draft })
    }

    fn model(&self, dir: &Path) -> Result<Model, LoadError> {
        let WorkerSpec { own_operators, cuda_graphs: captures, kv_cache: cache, packed_file, .. } =
            *self.spec;
        let options = SessionOptions { threads: self.threads, own_operators, captures, cache, packed_file };
        Ok(Model::open_on(self.device, dir, options)?)
    }

    fn draft(&self, model: &Model, draft: &DraftModel) -> Result<Model, LoadError> {
        if !model.gives_every_row() {
            return Err(LoadError::Unverifiable);
        }
        self.model(&draft.dir)
    }

    /// A timeline of `model`. `positions` are the cache sizes per position of this model and of its counterpart (draft or main
    /// model). The memory limits are divided in this ratio, so that both keep equally many positions.
    fn timeline(
        &self,
        model: Model,
        drafts: usize,
        positions: Option<[Bytes; 2]>,
    ) -> Result<Timeline, LoadError> {
        let WorkerSpec { prefill_chunk: chunk, kv_keep, prefix_cache, exact, .. } = *self.spec;
        let [keep, prefixes] = [kv_keep, prefix_cache].map(|all| match positions {
            Some([own, other]) => share(all, own, other),
            None => all,
        });
        let capacity = self.spec.context_length.unwrap_or(0);
        let options = TimelineOptions { capacity, chunk, keep, prefixes, drafts, exact };
        Ok(Timeline::new(model, options).map_err(EngineError::from)?)
    }
}

impl OpenedModel {
    /// Runs both models once.
    pub(super) fn warm_up(self, dir: &Path) -> Result<LoadedModel, LoadError> {
        let Self { identity, mut timeline, draft } = self;
        timeline.warm_up()?;
        let ready = draft.map(|(id, mut draft)| {
            let ready = draft.warm_up().and_then(|()| Speculation::new().with_draft(draft));
            optional(&id, ready.map_err(LoadError::from))
        });
        let (draft, speculation) = ready.transpose()?.flatten().unzip();
        let guides = Guides::new(dir.to_path_buf(), timeline.vocabulary());
        let speculation = speculation.unwrap_or_default();
        let mut loaded = LoadedModel { timeline, speculation, guides, identity, dir: dir.into(), draft };
        // The report should count the models and not their caches.
        loaded.clear_to(Bytes(0));
        Ok(loaded)
    }
}

/// The draft model, or `None` with a warning if it failed; an error only if the device can no longer be used.
fn optional<T>(id: &ModelId, opened: Result<T, LoadError>) -> Result<Option<(ModelId, T)>, LoadError> {
    match opened {
        Ok(opened) => Ok(Some((id.clone(), opened))),
        Err(e) if e.fault() == DeviceErrorKind::Poisoned => Err(e),
        Err(e) => {
            tracing::warn!(
                event = "draft_model_unavailable",
                "draft model {id} cannot be loaded and is not used: {e}"
            );
            Ok(None)
        }
    }
}

/// The part `own / (own + other)` of `all`.
fn share(all: Bytes, own: Bytes, other: Bytes) -> Bytes {
    let share = u128::from(all.0) * u128::from(own.0) / u128::from((own.0 + other.0).max(1));
    Bytes(u64::try_from(share).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_memory_is_divided_by_the_size_of_a_position() {
        let (model, draft) = (Bytes::kib(30), Bytes::kib(10));
        assert_eq!(share(Bytes::mib(256), model, draft), Bytes::mib(192));
        assert_eq!(share(Bytes::mib(256), draft, model), Bytes::mib(64));
        assert_eq!(share(Bytes(u64::MAX), model, Bytes(0)), Bytes(u64::MAX));
        assert_eq!(share(Bytes(0), model, draft), Bytes(0));
    }
}
