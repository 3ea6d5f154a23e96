//! The result of one request, compared with what the suite expects.

use serde::Serialize;

use super::{
    answer::ObservedAnswer,
    check::{Letters, problems},
    suite::Case,
};
use crate::client::ClientError;

/// How the prompts are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// First request to a server that is still loading its model.
    Cold,
    /// One request after the other, with the model loaded.
    Cached,
    /// All requests at once; the response time includes the queue.
    Queued,
    /// One request after the other, each on a new worker process.
    Isolated,
}

impl Mode {
    /// Its name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Cached => "cached",
            Self::Queued => "queued",
            Self::Isolated => "isolated",
        }
    }
}

/// Result of one request.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Name of the prompt.
    pub name: String,
    /// How it was sent.
    pub mode: Mode,
    /// Share of the letters in the expected script.
    pub script_share: Option<f64>,
    /// All problems; empty if the answer is as expected.
    pub problems: Vec<String>,
    /// The answer, unless the request failed.
    pub answer: Option<ObservedAnswer>,
}

impl Outcome {
    pub(super) fn of(case: &Case, mode: Mode, asked: Result<ObservedAnswer, ClientError>) -> Self {
        let name = case.name.clone();
        match asked {
            Err(error) => {
                let problems = vec![error.to_string()];
                Self { name, mode, script_share: None, problems, answer: None }
            }
            Ok(seen) => {
                let script = case.expected.script;
                let script_share = script.and_then(|(script, _)| Letters::of(&seen.text).share(script));
                let problems = problems(&case.expected, &seen);
                Self { name, mode, script_share, problems, answer: Some(seen) }
            }
        }
    }

    /// Whether the answer is as expected.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.problems.is_empty()
    }
}
