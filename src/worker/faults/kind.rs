//! Kinds of faults and where they strike, with their text forms.

use std::{fmt, num::NonZeroU32, str::FromStr};

use crate::units::Bytes;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The step never ends.
    Hang,
    /// The process is ended by SIGSEGV.
    Crash,
    /// The process aborts.
    Abort,
    /// The process ends with this code.
    Exit(i32),
    /// This step and all later ones take this many times as long.
    Slow(NonZeroU32),
    /// This much memory is touched and never freed.
    Leak(Bytes),
    /// The device fails the step; the worker keeps running.
    Fail,
    /// The device is out of memory for the step; the worker keeps running.
    Starve,
    /// The device fails the step and all later ones.
    Poison,
    /// The worker sends a frame that does not decode.
    Garbage,
    /// The worker sends half a frame and exits.
    Truncated,
    /// The worker sends a frame with a length of 4 GiB.
    Huge,
    /// The worker closes the pipe and keeps running.
    Close,
    /// This much text goes to stderr, half of it in one line.
    Flood(Bytes),
    /// A native library prints to stdout.
    Chatter,
}

impl FaultKind {
    /// One of each, with the values that random plans give them.
    pub const SAMPLES: [Self; 15] = [
        Self::Hang,
        Self::Crash,
        Self::Abort,
        Self::Exit(3),
        Self::Slow(NonZeroU32::new(4).expect("4 is not 0")),
        Self::Leak(Bytes::kib(64)),
        Self::Poison,
        Self::Garbage,
        Self::Truncated,
        Self::Huge,
        Self::Close,
        Self::Flood(Bytes::mib(2)),
        Self::Chatter,
        Self::Fail,
        Self::Starve,
    ];

    /// Kinds that must not fail the job: all except a failed step.
    pub(super) fn survivable() -> impl Iterator<Item = Self> {
        Self::SAMPLES.into_iter().filter(|kind| !matches!(kind, Self::Fail | Self::Starve))
    }

    /// Its name, without its value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hang => "hang",
            Self::Crash => "crash",
            Self::Abort => "abort",
            Self::Exit(_) => "exit",
            Self::Slow(_) => "slow",
            Self::Leak(_) => "leak",
            Self::Fail => "fail",
            Self::Starve => "starve",
            Self::Poison => "poison",
            Self::Garbage => "garbage",
            Self::Truncated => "truncated",
            Self::Huge => "huge",
            Self::Close => "close",
            Self::Flood(_) => "flood",
            Self::Chatter => "chatter",
        }
    }

    /// Text form of its value, if it has one.
    fn value(self) -> Option<String> {
        match self {
            Self::Exit(code) => Some(code.to_string()),
            Self::Slow(times) => Some(times.to_string()),
            Self::Leak(bytes) | Self::Flood(bytes) => Some(bytes.0.to_string()),
            _ => None,
        }
    }

    /// The same kind with another value.
    fn with(self, value: &str) -> Option<Self> {
        Some(match self {
            Self::Exit(_) => Self::Exit(value.parse().ok()?),
            Self::Slow(_) => Self::Slow(value.parse().ok()?),
            Self::Leak(_) => Self::Leak(Bytes(value.parse().ok()?)),
            Self::Flood(_) => Self::Flood(Bytes(value.parse().ok()?)),
            _ => return None,
        })
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.value().map_or(Ok(()), |value| write!(f, "={value}"))
    }
}

/// Why a text is not a fault kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKindError {
    /// The name is unknown.
    #[error("unknown fault {found:?}; expected one of {}", FaultKind::SAMPLES.map(FaultKind::name).join(", "))]
    Unknown {
        /// The name.
        found: String,
    },
    /// The kind does not take this value.
    #[error("invalid value in {found:?}; expected exit=CODE, slow=TIMES, leak=BYTES or flood=BYTES")]
    Value {
        /// The kind with its value.
        found: String,
    },
}

impl FromStr for FaultKind {
    type Err = FaultKindError;

    fn from_str(found: &str) -> Result<Self, FaultKindError> {
        let (name, value) = found.split_once('=').map_or((found, None), |(name, value)| (name, Some(value)));
        let sample = Self::SAMPLES.into_iter().find(|kind| kind.name() == name);
        let sample = sample.ok_or_else(|| FaultKindError::Unknown { found: name.into() })?;
        match value {
            None => Ok(sample),
            Some(value) => sample.with(value).ok_or_else(|| FaultKindError::Value { found: found.into() }),
        }
    }
}

/// Where a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultPoint {
    /// Before a model is loaded.
    Load,
    /// Before the first run of a model.
    WarmUp,
    /// Before this chunk of a job's prompt; the first is 1.
    Prefill(NonZeroU32),
    /// Before this decode step of a job. The first is 1 and gives the second token.
    Decode(NonZeroU32),
}

impl FaultPoint {
    /// Whether it belongs to a job.
    #[must_use]
    pub const fn is_of_a_job(self) -> bool {
        matches!(self, Self::Prefill(_) | Self::Decode(_))
    }
}

impl fmt::Display for FaultPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load => f.write_str("load"),
            Self::WarmUp => f.write_str("warm-up"),
            Self::Prefill(chunk) => write!(f, "prefill:{chunk}"),
            Self::Decode(step) => write!(f, "decode:{step}"),
        }
    }
}

/// Why a text is not a fault point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown point {found:?}; expected load, warm-up, prefill:K or decode:K, K from 1")]
pub struct FaultPointError {
    /// The text.
    pub found: String,
}

impl FromStr for FaultPoint {
    type Err = FaultPointError;

    fn from_str(found: &str) -> Result<Self, FaultPointError> {
        let point = match found.split_once(':') {
            None if found == "load" => Some(Self::Load),
            None if found == "warm-up" => Some(Self::WarmUp),
            Some(("prefill", chunk)) => chunk.parse().ok().map(Self::Prefill),
            Some(("decode", step)) => step.parse().ok().map(Self::Decode),
            _ => None,
        };
        point.ok_or_else(|| FaultPointError { found: found.into() })
    }
}
