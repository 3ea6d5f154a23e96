//! What can go wrong and where, and how each is written.

use std::{fmt, num::NonZeroU32, str::FromStr};

use super::PlanError;
use crate::units::Bytes;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The step never ends.
    Hang,
    /// The process is ended by SIGSEGV.
    Crash,
    /// The process aborts.
    Abort,
    /// The process ends with this code.
    Exit(i32),
    /// This step and all that follow take so many times as long.
    Slow(NonZeroU32),
    /// So much memory is touched and never given back.
    Leak(Bytes),
    /// The device refuses the step; the worker goes on.
    Fail,
    /// The device has no memory left for the step; the worker goes on.
    Starve,
    /// The device refuses the step and every other one from now on.
    Poison,
    /// A frame that does not decode.
    Garbage,
    /// Half a frame, then the end.
    Truncated,
    /// A frame that claims to be 4 GiB long.
    Huge,
    /// The pipe is closed, and the process lives on.
    Close,
    /// So much is said on stderr, half of it in one line.
    Flood(Bytes),
    /// A native library prints to stdout.
    Chatter,
}

impl Kind {
    /// One of each, with the values that [`Plan`](super::Plan)s at random give them.
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

    /// Those that an answer is to survive: all but a step that fails, for whatever reason, which fails its answer and nothing
    /// else.
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

    /// Its value as it is written; `None` for one that has none.
    fn value(self) -> Option<String> {
        match self {
            Self::Exit(code) => Some(code.to_string()),
            Self::Slow(times) => Some(times.to_string()),
            Self::Leak(bytes) | Self::Flood(bytes) => Some(bytes.0.to_string()),
            _ => None,
        }
    }

    /// This kind with another value.
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

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.value().map_or(Ok(()), |value| write!(f, "={value}"))
    }
}

impl FromStr for Kind {
    type Err = PlanError;

    fn from_str(found: &str) -> Result<Self, PlanError> {
        let (name, value) = found.split_once('=').map_or((found, None), |(name, value)| (name, Some(value)));
        let sample = Self::SAMPLES.into_iter().find(|kind| kind.name() == name);
        let sample = sample.ok_or_else(|| PlanError::Kind { found: name.into() })?;
        match value {
            None => Ok(sample),
            Some(value) => sample.with(value).ok_or_else(|| PlanError::Value { found: found.into() }),
        }
    }
}

/// Where it goes wrong: before what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// The model is loaded.
    Load,
    /// The model is run for the first time.
    WarmUp,
    /// This chunk of a job's prompt is read; the first is 1.
    Prefill(NonZeroU32),
    /// This decode step of a job is computed; the first is 1, and gives the second token.
    Decode(NonZeroU32),
}

impl Point {
    /// Whether a job is needed to come here.
    #[must_use]
    pub const fn is_of_a_job(self) -> bool {
        matches!(self, Self::Prefill(_) | Self::Decode(_))
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load => f.write_str("load"),
            Self::WarmUp => f.write_str("warm-up"),
            Self::Prefill(chunk) => write!(f, "prefill:{chunk}"),
            Self::Decode(step) => write!(f, "decode:{step}"),
        }
    }
}

impl FromStr for Point {
    type Err = PlanError;

    fn from_str(found: &str) -> Result<Self, PlanError> {
        let place = match found.split_once(':') {
            None if found == "load" => Some(Self::Load),
            None if found == "warm-up" => Some(Self::WarmUp),
            Some(("prefill", chunk)) => chunk.parse().ok().map(Self::Prefill),
            Some(("decode", step)) => step.parse().ok().map(Self::Decode),
            _ => None,
        };
        place.ok_or_else(|| PlanError::Point { found: found.into() })
    }
}
