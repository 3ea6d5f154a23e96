//! What gateways and nodes send each other, and its encoding.
//!
//! Adding a field: give it `#[serde(default)]`, so that messages without it still decode. Adding a variant that an old reader may
//! meet, or changing a meaning: raise [`VERSION`], which separates old from new processes. A change of
//! [`Job`] that an old node must not ignore: raise [`JOB_FORMAT`].

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;

use crate::job::{CommandOutcome, Event, Job, KeepAlive, ModelId, Readiness};

/// Version of the encoding; processes of different versions do not see each other's messages.
pub const VERSION: u32 = 1;

/// Counts the changes of jobs that a node must know.
pub const JOB_FORMAT: u32 = 3;

/// A message could not be decoded.
#[derive(Debug, thiserror::Error)]
#[error("a message of {length} bytes does not decode: {source}")]
pub(super) struct DecodeError {
    length: usize,
    source: rmp_serde::decode::Error,
}

/// Encodes a message.
pub(super) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Fails only for types that have no MessagePack form, and writing to a `Vec` does not fail.
    rmp_serde::to_vec_named(message).unwrap_or_default()
}

/// Decodes a message of another process.
///
/// # Errors
/// When it is not a `T`.
pub(super) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, DecodeError> {
    rmp_serde::from_slice(payload).map_err(|source| DecodeError { length: payload.len(), source })
}

/// A waiting job, without anything of its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ticket {
    /// Number of the group of jobs in its gateway.
    pub(super) job: u64,
    pub(super) gateway: String,
    #[serde(default)]
    pub(super) prompt_tokens: usize,
    /// In milliseconds since 1970; the gateway decides, this is for people who look at the queue.
    #[serde(default)]
    pub(super) deadline_ms: u64,
}

/// One run of a job on a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct RunKey {
    pub(super) job: u64,
    pub(super) epoch: u32,
    /// Random, so that a run cannot be mistaken for another one.
    pub(super) fence: u64,
}

/// What a node asks on a gateway's `claim`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum ClaimRequest {
    /// May this node run the job?
    Claim {
        job: u64,
        node: String,
        /// Random, and different after a restart.
        #[serde(default)]
        instance: u64,
        /// The [`JOB_FORMAT`] that it understands.
        format: u32,
    },
    /// The rest of a grant, from this byte on.
    Part { run: RunKey, offset: usize },
}

/// A gateway's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum ClaimAnswer {
    /// The node runs it.
    Grant {
        run: RunKey,
        /// Bytes of the encoded [`Grant`].
        length: usize,
        /// Its beginning. Messages have a limit of 1 MB, and prompts do not.
        part: ByteBuf,
    },
    /// More bytes of a grant.
    Part(ByteBuf),
    /// The job has ended, or its client has left: remove the ticket.
    Gone,
    /// Another node runs it: remove the ticket.
    Taken,
    /// This node cannot run it.
    Refused { reason: String },
}

/// The jobs of a group, to be run together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Grant {
    pub(super) jobs: Vec<Job>,
    /// Time until they have to be finished.
    pub(super) remaining_ms: u64,
    #[serde(default)]
    pub(super) is_batch: bool,
    #[serde(default)]
    pub(super) is_limited: bool,
}

/// Events of a run, as a node publishes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Batch {
    pub(super) run: RunKey,
    /// Index of the first event within the run.
    pub(super) first: u64,
    /// Events, each of one of the run's jobs by its place in the grant.
    pub(super) events: Vec<(u16, Event)>,
    /// Set on the last message of the run.
    #[serde(default)]
    pub(super) end: Option<RunEnd>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum RunEnd {
    /// Every job has its last event.
    Done,
    /// The node stops; another one should continue.
    HandOver,
    /// The node cannot run the jobs any more.
    Lost { reason: String },
}

/// The answer to the last message of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum BatchAnswer {
    Taken,
    /// Events are missing from this index on.
    ReplayFrom(u64),
    /// The gateway does not wait for this run.
    Unknown,
}

