//! What is done between two jobs because somebody wants it, and what is done again because it was lost.

use tokio::time::Instant;

use super::{Keeper, OrderRequest};
use crate::{
    job::{Failure, ModelId, Order, OrderReport},
    supervise::{
        boot::Worker,
        exchange::{self, Lost},
        restored::Prompt,
    },
};

impl Keeper {
    pub(super) async fn obey(
        &mut self,
        worker: &mut Worker,
        (order, reply): OrderRequest,
    ) -> Result<(), Lost> {
        let (before, began) = (worker.memory, Instant::now());
        let done = self.carry_out(worker, order).await;
        let outcome = match &done {
            Ok(outcome) => outcome.clone(),
            Err(lost) => Err(Failure::WorkerLost { message: lost.reason.clone() }),
        };
        let report =
            OrderReport { before, after: worker.memory, took: began.elapsed(), loaded: self.models.ids() };
        // Whoever asked may have left.
        let _ = reply.send(outcome.map(|()| report));
        done.map(drop)
    }

    async fn carry_out(&mut self, worker: &mut Worker, order: Order) -> Result<Result<(), Failure>, Lost> {
        match order {
            Order::Load { model, keep_alive } => {
                if let Some(keep_alive) = keep_alive {
                    self.models.keep(&model, keep_alive);
                }
                return self.have(worker, model).await;
            }
            Order::Unload { model } => self.unload(worker, &model).await?,
            Order::Trim => {
                self.restored.forget(None);
                worker.memory = exchange::trim(&mut worker.process, &self.command).await?;
                self.tell_ready(worker);
            }
            Order::Restore { model, name, file, salt } => {
                if let Err(failure) = self.have(worker, model.clone()).await? {
                    return Ok(Err(failure));
                }
                return self.restore(worker, Prompt { model, name, file, salt }).await;
            }
            Order::Forget { name } => {
                self.restored.forget(Some(&name));
                worker.memory = exchange::forget(&mut worker.process, &self.command, name).await?;
                self.tell_ready(worker);
            }
        }
        Ok(Ok(()))
    }

    /// Has a model loaded, and used now.
    async fn have(&mut self, worker: &mut Worker, model: ModelId) -> Result<Result<(), Failure>, Lost> {
        if !self.models.is_loaded(&model)
            && let Err(message) = self.load(worker, &model).await?
        {
            return Ok(Err(Failure::Model { model, message }));
        }
        self.models.touch(&model, Instant::now());
        Ok(Ok(()))
    }

    /// Has a saved prompt of a loaded model restored, and remembers it if that can be done. The inner error is the file's own.
    async fn restore(&mut self, worker: &mut Worker, prompt: Prompt) -> Result<Result<(), Failure>, Lost> {
        // Taken off the list until it is there: a file that ends a worker shall not end the next one.
        self.restored.give_up(&prompt);
        let Prompt { model, name, .. } = &prompt;
        let told = exchange::restore(&mut worker.process, &self.command, &prompt).await;
        let outcome = if matches!(told, Ok(Ok(_))) { "ok" } else { "failed" };
        self.figures.restored(outcome);
        match told? {
            Ok(memory) => {
                tracing::info!("saved prompt {name} of {model} is restored");
                worker.memory = memory;
                self.restored.note(prompt);
                self.tell_ready(worker);
                Ok(Ok(()))
            }
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// Has saved prompts of these models restored that the worker does not have any more.
    pub(super) async fn restore_lost(
        &mut self,
        worker: &mut Worker,
        model: Option<&ModelId>,
    ) -> Result<(), Lost> {
        while let Some(prompt) = self.lost_prompt(model) {
            let name = prompt.name.clone();
            if let Err(failure) = self.restore(worker, prompt).await? {
                tracing::warn!("saved prompt {name} is not restored again: {failure}");
            }
        }
        Ok(())
    }

    /// A saved prompt, of this model or of any that is loaded, that the worker does not have any more.
    pub(super) fn lost_prompt(&self, model: Option<&ModelId>) -> Option<Prompt> {
        self.restored.due(|one| self.models.is_loaded(one) && model.is_none_or(|model| model == one))
    }
}
