//! `GET /v1/slot`: running, queued and recent requests, and their memory.
//!
//! Prompts and answers are never shown. Request ids and key names are shown to admin keys and to the request's own key; other
//! keys see the model only if they may use it. Without API keys, all of it is public.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    auth::Key,
    executor::{self, Caller, FinishedJob, JobCounts, JobInfo, JobOutcome, Snapshot},
    http::{
        formats::{RequestMemory, rate},
        middleware::{RequestRecord, auth::check_model},
        state::AppState,
    },
    job::{Memory, Readiness},
    metrics::{MemoryKind, Metrics, OnDevice},
    units::{Bytes, Millis, Tokens},
};

/// The answer of `GET /v1/slot`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Slot {
    /// Always `slot`.
    object: &'static str,
    /// The server's clock, in seconds since 1970.
    now: f64,
    /// Whether new requests are accepted; false during shutdown.
    accepting: bool,
    /// One entry per slot.
    devices: Vec<Device>,
    /// Memory of the HTTP server process; workers have their own.
    server: Memory,
    queue: Queue,
    requests: Requests,
    /// The last requests that had a slot, at most 64, the latest last.
    history: Vec<Finished>,
}

/// A device and its running request.
#[derive(Debug, Serialize, ToSchema)]
struct Device {
    /// Counted from 0.
    index: usize,
    /// The label `device` in `/metrics`, or the node of a cluster; null with a single device.
    label: Option<String>,
    /// `ready`, `starting`, `restarting`, `down` or `stopping`.
    state: &'static str,
    /// `the CPU` or the name of the GPU; null while no worker is ready.
    name: Option<String>,
    /// Models that are loaded.
    models: Vec<String>,
    /// Memory of its worker in bytes; null while no worker is ready.
    memory: Option<Memory>,
    /// Null when it is idle.
    running: Option<Running>,
}

/// The request of a job, without what the reader may not see.
#[derive(Debug, Serialize, ToSchema)]
struct Who {
    /// `X-Request-Id`; null if it is hidden.
    id: Option<String>,
    /// Name of its API key; null if there is none or it is hidden.
    key: Option<String>,
    /// Null if it is hidden.
    model: Option<String>,
    /// `interactive` or `batch`.
    priority: &'static str,
    prompt_tokens: Tokens,
    /// Its token limit.
    max_tokens: Tokens,
}

#[derive(Debug, Serialize, ToSchema)]
struct Running {
    #[serde(flatten)]
    who: Who,
    /// When it got the slot, in seconds since 1970.
    since: f64,
    /// Time since then.
    running_ms: Millis,
    /// Prompt tokens read so far.
    prompt_tokens_read: Tokens,
    generated_tokens: Tokens,
    /// Since its first token; null before the second one.
    tokens_per_second: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Queue {
    /// Number of queued requests.
    length: usize,
    /// Limit of the number.
    limit: usize,
    /// Prompt tokens of the queued requests.
    prompt_tokens: Tokens,
    /// Limit of the prompt tokens.
    prompt_tokens_limit: Tokens,
    /// In the order in which they will run.
    waiting: Vec<Waiting>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Waiting {
    #[serde(flatten)]
    who: Who,
    /// 1 is next, unless the model of another one is already loaded.
    position: usize,
    /// When it was queued, in seconds since 1970.
    since: f64,
    waiting_ms: Millis,
    /// Estimated remaining time in the queue, from earlier requests.
    estimate_ms: Millis,
}

/// Number of finished requests since startup.
#[derive(Debug, Serialize, ToSchema)]
struct Requests {
    /// Complete answers, including those at their token limit.
    done: u64,
    /// The client disconnected, or a stop string ended the answer.
    cancelled: u64,
    failed: u64,
}

/// A request that had a slot.
#[derive(Debug, Serialize, ToSchema)]
struct Finished {
    #[serde(flatten)]
    who: Who,
    /// Index of its device.
    device: usize,
    /// In seconds since 1970.
    ended: f64,
    /// `stop`, `length`, `cancelled` or `failed`.
    outcome: &'static str,
    queue_ms: Millis,
    /// Time with the slot.
    running_ms: Millis,
    generated_tokens: Tokens,
    /// Null when it failed.
    memory: Option<MemoryAround>,
}

/// The worker's memory before, during and after a request.
#[derive(Debug, Serialize, ToSchema)]
struct MemoryAround {
    #[serde(flatten)]
    request: RequestMemory,
    /// After the trim: what the next request found, or what is held now. Null while the next one runs.
    trimmed: Option<Memory>,
}

/// `GET /v1/slot`.
pub(crate) async fn slot(request: HttpRequest, state: web::Data<AppState>) -> HttpResponse {
    let reader = Reader::of(&request, &state);
    HttpResponse::Ok().json(reader.slot(state.executor.snapshot()))
}

/// The caller of a job: request id and key of the request.
pub(crate) fn caller(request: &HttpRequest) -> Caller {
    RequestRecord::of(request).map_or_else(Caller::default, |record| Caller {
        request_id: record.id().as_str().to_owned(),
        key: record.key().map(|key| key.name().to_owned()),
    })
}

/// Builds the answer for one reader.
struct Reader<'a> {
    request: &'a HttpRequest,
    state: &'a AppState,
    key: Option<Arc<Key>>,
    now: SystemTime,
}

impl<'a> Reader<'a> {
    fn of(request: &'a HttpRequest, state: &'a AppState) -> Self {
        let key = RequestRecord::of(request).and_then(|record| record.key().cloned());
        Self { request, state, key, now: SystemTime::now() }
    }

