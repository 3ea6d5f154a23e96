//! JetStream's requests that a queue of tickets needs. They are JSON on subjects.

use std::time::Duration;

use async_nats::{HeaderMap, Message};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    broker::{Broker, NoAnswer},
    options::{Options, Storage},
    subjects::{Class, Pool, Subjects},
};

/// Longest wait for an answer of JetStream. An election of a leader takes longer; then the request is repeated.
const ANSWER: Duration = Duration::from_secs(2);

/// Tickets older than this are dropped, in case their gateway has gone and no node asks for them.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// For this long the server recognises a ticket that is published twice.
const DUPLICATES: Duration = Duration::from_secs(120);

/// Waiting pulls of a consumer; the default of 512 is too low for hundreds of nodes.
const MAX_WAITING: u32 = 20_000;

/// How long a waiting pull waits, and how often the server says that it still does.
pub(super) const PULL_WAIT: Duration = Duration::from_secs(30);
pub(super) const PULL_HEARTBEAT: Duration = Duration::from_secs(2);

/// Codes of JetStream's errors.
const NAME_IN_USE: u64 = 10058;
const MAXIMUM_MESSAGES: u64 = 10077;
const NO_MESSAGE: u64 = 10037;

/// Why a request to JetStream failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StreamError {
    /// There is no stream, no consumer, or no JetStream.
    Missing,
    /// The stream has its maximum number of tickets.
    Full,
    /// No answer in time.
    Late,
    /// Another error, in the server's words.
    Refused { code: u64, message: String },
}

impl From<NoAnswer> for StreamError {
    fn from(error: NoAnswer) -> Self {
        match error {
            NoAnswer::NoResponders => Self::Missing,
            NoAnswer::Late => Self::Late,
        }
    }
}

/// What the stream holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamInfo {
    /// When it was made; another time means that it was lost.
    pub(super) created: String,
    /// Waiting tickets.
    pub(super) tickets: u64,
    pub(super) last: u64,
}

