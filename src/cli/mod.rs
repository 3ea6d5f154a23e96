//! Wires the parts together and prints for people.

pub mod export;

use clap::Parser;

/// Serves one fine-tuned language model.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Export(export::Args),
}

/// Runs the command line.
///
/// # Errors
/// When the command fails.
pub fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Export(args) => export::run(args),
    }
}
