//! The task that keeps one worker running, with the right models loaded, and runs one job at a time on it.
//!
//! `lifecycle` starts workers one after another, `serving` chooses the next task of a ready worker, and each of the other files
//! does one kind of task.

mod commands;
mod idle;
mod inbox;
mod jobs;
mod lifecycle;
mod models;
mod replacement;
mod serving;
mod state;

pub(super) use inbox::CommandRequest;
pub(super) use state::{Channels, Supervisor};