/// A node's report to a gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Beat {
    pub(super) node: String,
    /// Runs of this gateway.
    pub(super) runs: Vec<RunReport>,
}

/// What a node reports of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct RunReport {
    pub(super) run: RunKey,
    /// Index of the next event.
    pub(super) next: u64,
    /// Number of the node's slot.
    #[serde(default)]
    pub(super) slot: u16,
}

/// A gateway's answer to a [`Beat`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct BeatAnswer {
    /// Runs to stop.
    pub(super) stop: Vec<RunKey>,
}

/// What a gateway asks of a node. A node that does not know a request answers [`NodeAnswer::Unknown`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum NodeRequest {
    /// About a run.
    Run(Control),
    /// A job whose prompt begins like one that the node has read.
    Offer {
        gateway: String,
        job: u64,
        /// For how long the node may keep the offer until a slot is free; 0 if it has to be free now.
        wait_ms: u64,
    },
    /// A command of an operator.
    Operate(Operation),
}

/// A command of an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Operation {
    /// Load a model on all devices.
    Load { model: ModelId, keep_alive: Option<KeepAlive> },
    /// Unload a model.
    Unload { model: ModelId },
    /// Free memory that no job needs.
    Trim,
    /// Stop after the jobs that it has.
    Drain,
}

/// A command to a node about one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Control {
    pub(super) gateway: String,
    pub(super) run: RunKey,
    pub(super) command: ControlCommand,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum ControlCommand {
    /// Stop these jobs of the run.
    Cancel(Vec<u16>),
    /// Is it still running?
    Probe,
    /// Publish events again from this index on.
    Replay(u64),
}

/// A node's answer to a [`NodeRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum NodeAnswer {
    /// The index of the run's next event.
    Running { next: u64 },
    /// The node has no such run, or does not know the request.
    Unknown,
    /// It claims the offered job now.
    Accepted,
    /// It claims the offered job when a slot is free.
    Kept,
    /// It does not take the offered job.
    Refused,
    /// What a command did on each device.
    Operated(Vec<CommandOutcome>),
}

