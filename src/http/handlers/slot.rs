//! `GET /v1/slot`: what runs and for whom, who waits, and what the last requests took of the memory.
//!
//! Figures and names, never a prompt or an answer. Who asked is told to an admin key and to the key that asked itself;
//! to other keys the request is one of somebody, and its model is told where they may use it. Without keys everybody who
//! comes in may see everything there is: request ids and models.

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
        formats::format::rate,
        middleware::{access_log::RequestRecord, auth::check_model},
        state::AppState,
    },
    job::{DevicePeak, Memory, MemoryReport, Readiness},
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
    /// Whether new requests are accepted; not while the server ends.
    accepting: bool,
    /// One for each slot.
    devices: Vec<Device>,
    /// What the process holds that answers HTTP; workers have their own.
    server: Memory,
    queue: Queue,
    requests: Requests,
    /// The last requests that had a slot, the latest last; 64 at most.
    history: Vec<Finished>,
}

/// A device and what runs on it.
#[derive(Debug, Serialize, ToSchema)]
struct Device {
    /// Counted from 0.
    index: usize,
    /// The label `device` of its figures in `/metrics`, where there are several; else null.
    label: Option<String>,
    /// `ready`, `starting`, `restarting`, `down` or `stopping`.
    state: &'static str,
    /// For people: `the CPU`, or which GPU; null while no worker is up.
    name: Option<String>,
    /// Models that are loaded.
    models: Vec<String>,
    /// What its worker holds now, in bytes; null while no worker is up.
    memory: Option<Memory>,
    /// Null when it is idle.
    running: Option<Running>,
}

/// Who wants a job done, as far as whoever asks may know.
#[derive(Debug, Serialize, ToSchema)]
struct Who {
    /// `X-Request-Id` of the request; null where it is not to be told.
    id: Option<String>,
    /// Name of its API key; null where there is none, or it is not to be told.
    key: Option<String>,
    /// Null where it is not to be told.
    model: Option<String>,
    /// `interactive` or `batch`.
    priority: &'static str,
    prompt_tokens: Tokens,
    /// Most that it may generate.
    max_tokens: Tokens,
}

#[derive(Debug, Serialize, ToSchema)]
struct Running {
    #[serde(flatten)]
    who: Who,
    /// When it got the slot, in seconds since 1970.
    since: f64,
    /// For how long it has had it.
    running_ms: Millis,
    /// Tokens of its prompt that are read.
    prompt_tokens_read: Tokens,
    generated_tokens: Tokens,
    /// Since its first token; null before there is a second one.
    tokens_per_second: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Queue {
    /// Requests that wait.
    length: usize,
    /// Most that may.
    limit: usize,
    /// Prompt tokens of those that wait.
    prompt_tokens: Tokens,
    /// Most that may wait.
    prompt_tokens_limit: Tokens,
    /// In the order of their turns.
    waiting: Vec<Waiting>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Waiting {
    #[serde(flatten)]
    who: Who,
    /// 1 is next, unless another one's model is loaded already.
    position: usize,
    /// Since when it waits, in seconds since 1970.
    since: f64,
    waiting_ms: Millis,
    /// How much longer it is likely to wait, by what earlier requests took.
    estimate_ms: Millis,
}

/// How many ended in which way since the server was started.
#[derive(Debug, Serialize, ToSchema)]
struct Requests {
    /// Complete, or as long as they were to be.
    done: u64,
    /// Nobody wanted the rest: the client left, or a stop string was complete.
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
    /// When, in seconds since 1970.
    ended: f64,
    /// `stop`, `length`, `cancelled` or `failed`.
    outcome: &'static str,
    queue_ms: Millis,
    /// From having the slot to the end.
    running_ms: Millis,
    generated_tokens: Tokens,
    /// Null when it failed.
    memory: Option<MemoryAround>,
}

/// What the worker held around a request, in bytes; null where the operating system does not say.
#[derive(Debug, Serialize, ToSchema)]
struct MemoryAround {
    /// When it arrived.
    before: Memory,
    /// At most while it ran.
    peak: Peak,
    /// When it was over. A device's memory is then back in its pool, but not yet trimmed.
    after: Memory,
    /// After the trim: what the next request found, or what is held now. Null while the next one runs.
    trimmed: Option<Memory>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Peak {
    resident: Option<Bytes>,
    device: Option<DevicePeak>,
}

/// `GET /v1/slot`.
pub(crate) async fn slot(request: HttpRequest, state: web::Data<AppState>) -> HttpResponse {
    let reader = Reader::of(&request, &state);
    HttpResponse::Ok().json(reader.slot(state.executor.snapshot()))
}

/// For whom a job is: whoever sends this request.
pub(crate) fn caller(request: &HttpRequest) -> Caller {
    RequestRecord::of(request).map_or_else(Caller::default, |tally| Caller {
        request_id: tally.id().as_str().to_owned(),
        key: tally.key().map(|key| key.name().to_owned()),
    })
}

/// Whoever looks, and what there is besides the snapshot.
struct Reader<'a> {
    request: &'a HttpRequest,
    state: &'a AppState,
    key: Option<Arc<Key>>,
    now: SystemTime,
}

impl<'a> Reader<'a> {
    fn of(request: &'a HttpRequest, state: &'a AppState) -> Self {
        let key = RequestRecord::of(request).and_then(|tally| tally.key().cloned());
        Self { request, state, key, now: SystemTime::now() }
    }

    fn slot(&self, mut snapshot: Snapshot) -> Slot {
        let devices: Vec<_> = (0..snapshot.slots).map(|index| self.device(index, &snapshot)).collect();
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

    fn device(&self, index: usize, snapshot: &Snapshot) -> Device {
        // A single device is told of by the readiness of the whole, and has no label.
        let own = self.state.devices.get(index);
        let label = own.map(|(label, _)| label.as_str());
        let readiness = own.map_or(&self.state.readiness, |(_, seen)| seen).borrow();
        let up = match &*readiness {
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
            memory: past.memory.map(|report| around(&report, past.settled)),
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

fn around(report: &MemoryReport, trimmed: Option<Memory>) -> MemoryAround {
    MemoryAround {
        before: report.before,
        peak: Peak { resident: report.peak_resident, device: report.device_peak },
        after: report.after,
        trimmed,
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
