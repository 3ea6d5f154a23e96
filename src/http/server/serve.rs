//! The server's life: it begins, serves until it shall end, and finishes what it has accepted.

use std::{
    io,
    net::TcpListener,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use super::listener;
use crate::{
    http::{openapi, state::AppState},
    sandbox::Sandbox,
};

/// When a server begins and ends, and what else happens then.
#[derive(Debug)]
pub struct Life<B, S, F> {
    /// What runs beside the handlers, on their thread.
    pub beside: B,
    /// Completes when the server shall end.
    pub shutdown: S,
    /// What is left to do when no answer is due any more. Probes are still answered meanwhile.
    pub finish: F,
}

/// Serves until `shutdown` completes, then refuses new requests, lets what waits and runs finish within the grace of
/// the settings, and returns. Probes are answered until the end.
///
/// One thread does all of it, and what runs beside it: a token that is handed from thread to thread waits for a core each
/// time, and the cores are the worker's. More HTTP threads would not help against a request that holds one for long: a few
/// such requests hold them all. So nothing that a client sends may take more than a millisecond on it; the table in the
/// module's documentation says where such work is done instead.
///
/// # Errors
/// [`io::Error`] when the listener cannot be used.
pub async fn serve<B, S, F>(listener: TcpListener, state: AppState, life: Life<B, S, F>) -> io::Result<()>
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
        // Its processes end with the thread that starts them.
        sandbox.iter().for_each(Sandbox::warm_up);
        if let Some(beside) = beside.lock().unwrap_or_else(PoisonError::into_inner).take() {
            actix_web::rt::spawn(beside);
        }
    };
    let server = listener::listen(listener, state.clone(), begin)?;
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
