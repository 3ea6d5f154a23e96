//! Where jobs arrive while the keeper is busy with a worker.

use tokio::sync::mpsc;

use super::conversation::Request;

/// Where jobs arrive, with room for one that waits for a worker.
pub(super) struct Inbox {
    requests: mpsc::Receiver<Request>,
    pub(super) waiting: Option<Request>,
}

impl Inbox {
    pub(super) const fn new(requests: mpsc::Receiver<Request>) -> Self {
        Self { requests, waiting: None }
    }

    /// Takes a job into the waiting place, or answers the one there when it is cancelled, or gives it back when another device
    /// would have it. Never ends while there is nothing to do, so it is one branch of a `select!`.
    pub(super) async fn receive(&mut self) {
        if let Some(request) = self.waiting.take_if(|request| request.cancel.is_cancelled()) {
            return request.answer_cancelled();
        }
        if let Some(request) = self.waiting.take_if(|request| request.recall.is_cancelled()) {
            return request.give_back(None);
        }
        if let Some(request) = &self.waiting {
            tokio::select! {
                () = request.cancel.cancelled() => {}
                () = request.recall.cancelled() => {}
            }
            return;
        }
        match self.requests.recv().await {
            Some(request) => self.waiting = Some(request),
            // All handles are gone: only `stop` can follow.
            None => std::future::pending().await,
        }
    }
}
