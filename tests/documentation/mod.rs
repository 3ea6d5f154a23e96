//! The documentation: its commands run, and the files and names in it exist.

mod commands;
mod references;