    fn slot(&self, mut snapshot: Snapshot) -> Slot {
        let states = (self.state.devices)();
        let states = (0..snapshot.slots).map(|index| (index, states.get(index)));
        let devices: Vec<_> = states.map(|(index, state)| self.device(index, state, &snapshot)).collect();
        for Device { index, memory, running, .. } in &devices {
            let last = snapshot.past.iter_mut().rfind(|past| past.slot == *index);
            if let Some(last) = last.filter(|_| running.is_none()) {
                last.settled = *memory;
            }
        }
        Slot {
            object: "slot",
            now: seconds(self.now),
            accepting: snapshot.accepting,
            server: own_memory(&self.state.metrics),
            queue: self.queue(&snapshot),
            requests: requests(snapshot.counts),
            history: snapshot.past.iter().map(|past| self.finished(past)).collect(),
            devices,
        }
    }

    fn device(&self, index: usize, own: Option<&(String, Readiness)>, snapshot: &Snapshot) -> Device {
        // A single device has no label, and its readiness is that of the server.
        let label = own.map(|(label, _)| label.as_str());
        let readiness = own.map_or_else(|| self.state.readiness.borrow().clone(), |(_, seen)| seen.clone());
        let up = match &readiness {
            Readiness::Ready(report) => Some(report),
            _ => None,
        };
        let models = up.iter().flat_map(|report| &report.models).map(|(id, _)| id.0.clone());
        Device {
            index,
            label: label.map(str::to_owned),
            state: readiness.as_str(),
            name: up.map(|report| report.runtime.device.clone()),
            models: models.filter(|id| self.opens(id)).collect(),
            memory: up.map(|report| report.memory),
            running: snapshot.running.iter().find(|one| one.slot == index).map(|one| self.running(one)),
        }
    }

    fn running(&self, running: &executor::RunningJobInfo) -> Running {
        let stepped = running.generated.0.saturating_sub(1);
        Running {
            who: self.who(&running.job),
            since: self.ago(running.time),
            running_ms: running.time.into(),
            prompt_tokens_read: running.read,
            generated_tokens: running.generated,
            tokens_per_second: running.decoding.and_then(|time| rate(stepped, time)),
        }
    }

    fn queue(&self, snapshot: &Snapshot) -> Queue {
        let waiting = snapshot.waiting.iter().enumerate().map(|(ahead, waiting)| Waiting {
            who: self.who(&waiting.job),
            position: ahead + 1,
            since: self.ago(waiting.time),
            waiting_ms: waiting.time.into(),
            estimate_ms: waiting.left.into(),
        });
        Queue {
            length: snapshot.waiting.len(),
            limit: snapshot.limits.max_jobs.get(),
            prompt_tokens: Tokens(snapshot.waiting.iter().map(|waiting| waiting.job.prompt.0).sum()),
            prompt_tokens_limit: snapshot.limits.max_prompt_tokens,
            waiting: waiting.collect(),
        }
    }

    fn finished(&self, past: &FinishedJob) -> Finished {
        Finished {
            who: self.who(&past.job),
            device: past.slot,
            ended: seconds(past.ended),
            outcome: match past.outcome {
                JobOutcome::Stop => "stop",
                JobOutcome::Length => "length",
                JobOutcome::Cancelled => "cancelled",
                JobOutcome::Failed => "failed",
            },
            queue_ms: past.queue_wait.into(),
            running_ms: past.time.into(),
            generated_tokens: past.generated,
            memory: past.memory.map(|report| MemoryAround { request: report.into(), trimmed: past.settled }),
        }
    }

    fn who(&self, job: &JobInfo) -> Who {
        let asked = &job.caller;
        let is_told =
            self.key.as_ref().is_none_or(|key| key.is_admin() || asked.key.as_deref() == Some(key.name()));
        Who {
            id: Some(asked.request_id.clone()).filter(|id| is_told && !id.is_empty()),
            key: asked.key.clone().filter(|_| is_told),
            model: Some(job.model.0.clone()).filter(|id| self.opens(id)),
            priority: job.priority.as_str(),
            prompt_tokens: job.prompt,
            max_tokens: job.max_new,
        }
    }

    fn opens(&self, model: &str) -> bool {
        check_model(self.request, model).is_ok()
    }

    fn ago(&self, time: Duration) -> f64 {
        seconds(self.now.checked_sub(time).unwrap_or(UNIX_EPOCH))
    }
}

const fn requests(counts: JobCounts) -> Requests {
    Requests { done: counts.done, cancelled: counts.cancelled, failed: counts.failed }
}

/// Memory of this process, as its gauges show it.
fn own_memory(metrics: &Metrics) -> Memory {
    let read = |kind| {
        let kind = MemoryKind { process: "parent", kind, device: OnDevice::default() };
        u64::try_from(metrics.memory.get(&kind)?.get()).ok().map(Bytes)
    };
    Memory { resident: read("resident"), anonymous: read("anonymous"), ..Memory::default() }
}

/// Since 1970, to the millisecond.
fn seconds(at: SystemTime) -> f64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs_f64() * 1e3).round() / 1e3
}
