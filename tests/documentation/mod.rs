//! The documentation: its commands run, and what it names exists.

mod commands;
mod references;
