//! The worker's main loop: one frame at a time.

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{
    adapters::AdapterCache,
    error::{LoadError, WorkerError},
    faults::{FaultInjector, FaultPoint},
    loaded_model::{LoadedModel, ModelOpener},
    memory::MemoryTracker,
    saved_prompts,
    stop_signals::StopSignals,
};
use crate::{
    device::{Device, DeviceErrorKind},
    engine::{EngineError, Forward},
    job::{Failure, Memory, ModelId, ModelReport, Placement, PromptToRestore},
    units::Bytes,
    wire::{self, DraftModel, FromWorker, ToWorker, WorkerSpec},
};

pub(super) struct Server<W> {
    // First, so that models are dropped before the device that they use.
    pub(super) models: BTreeMap<ModelId, LoadedModel>,
    pub(super) device: Device,
    pub(super) spec: WorkerSpec,
    pub(super) threads: usize,
    pub(super) signals: Arc<StopSignals>,
    pub(super) output: W,
    pub(super) memory: MemoryTracker,
    pub(super) faults: FaultInjector,
    pub(super) adapters: AdapterCache,
}

impl<W: Write> Server<W> {
    /// Handles frames until the parent asks for a shutdown or closes the pipe.
    ///
    /// # Errors
    /// [`WorkerError`] when the pipe fails or the device can no longer be used.
    pub(super) fn serve(mut self, frames: &mpsc::Receiver<ToWorker>) -> Result<(), WorkerError> {
        loop {
            match self.next(frames)? {
                Some(ToWorker::Generate(jobs)) => self.generate(&jobs)?,
                Some(ToWorker::Load { model, dir, draft }) => self.load(model, &dir, draft.as_ref())?,
                Some(ToWorker::Unload(model)) => {
                    // Dropping the session frees its memory in heap and pool, which then can return it to the system.
                    drop(self.models.remove(&model));
                    self.adapters.forget(Some(&model));
                    self.update_cache_size();
                    let held = self.memory.settle();
                    let memory = self.trim_to_due(Duration::ZERO).unwrap_or(held);
                    wire::write(&FromWorker::Unloaded { model, memory }, &mut self.output)?;
                }
                Some(ToWorker::Trim) => {
                    self.forget(None);
                    self.adapters.forget(None);
                    self.clear_others(None);
                    let memory = self.trim(Bytes(0));
                    wire::write(&FromWorker::Trimmed { memory }, &mut self.output)?;
                }
                Some(ToWorker::Restore(prompt)) => self.restore(&prompt)?,
                Some(ToWorker::Forget(name)) => {
                    self.forget(Some(&name));
                    let memory = self.memory.settle();
                    wire::write(&FromWorker::Forgotten { memory }, &mut self.output)?;
                }
                Some(ToWorker::Cancel(_) | ToWorker::Start(_) | ToWorker::Ping) => {}
                Some(ToWorker::Shutdown) | None => return Ok(()),
            }
        }
    }

    /// The next frame that needs work; `None` when the pipe has ended. Answers pings, and trims memory when that is due. Pings are
    /// answered here and not by the reader thread, which would answer even if this thread hangs.
    fn next(&mut self, frames: &mpsc::Receiver<ToWorker>) -> Result<Option<ToWorker>, WorkerError> {
        let idle_since = Instant::now();
        let mut trim_after = self.memory.wait();
        loop {
            let received = match trim_after {
                Some(wait) => frames.recv_timeout(wait.saturating_sub(idle_since.elapsed())),
                None => frames.recv().map_err(Into::into),
            };
            match received {
                Ok(ToWorker::Ping) => wire::write(&FromWorker::Pong, &mut self.output)?,
                Ok(frame) => return Ok(Some(frame)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(None),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.trim_if_due(trim_after.take().unwrap_or_default())?;
                }
            }
        }
    }

    /// Trims device memory if that is due, and reports the memory afterwards.
    pub(super) fn trim_if_due(&mut self, idle: Duration) -> Result<(), WorkerError> {
        let began = Instant::now();
        let Some(memory) = self.trim_to_due(idle) else { return Ok(()) };
        Ok(wire::write(&FromWorker::AutoTrimmed { memory, took: began.elapsed() }, &mut self.output)?)
    }

    fn trim_to_due(&mut self, idle: Duration) -> Option<Memory> {
        let keep = self.memory.due(idle)?;
        Some(self.trim(keep))
    }

