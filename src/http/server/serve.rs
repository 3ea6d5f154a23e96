//! Runs the server until shutdown.

use std::{
    io,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use super::listener::{self, Listener};
use crate::{
    http::{openapi, state::AppState},
    sandbox::Sandbox,
};

/// Tasks of the caller that are tied to the life of the server.
#[derive(Debug)]
pub struct Life<B, S, F> {
    /// Runs on the thread of the handlers.
    pub beside: B,
    /// Completes when the server has to shut down.
    pub shutdown: S,
    /// Runs after the last answer. Probes are still answered meanwhile.
    pub finish: F,
}

/// Serves until `shutdown` completes, then refuses new requests, finishes queued and running ones within
/// [`Settings::grace`](crate::http::Settings::grace), and returns. Probes are answered until the end.
///
/// All of it runs on one thread, because a token that passes from thread to thread waits for a core each time, and the
/// worker uses the cores. More HTTP threads would not protect against slow requests either: a few of them would block all
/// threads. So longer work runs elsewhere; see the table in the documentation of [`http`](crate::http).
///
/// # Errors
/// [`io::Error`] when a listener cannot be used.
pub async fn serve<B, S, F>(listeners: Vec<Listener>, state: AppState, life: Life<B, S, F>) -> io::Result<()>
where
    B: Future<Output = ()> + Send + 'static,
    S: Future<Output = ()>,
    F: Future<Output = ()>,
{
    let Life { beside, shutdown, finish } = life;
    // Made now, so that no request waits for it.
    std::thread::spawn(|| LazyLock::force(&openapi::DOCUMENTS));
    let beside = Arc::new(Mutex::new(Some(beside)));
    let sandbox = state.sandbox.clone();
    let begin = move || {
        // The sandbox's processes end with the thread that starts them.
        sandbox.iter().for_each(Sandbox::warm_up);
        if let Some(beside) = beside.lock().unwrap_or_else(PoisonError::into_inner).take() {
            actix_web::rt::spawn(beside);
        }
    };
    let server = listener::listen(listeners, state.clone(), begin)?;
    let handle = server.handle();
    let ending = async {
        shutdown.await;
        state.executor.drain(state.settings.grace).await;
        finish.await;
        handle.stop(true).await;
    };
    let ended = async { tokio::join!(server, ending).0 };
    tokio::select! {
        ended = ended => ended,
        () = state.watch_for_ready() => Ok(()),
    }
}