/// The stream of tickets.
#[derive(Clone, Debug)]
pub(super) struct TicketStream {
    broker: Broker,
    name: String,
    config: Value,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl TicketStream {
    pub(super) fn new(broker: Broker, options: &Options) -> Self {
        let name = broker.subjects.stream();
        let storage = match options.storage {
            Storage::File => "file",
            Storage::Memory => "memory",
        };
        let config = json!({
            "name": name,
            "subjects": [broker.subjects.all_jobs()],
            "retention": "workqueue",
            "discard": "new",
            // The gateways hold the bound; this one only limits what a faulty gateway can do.
            "max_msgs": options.max_jobs.get().saturating_mul(2),
            "max_age": nanos(MAX_AGE),
            "storage": storage,
            "num_replicas": options.replicas,
            "duplicate_window": nanos(DUPLICATES),
        });
        Self { broker, name, config }
    }

    /// Creates the stream, unless it exists.
    pub(super) async fn create(&self) -> Result<(), StreamError> {
        match self.api(&format!("STREAM.CREATE.{}", self.name), &self.config).await {
            Err(StreamError::Refused { code: NAME_IN_USE, .. }) => {
                let updated = self.api(&format!("STREAM.UPDATE.{}", self.name), &self.config).await;
                if let Err(StreamError::Refused { message, .. }) = updated {
                    tracing::warn!(
                        event = "stream_kept",
                        "the stream {} keeps its settings, which differ from cluster.*: {message}",
                        self.name
                    );
                }
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Creates the consumers of a pool, unless they exist.
    pub(super) async fn create_consumers(&self, pool: &Pool) -> Result<(), StreamError> {
        for class in Class::ALL {
            let consumer = Subjects::consumer(pool, class);
            let config = json!({
                "durable_name": consumer,
                "filter_subject": self.broker.subjects.job(pool, class),
                "ack_policy": "explicit",
                "ack_wait": nanos(Duration::from_secs(2)),
                // A work queue keeps messages that were delivered too often for ever, and counts them.
                "max_deliver": -1,
                // Of the consumer, not of a node.
                "max_ack_pending": -1,
                "max_waiting": MAX_WAITING,
            });
            let request = json!({ "stream_name": self.name, "config": config });
            self.api(&format!("CONSUMER.DURABLE.CREATE.{}.{consumer}", self.name), &request).await?;
        }
        Ok(())
    }

    /// Publishes a ticket and returns its number in the stream. The same `id` is accepted once in two minutes.
    pub(super) async fn publish(
        &self,
        subject: &str,
        id: &str,
        headers: HeaderMap,
        payload: Vec<u8>,
    ) -> Result<u64, StreamError> {
        let mut headers = headers;
        headers.insert("Nats-Msg-Id", id);
        let answer = self.broker.request_with(subject, headers, payload, ANSWER).await?;
        let answer = checked(&answer)?;
        answer["seq"].as_u64().ok_or(StreamError::Late)
    }

    /// Removes a ticket. Does nothing if it has gone.
    pub(super) async fn delete(&self, ticket: u64) -> Result<(), StreamError> {
        let request = json!({ "seq": ticket, "no_erase": true });
        match self.api(&format!("STREAM.MSG.DELETE.{}", self.name), &request).await {
            Err(StreamError::Refused { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Whether a ticket still waits, or is with a node that claims it.
    pub(super) async fn has(&self, ticket: u64) -> Result<bool, StreamError> {
        match self.api(&format!("STREAM.MSG.GET.{}", self.name), &json!({ "seq": ticket })).await {
            Ok(_) => Ok(true),
            Err(StreamError::Refused { code: NO_MESSAGE, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn info(&self) -> Result<StreamInfo, StreamError> {
        let info = self.api(&format!("STREAM.INFO.{}", self.name), &Value::Null).await?;
        let number = |name: &str| info["state"][name].as_u64().unwrap_or_default();
        let created = info["created"].as_str().unwrap_or_default().to_owned();
        Ok(StreamInfo { created, tickets: number("messages"), last: number("last_seq") })
    }

    /// Asks for one ticket of a class; it comes to `inbox`, as does a message without one.
    pub(super) async fn pull(&self, pool: &Pool, class: Class, inbox: &str, waits: bool) {
        let consumer = Subjects::consumer(pool, class);
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", self.name);
        let request = if waits {
            json!({ "batch": 1, "expires": nanos(PULL_WAIT), "idle_heartbeat": nanos(PULL_HEARTBEAT) })
        } else {
            json!({ "batch": 1, "no_wait": true })
        };
        self.broker.publish_with_reply(&subject, inbox, request.to_string().into_bytes()).await;
    }

    async fn api(&self, what: &str, request: &Value) -> Result<Value, StreamError> {
        let payload = if request.is_null() { Vec::new() } else { request.to_string().into_bytes() };
        let answer = self.broker.request(&format!("$JS.API.{what}"), payload, ANSWER).await?;
        checked(&answer)
    }
}

fn checked(answer: &Message) -> Result<Value, StreamError> {
    let answer: Value = serde_json::from_slice(&answer.payload).map_err(|_| StreamError::Late)?;
    let Some(error) = answer.get("error").filter(|error| !error.is_null()) else { return Ok(answer) };
    let error: ApiError = serde_json::from_value(error.clone()).map_err(|_| StreamError::Late)?;
    Err(match error {
        ApiError { err_code: MAXIMUM_MESSAGES, .. } => StreamError::Full,
        ApiError { err_code: NO_MESSAGE, description: message, .. } => {
            StreamError::Refused { code: NO_MESSAGE, message }
        }
        ApiError { code: 404, .. } => StreamError::Missing,
        // No leader, or overloaded.
        ApiError { code: 503, .. } => StreamError::Late,
        ApiError { err_code: code, description: message, .. } => StreamError::Refused { code, message },
    })
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
