//! Smoke test of a server: prompts in several scripts, expected answers, and a report.
//!
//! Each prompt is sent in several modes: before the model is loaded, after, all requests at once, and with a new worker
//! process per request.

mod answer;
mod check;
mod outcome;
mod report;
mod run;
mod suite;

pub use self::{
    answer::{MemoryUse, ObservedAnswer},
    check::{Letters, problems},
    outcome::{Mode, Outcome},
    report::{Report, Run},
    run::{all_at_once, cold, one_by_one},
    suite::{Case, Expected, Suite, SuiteError},
};
