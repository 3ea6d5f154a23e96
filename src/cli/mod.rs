//! Wires the parts together, and prints for people.
//!
//! Errors come up to here with their reasons and end as one line on stderr; logs go to stderr as well, so stdout holds
//! what was asked for and nothing else.

mod bench;
mod doctor;
mod engine;
mod entry;
mod export;
mod generate;
mod inspect;
mod logging;
mod logits;
mod prepare;
mod report;
mod serve;
mod verify;
mod worker;

use std::process::ExitCode;

use clap::Parser;

/// Serves one fine-tuned language model, one answer at a time
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Serve(serve::Args),
    Generate(generate::Args),
    Export(export::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Doctor(doctor::Args),
    Bench(bench::Args),
    /// Run a model for the parent process at the other end of stdin and stdout
    #[command(hide = true)]
    Worker(worker::Args),
}

/// Runs the command line: 0 when all went well, 1 when not, 2 for a command that is none.
#[must_use]
pub fn run() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", printable(&reasons(&error)));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, except for those that a message before them has said already.
fn reasons(error: &anyhow::Error) -> String {
    let add = |said: String, cause: String| match said.as_str() {
        "" => cause,
        before if before.contains(&cause) => said,
        before => format!("{before}: {cause}"),
    };
    error.chain().map(ToString::to_string).fold(String::new(), add)
}

/// Names that come from a file could tell a terminal what to do.
fn printable(message: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.into() };
    message.chars().map(shown).collect()
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Generate(args) => generate::run(args).map(done),
        Command::Export(args) => export::run(&args).map(done),
        Command::Inspect(args) => inspect::run(&args).map(done),
        Command::Verify(args) => {
            let same = verify::run(&args)?;
            Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Doctor(args) => doctor::run(&args),
        Command::Worker(args) => worker::run(args).map(done),
        Command::Bench(args) => bench::run(&args).map(done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let error =
            anyhow::anyhow!("no such file").context("a.json: no such file; download it").context("export");
        assert_eq!(reasons(&error), "export: a.json: no such file; download it");
    }

    #[test]
    fn a_name_cannot_tell_the_terminal_what_to_do() {
        assert_eq!(printable("\u{1b}[2Jé\n\0"), "\\u{1b}[2Jé\n\\u{0}");
    }
}