    /// Trims device memory down to `keep`. Releases captured steps first if that would free their scratch buffers.
    fn trim(&mut self, keep: Bytes) -> Memory {
        if self.memory.needs_trim(keep) {
            self.models.values_mut().for_each(LoadedModel::release_captured);
        }
        self.memory.trim_to(keep)
    }

    fn load(&mut self, model: ModelId, dir: &Path, draft: Option<&DraftModel>) -> Result<(), WorkerError> {
        let frame = match self.try_load(&model, dir, draft) {
            Ok(report) => FromWorker::Ready { model, report },
            Err(LoadError::Pipe(e)) => return Err(e.into()),
            // The device has failed, not the model: another worker may be able to load it.
            Err(e) if e.fault() == DeviceErrorKind::Poisoned => {
                tracing::error!("cannot load {model}: {e}");
                return Err(WorkerError::Poisoned);
            }
            Err(e) => {
                self.memory.settle();
                self.trim_to_due(Duration::ZERO);
                FromWorker::LoadFailed { model, message: e.to_string() }
            }
        };
        Ok(wire::write(&frame, &mut self.output)?)
    }

    fn try_load(
        &mut self,
        id: &ModelId,
        dir: &Path,
        draft: Option<&DraftModel>,
    ) -> Result<ModelReport, LoadError> {
        let (started, was_kept) = (Instant::now(), self.memory.idle().prefix_cache > Bytes(0));
        self.clear_others(None);
        // Otherwise the memory of the prefix cache would count for the model.
        let before = if was_kept { self.memory.settle() } else { self.memory.idle() };
        self.faults.at(FaultPoint::Load)?;
        let opening = ModelOpener { device: &self.device, spec: &self.spec, threads: self.threads };
        let opened = opening.open(dir, draft)?;
        wire::write(&FromWorker::Loaded(id.clone()), &mut self.output)?;
        self.faults.at(FaultPoint::WarmUp)?;
        let loaded = opened.warm_up(dir)?;
        let placement = loaded.timeline.model().session().placement().map_err(EngineError::from)?;
        let (capacity, draft) = (loaded.timeline.capacity(), loaded.draft.clone());
        let threads = loaded.timeline.model().session().threads();
        self.models.insert(id.clone(), loaded);
        let held = self.memory.settle();
        let after = self.trim_to_due(Duration::ZERO).unwrap_or(held);
        let placement = Placement(placement);
        Ok(ModelReport {
            placement,
            capacity,
            decode_threads: threads.map(|threads| threads.decode),
            prefill_threads: threads.map(|threads| threads.prefill),
            draft,
            load_time: started.elapsed(),
            before,
            after,
        })
    }

    /// Clears the prefix caches of all models except `but`: only one model keeps a cache.
    pub(super) fn clear_others(&mut self, but: Option<&ModelId>) {
        let others = self.models.iter_mut().filter(|(id, _)| but != Some(*id));
        others.for_each(|(_, loaded)| loaded.clear_to(Bytes(0)));
        self.update_cache_size();
    }

    /// Updates the sizes of the prefix cache and of adapters in memory reports.
    pub(super) fn update_cache_size(&mut self) {
        let kept = self.models.values().map(|loaded| loaded.kept().0).sum();
        self.memory.set_prefix_cache(Bytes(kept));
        self.memory.set_adapters(self.adapters.bytes());
    }

    fn restore(&mut self, prompt: &PromptToRestore) -> Result<(), WorkerError> {
        let restored = match self.models.get_mut(&prompt.model) {
            Some(loaded) => saved_prompts::restore(loaded, prompt),
            None => Err(not_loaded(&prompt.model)),
        };
        self.update_cache_size();
        let memory = self.memory.settle();
        let frame = match restored {
            Ok(_) => FromWorker::Restored { memory },
            Err(failure) => FromWorker::NotRestored { failure },
        };
        Ok(wire::write(&frame, &mut self.output)?)
    }

    /// Drops the restored prompts with this name, or all of them.
    fn forget(&mut self, name: Option<&str>) {
        self.models.values_mut().for_each(|loaded| loaded.timeline.forget_restored(name));
        self.update_cache_size();
    }
}

/// Why a job cannot run.
pub(super) fn not_loaded(model: &ModelId) -> Failure {
    Failure::Model { model: model.clone(), message: "the model is not loaded".into() }
}
