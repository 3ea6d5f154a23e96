//! The command line: commands, exit codes, JSON, the terminal.

mod commands;
mod contract;
mod first_contact;
mod load_generator;
mod smoke;
mod terminal;
