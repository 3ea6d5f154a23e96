//! The command line: one file per subcommand, and what they share.
//!
//! Results go to stdout, and nothing else does. Errors become one line on stderr with all their causes; logs go to stderr
//! too.

mod backend;
mod bench;
mod bench_adapters;
mod calibration_text;
mod chat;
mod cluster_options;
mod doctor;
mod engine_args;
mod exit;
mod export;
mod export_adapter;
mod export_report;
mod fd_limit;
mod float_export;
mod generate;
mod generate_args;
mod health;
mod inspect;
mod line_breaks;
mod listener;
mod load;
mod local_model;
mod logging;
mod logits;
mod man;
mod models;
mod output;
mod private_dir;
mod progress;
mod queue;
mod ready_file;
mod reload;
mod resolve_model;
mod sampling;
mod sandbox;
mod serve;
mod served_models;
mod settings;
mod shutdown;
mod smoke;
mod source_adapters;
mod spawn_server;
mod stdout_stream;
#[cfg(unix)]
mod systemd;
mod verify;
mod worker;
mod worker_configs;

use std::{env, process::ExitCode, time::Duration};

use clap::{CommandFactory, FromArgMatches, Parser};

use exit::Exit;
use output::OutputFlags;

use crate::{device, log_queue};

/// Longest wait for the last log lines to be written, in case stderr is not read.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Serves one fine-tuned language model, one answer at a time
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = exit::epilogue())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Serve(serve::Args),
    /// Take HTTP requests for a cluster, and let nodes answer them; needs --join
    Gateway(serve::Args),
    /// Answer requests of the gateways of a cluster; needs --join
    Node(serve::Args),
    Generate(generate_args::Args),
    Run(generate_args::RunArgs),
    Export(export::Args),
    ExportAdapter(export_adapter::Args),
    #[command(visible_alias = "show")]
    Inspect(inspect::Args),
    List(models::ListArgs),
    Rm(models::RmArgs),
    Ps(models::PsArgs),
    Stop(models::StopArgs),
    Verify(verify::Args),
    Doctor(doctor::Args),
    Bench(Box<bench::Args>),
    Smoke(smoke::Args),
    Health(health::Args),
    /// Print the reference of all settings as Markdown
    Settings,
    Completions(man::CompletionsArgs),
    Man(man::ManArgs),
    /// Run a model for the parent process at the other end of stdin and stdout
    #[command(hide = true)]
    Worker(worker::Args),
    /// Compile schemas and render chat templates for the parent process at the other end of stdin and stdout
    #[command(hide = true)]
    Sandbox,
}

/// Runs the command line and returns its exit code; `eka help` lists the codes. Errors are printed on stderr.
#[must_use]
pub fn run() -> ExitCode {
    device::refuse_telemetry();
    let parsed = command_line().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let command = match parsed {
        Ok(cli) => cli.command,
        Err(refused) => return refuse(&refused),
    };
    let output = command.output();
    output::apply(output);
    let code = match dispatch(command) {
        Ok(code) => code,
        Err(error) => {
            let exit = Exit::of(&error);
            output::error(&error, exit, output.json);
            exit.into()
        }
    };
    log_queue::flush(LAST_LINES);
    code
}

/// The command line as it is parsed. Each command's usage is fixed: in an error, clap would add the flags that an environment
/// variable sets.
fn command_line() -> clap::Command {
    let mut program = Cli::command();
    program.build();
    let names: Vec<String> = program.get_subcommands().map(|command| command.get_name().into()).collect();
    names.into_iter().fold(program, |program, name| {
        program.mut_subcommand(name, |command| {
            let usage = command.clone().render_usage().to_string();
            command.override_usage(usage.trim_start_matches("Usage: ").to_owned())
        })
    })
}

/// Prints clap's error, or the help that was requested.
fn refuse(refused: &clap::Error) -> ExitCode {
    let is_json = env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--json");
    if !refused.use_stderr() {
        let _ = refused.print();
        return Exit::Done.into();
    }
    if is_json {
        let message = refused.to_string();
        output::error_document(message.trim_start_matches("error: ").trim_end(), Exit::Usage);
    } else {
        let _ = refused.print();
    }
    Exit::Usage.into()
}

impl Command {
    /// The output flags of the subcommand.
    const fn output(&self) -> OutputFlags {
        match self {
            Self::Serve(args) | Self::Gateway(args) | Self::Node(args) => args.output(),
            Self::Generate(args) => args.output,
            Self::Run(args) => args.generate.output,
            Self::Export(args) => args.output,
            Self::ExportAdapter(args) => args.output,
            Self::Inspect(args) => args.output,
            Self::List(args) => args.output,
            Self::Rm(args) => args.output,
            Self::Ps(args) => args.output(),
            Self::Stop(args) => args.output(),
            Self::Verify(args) => args.output,
            Self::Doctor(args) => args.output,
            Self::Bench(args) => args.output,
            Self::Smoke(args) => args.output,
            Self::Health(args) => args.output,
            Self::Settings | Self::Completions(_) | Self::Man(_) | Self::Worker(_) | Self::Sandbox => {
                OutputFlags { json: false, quiet: false }
            }
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let done = |()| Exit::Done.into();
    match command {
        Command::Serve(args) => serve::run(&args, backend::Command::Serve),
        Command::Gateway(args) => serve::run(&args, backend::Command::Gateway),
        Command::Node(args) => serve::run(&args, backend::Command::Node),
        Command::Generate(args) => generate::run(&args),
        Command::Run(args) => generate::run(&args.with_model()),
        Command::Export(args) => export::run(&args).map(done),
        Command::ExportAdapter(args) => export_adapter::run(&args).map(done),
        Command::Inspect(args) => inspect::run(&args).map(done),
        Command::List(args) => models::list(&args).map(done),
        Command::Rm(args) => models::rm(&args).map(done),
        Command::Ps(args) => models::ps(&args).map(done),
        Command::Stop(args) => models::stop(&args).map(done),
        Command::Verify(args) => {
            let same = verify::run(&args)?;
            Ok(if same { Exit::Done } else { Exit::Failed }.into())
        }
        Command::Doctor(args) => doctor::run(&args).map(ExitCode::from),
        Command::Bench(args) => bench::run(&args).map(done),
        Command::Smoke(args) => smoke::run(&args).map(ExitCode::from),
        Command::Health(args) => health::run(&args).map(done),
        Command::Settings => settings::run().map(done),
        Command::Completions(args) => man::completions(&args, &Cli::command()).map(done),
        Command::Man(args) => man::man(&args, &Cli::command()).map(done),
        Command::Worker(args) => worker::run(args),
        Command::Sandbox => sandbox::run().map(done),
    }
}
