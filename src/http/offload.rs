//! Runs work that would block the HTTP thread on other threads.
//!
//! *Light* work takes milliseconds, such as tokenizing a page of text; [`LIGHT`] tasks run at once. *Heavy* work may take a
//! second and hundreds of megabytes, such as parsing a body of megabytes or tokenizing a long prompt; one task runs at a time,
//! because their memory adds up, at a low priority. A request with a short prompt never waits for one with a long prompt.
//!
//! A permit belongs to the work, not to the request: work continues after its client has disconnected, and still counts.

use std::sync::Arc;

use tokio::{
    sync::{Semaphore, oneshot},
    task::spawn_blocking,
};

use super::error::ApiError;
use crate::executor::SubmitError;

/// Light tasks that run at once; the worker needs the cores.
const LIGHT: usize = 2;

/// Heavy tasks that run at once.
const HEAVY: usize = 1;

/// Bytes from which a body or a prompt is heavy.
const HEAVY_BYTES: usize = 256 << 10;

/// Nice value of the thread that does heavy work.
#[cfg(target_os = "linux")]
const LOW_PRIORITY: i32 = 10;

/// The expected cost of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cost {
    /// Less than the cost of another thread; runs in place.
    Trivial,
    Light,
    Heavy,
}

impl Cost {
    /// The cost of parsing or writing JSON.
    pub(crate) const fn of_json(bytes: usize) -> Self {
        const MAX_TRIVIAL: usize = 16 << 10;
        Self::beyond(MAX_TRIVIAL, bytes)
    }

    /// The cost of tokenizing or detokenizing text. A tokenizer reads one or two bytes per microsecond.
    pub(crate) const fn of_text(bytes: usize) -> Self {
        const MAX_TRIVIAL: usize = 1 << 10;
        Self::beyond(MAX_TRIVIAL, bytes)
    }

    const fn beyond(most_trivial: usize, bytes: usize) -> Self {
        match bytes {
            bytes if bytes <= most_trivial => Self::Trivial,
            bytes if bytes < HEAVY_BYTES => Self::Light,
            _ => Self::Heavy,
        }
    }
}

/// The limits on light and on heavy work.
#[derive(Clone, Debug)]
pub(crate) struct Offload {
    light: Arc<Semaphore>,
    heavy: Arc<Semaphore>,
}

impl Default for Offload {
    fn default() -> Self {
        Self { light: Arc::new(Semaphore::new(LIGHT)), heavy: Arc::new(Semaphore::new(HEAVY)) }
    }
}

impl Offload {
    /// Runs `work` once its limit allows.
    ///
    /// # Errors
    /// Those of `work`, [`SubmitError::Stopped`] when the process ends, and [`ApiError::Internal`] when `work` panics.
    pub(crate) async fn run<T, E>(
        &self,
        cost: Cost,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        let (limit, spawn): (_, fn(Work) -> _) = match cost {
            Cost::Trivial => return work().map_err(Into::into),
            Cost::Light => (&self.light, spawn_normal),
            Cost::Heavy => (&self.heavy, spawn_low_priority),
        };
        let permit = Arc::clone(limit).acquire_owned().await.map_err(|_| SubmitError::Stopped)?;
        let (done, result) = oneshot::channel();
        spawn(Box::new(move || {
            let _permit = permit;
            // Fails if the client has disconnected.
            let _ = done.send(work());
        }))?;
        let panicked =
            || ApiError::Internal { message: "a thread panicked; its message is in the log".into() };
        result.await.map_err(|_| panicked())?.map_err(Into::into)
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// Runs `work` on a thread of the runtime.
fn spawn_normal(work: Work) -> Result<(), ApiError> {
    drop(spawn_blocking(work));
    Ok(())
}

/// Runs `work` on a new thread of low priority: the worker needs the processors for the next token, and a request that is
/// parsed meanwhile has to wait for the worker anyway.
fn spawn_low_priority(work: Work) -> Result<(), ApiError> {
    let run = move || {
        // On Linux each thread has a priority. Elsewhere the process has one, which stays as it is.
        #[cfg(target_os = "linux")]
        let _ = rustix::process::setpriority_process(None, LOW_PRIORITY);
        work();
    };
    let spawned = std::thread::Builder::new().name("offload-heavy".into()).spawn(run);
    spawned
        .map(drop)
        .map_err(|error| ApiError::Internal { message: format!("cannot start a thread: {error}") })
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        time::Duration,
    };

    use super::*;

    #[tokio::test]
    async fn heavy_work_runs_one_at_a_time_even_after_its_clients_have_left() {
        let offload = Offload::default();
        let running = Arc::new(AtomicUsize::new(0));
        let max = Arc::new(AtomicUsize::new(0));
        let work = || {
            let (running, max) = (Arc::clone(&running), Arc::clone(&max));
            move || {
                max.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, ApiError>(())
            }
        };
        for _ in 0..5 {
            let left = offload.run(Cost::Heavy, work());
            tokio::time::timeout(Duration::from_millis(5), left).await.unwrap_err();
        }
        offload.run(Cost::Heavy, work()).await.unwrap();
        assert_eq!(max.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn short_prompts_do_not_wait_for_long_ones() {
        let offload = Offload::default();
        let (done, wait) = mpsc::channel::<()>();
        let long = tokio::spawn({
            let offload = offload.clone();
            async move {
                offload
                    .run(Cost::of_text(4 << 20), move || wait.recv().map_err(|_| SubmitError::Stopped))
                    .await
            }
        });
        while offload.heavy.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        for bytes in [10, 10 << 10] {
            offload.run(Cost::of_text(bytes), || Ok::<_, ApiError>(())).await.unwrap();
        }
        done.send(()).unwrap();
        long.await.unwrap().unwrap();
    }

    #[test]
    fn work_above_a_millisecond_is_not_trivial() {
        assert_eq!([Cost::of_json(16 << 10), Cost::of_json((16 << 10) + 1)], [Cost::Trivial, Cost::Light]);
        assert_eq!([Cost::of_text(1 << 10), Cost::of_text(4 << 20)], [Cost::Trivial, Cost::Heavy]);
    }
}