/// What a node says of itself every second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeState {
    pub(super) node: String,
    /// Version of the program.
    pub(super) version: String,
    #[serde(default)]
    pub(super) format: u32,
    /// Random, and different after a restart.
    #[serde(default)]
    pub(super) instance: u64,
    pub(super) pools: Vec<PoolState>,
    pub(super) slots: Vec<SlotState>,
    /// Hashes of the beginnings of sequences that it has read last; see [`prefixes`](super::prefixes).
    #[serde(default)]
    pub(super) kept: Vec<Vec<u64>>,
    /// How fast it reads prompts.
    #[serde(default)]
    pub(super) tokens_per_second: Option<f64>,
    /// It takes no new jobs.
    #[serde(default)]
    pub(super) draining: bool,
    /// It ends now.
    #[serde(default)]
    pub(super) leaving: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct PoolState {
    pub(super) pool: String,
    pub(super) model: ModelId,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SlotState {
    /// Name of the device, if the node has several.
    pub(super) label: Option<String>,
    pub(super) readiness: Readiness,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::job::{JobId, Step};

    #[test]
    fn messages_survive_encoding() {
        let run = RunKey { job: 7, epoch: 2, fence: u64::MAX };
        let job = Job { answer: vec![1, 2], ..Job::new(JobId(7), vec![3; 1000], 64) };
        let grant = Grant { jobs: vec![job], remaining_ms: 1, is_batch: true, is_limited: false };
        assert_eq!(decode::<Grant>(&encode(&grant)).unwrap(), grant);
        let events = vec![(0, Event::Step(Step::Token(151_643))), (1, Event::Loading)];
        let batch = Batch { run, first: 3, events, end: Some(RunEnd::Done) };
        let encoded = encode(&batch);
        assert_eq!(decode::<Batch>(&encoded).unwrap(), batch);
        assert!(encoded.len() < 160, "{} bytes", encoded.len());
    }

    #[test]
    fn fields_of_newer_processes_are_ignored_and_missing_ones_have_a_default() {
        #[derive(Serialize)]
        struct Newer {
            job: u64,
            gateway: &'static str,
            colour: &'static str,
        }
        let ticket: Ticket = decode(&encode(&Newer { job: 1, gateway: "g", colour: "red" })).unwrap();
        assert_eq!(ticket, Ticket { job: 1, gateway: "g".into(), prompt_tokens: 0, deadline_ms: 0 });
    }

    /// Messages of the first release, as JSON with the same names. A newer program has to understand them, because nodes are upgraded
    /// before gateways and at different times.
    #[test]
    fn messages_of_the_first_release_still_decode() {
        let run = json!({ "job": 7, "epoch": 2, "fence": 9 });
        let job = json!({
            "id": 7, "model": "m", "lost": 0, "keep_alive": { "For": [300, 0] }, "prompt": [1, 2], "answer": [3],
            "sampling": encoded(&crate::job::Sampling::greedy()), "max_new_tokens": 64, "min_new_tokens": 0,
            "constraint": { "Regex": "a+" }, "logprobs": null, "trace": null, "cache_prompt": true,
            "cache_salt": vec![0; 32], "embedding": null, "save": null, "end_tokens": [5],
        });
        let grant = json!({ "jobs": [job], "remaining_ms": 1000, "is_batch": false, "is_limited": true });
        assert_eq!(from_json::<Grant>(&grant).jobs[0].answer, [3]);
        from_json::<Ticket>(&json!({ "job": 7, "gateway": "g", "prompt_tokens": 2, "deadline_ms": 1 }));
        from_json::<ClaimRequest>(&json!({ "Claim": { "job": 7, "node": "n", "format": 1 } }));
        from_json::<ClaimRequest>(&json!({ "Part": { "run": run, "offset": 4 } }));
        let events = json!([[0, { "Step": { "Token": 5 } }], [1, "Loading"], [0, "Loaded"]]);
        let batch = json!({ "run": run, "first": 0, "events": events, "end": { "Lost": { "reason": "r" } } });
        assert_eq!(from_json::<Batch>(&batch).events.len(), 3);
        from_json::<Beat>(&json!({ "node": "n", "runs": [{ "run": run, "next": 3 }] }));
        from_json::<BeatAnswer>(&json!({ "stop": [run] }));
        let control = json!({ "gateway": "g", "run": run, "command": { "Replay": 3 } });
        from_json::<NodeRequest>(&json!({ "Run": control }));
        from_json::<NodeRequest>(&json!({ "Offer": { "gateway": "g", "job": 7, "wait_ms": 5 } }));
        from_json::<NodeRequest>(&json!({ "Operate": "Trim" }));
        from_json::<NodeAnswer>(&json!({ "Running": { "next": 3 } }));
        let state = json!({ "node": "n", "version": "0.1.0", "pools": [{ "pool": "m-01234567", "model": "m" }],
            "slots": [{ "label": null, "readiness": "Starting" }] });
        assert_eq!(from_json::<NodeState>(&state).instance, 0);
    }

    #[test]
    fn an_older_process_does_not_take_a_request_of_a_newer_one_for_another() {
        decode::<NodeRequest>(&encode(&json!({ "Dance": 1 }))).unwrap_err();
        decode::<ClaimRequest>(&encode(&json!({ "Beg": { "job": 1 } }))).unwrap_err();
    }

    fn encoded<T: Serialize>(message: &T) -> Value {
        decode(&encode(message)).unwrap()
    }

    fn from_json<T: DeserializeOwned>(message: &Value) -> T {
        decode(&encode(message)).unwrap()
    }

    #[test]
    fn bytes_of_others_are_an_error_and_allocate_little() {
        for payload in [&b""[..], b"hello", &[0xdd, 0xff, 0xff, 0xff, 0xff], &[0xc1]] {
            decode::<Batch>(payload).unwrap_err();
            decode::<Grant>(payload).unwrap_err();
        }
    }
}
