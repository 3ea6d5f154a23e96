//! The command line: commands, exit codes, JSON, the terminal.

mod commands;
mod contract;
mod load_generator;
mod smoke;
mod terminal;
