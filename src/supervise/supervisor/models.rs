//! Loading and unloading models, and restoring saved prompts into them.

use tokio::time::Instant;

use super::state::Supervisor;
use crate::{
    job::{Failure, Memory, ModelId, ModelReport},
    supervise::{
        loaded_models::{device_room, is_returned},
        restored_prompts::RestoredPrompt,
        rpc,
        startup::ActiveWorker,
        worker_loss::WorkerLoss,
    },
    units::Bytes,
};

impl Supervisor {
    /// Loads a model after unloading others to make room. The inner error says why the model cannot be loaded.
    pub(super) async fn load(
        &mut self,
        worker: &mut ActiveWorker,
        model: &ModelId,
    ) -> Result<Result<(), String>, WorkerLoss> {
        let on_disk = self.config.source(model).map_or(Bytes(0), |source| source.on_disk);
        let room = device_room(self.config.spec.device_memory, worker.memory);
        for evicted in self.models.to_evict(model, on_disk, room) {
            self.unload(worker, &evicted).await?;
        }
        tracing::info!(event = "model_loading", "loading {model}");
        match rpc::load(&mut worker.process, &self.config, model).await? {
            Ok(report) => {
                self.load_losses = 0;
                self.note_loaded(worker, model.clone(), report);
                self.publish_ready(worker);
                Ok(Ok(()))
            }
            Err(message) => {
                tracing::error!(event = "model_load_failed", "model {model} cannot be loaded: {message}");
                Ok(Err(message))
            }
        }
    }

    /// Loads a model unless it is loaded, and marks it as used.
    pub(super) async fn ensure_loaded(
        &mut self,
        worker: &mut ActiveWorker,
        model: ModelId,
    ) -> Result<Result<(), Failure>, WorkerLoss> {
        if !self.models.is_loaded(&model)
            && let Err(message) = self.load(worker, &model).await?
        {
            return Ok(Err(Failure::Model { model, message }));
        }
        self.models.touch(&model, Instant::now());
        Ok(Ok(()))
    }

    /// Unloads a model. If its memory does not come back, the worker is marked for replacement.
    pub(super) async fn unload(
        &mut self,
        worker: &mut ActiveWorker,
        model: &ModelId,
    ) -> Result<(), WorkerLoss> {
        let Some(report) = self.models.remove(model) else { return Ok(()) };
        self.restored.mark_lost(Some(model));
        let before = worker.memory;
        worker.memory = rpc::unload(&mut worker.process, &self.config, model).await?;
        let memory = shown(worker.memory);
        tracing::info!(event = "model_unloaded", "unloaded {model}; the worker holds {memory}");
        self.publish_ready(worker);
        if self.models.ids().is_empty() && !is_returned(report.took(), before, worker.memory) {
            tracing::warn!(
                event = "memory_leaked",
                "unloading {model} did not free its memory; replacing the worker"
            );
            worker.leaks_memory = true;
        }
        Ok(())
    }

    pub(super) fn note_loaded(&mut self, worker: &mut ActiveWorker, model: ModelId, report: ModelReport) {
        tracing::info!(
            event = "model_loaded",
            load_ms = u64::try_from(report.load_time.as_millis()).unwrap_or(u64::MAX),
            placement = %report.placement,
            decode_threads = report.decode_threads,
            prefill_threads = report.prefill_threads,
            "loaded {model}; the worker holds {}",
            shown(report.after)
        );
        self.metrics.load_seconds.set(report.load_time.as_secs_f64());
        worker.memory = report.after;
        self.models.add(model, report, Instant::now());
    }

    /// Restores a saved prompt of a loaded model. The inner error concerns the prompt's file only.
    pub(super) async fn restore(
        &mut self,
        worker: &mut ActiveWorker,
        prompt: RestoredPrompt,
    ) -> Result<Result<(), Failure>, WorkerLoss> {
        // Removed until it is restored, so that a file that crashes a worker does not crash the next one too.
        self.restored.remove(&prompt);
        let RestoredPrompt { model, name, .. } = &prompt;
        let restored = rpc::restore(&mut worker.process, &self.config, &prompt).await;
        self.metrics.count_restore(if matches!(restored, Ok(Ok(_))) { "ok" } else { "failed" });
        match restored? {
            Ok(memory) => {
                tracing::info!(event = "prompt_restored", "restored saved prompt {name} of {model}");
                worker.memory = memory;
                self.restored.add(prompt);
                self.publish_ready(worker);
                Ok(Ok(()))
            }
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// Restores saved prompts that a worker lost: those of `model`, or of all loaded models.
    pub(super) async fn restore_lost(
        &mut self,
        worker: &mut ActiveWorker,
        model: Option<&ModelId>,
    ) -> Result<(), WorkerLoss> {
        while let Some(prompt) = self.next_lost_prompt(model) {
            let name = prompt.name.clone();
            if let Err(failure) = self.restore(worker, prompt).await? {
                tracing::warn!(
                    event = "prompt_restore_failed",
                    "cannot restore saved prompt {name} again: {failure}"
                );
            }
        }
        Ok(())
    }

    /// A saved prompt of `model`, or of any loaded model, that the worker does not have.
    pub(super) fn next_lost_prompt(&self, model: Option<&ModelId>) -> Option<RestoredPrompt> {
        self.restored.next_lost(|one| self.models.is_loaded(one) && model.is_none_or(|model| model == one))
    }
}

fn shown(memory: Memory) -> String {
    memory.anonymous.or(memory.resident).map_or_else(|| "an unknown amount".into(), |bytes| bytes.to_string())
}
