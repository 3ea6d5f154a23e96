//! `eka man` and `eka completions`: man pages and shell completions, generated from the command line's definition.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use super::{exit::Exit, output};
use crate::config;

/// Print a shell's completions
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Print eka's man page, or write one for each command
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Directory to write all pages into, such as ~/.local/share/man/man1
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints completions for the visible commands and flags.
///
/// # Errors
/// When they cannot be printed.
pub(super) fn completions(args: &CompletionsArgs, program: &Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut shown(program), "eka", &mut script);
    output::result(|out| out.write_all(&script))
}

/// Prints the program's page, or writes all of them.
///
/// # Errors
/// When they cannot be written.
pub(super) fn man(args: &ManArgs, program: &Command) -> anyhow::Result<()> {
    let mut program = shown(program);
    program.build();
    let Some(dir) = &args.dir else {
        return output::result(|out| page(&program, out));
    };
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for command in std::iter::once(&program).chain(program.get_subcommands()) {
        let path = dir.join(Man::new(command.clone()).get_filename());
        write(&path, command).with_context(|| format!("cannot write {}", path.display()))?;
        output::result(|out| writeln!(out, "{}", path.display()))?;
    }
    Ok(())
}

fn write(path: &Path, command: &Command) -> io::Result<()> {
    let mut content = Vec::new();
    page(command, &mut content)?;
    fs::write(path, content)
}

/// The command line without hidden commands and flags.
fn shown(program: &Command) -> Command {
    let mut shown = Command::new("eka")
        .version(env!("CARGO_PKG_VERSION"))
        .about(program.get_about().cloned().unwrap_or_default())
        .disable_help_subcommand(true);
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        let args = command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned();
        let about = command.get_about().cloned().unwrap_or_default();
        let mut copy = Command::new(command.get_name().to_owned()).about(about).args(args);
        if let Some(long) = command.get_long_about() {
            copy = copy.long_about(long.clone());
        }
        shown = shown.subcommand(copy);
    }
    shown
}

/// Renders the man page of one command.
fn page(command: &Command, out: &mut dyn Write) -> io::Result<()> {
    let man = Man::new(command.clone()).manual("eka").source(format!("eka {}", env!("CARGO_PKG_VERSION")));
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(out)?;
    }
    let mut roff = Roff::new();
    exit_status(&mut roff);
    environment(&mut roff);
    files(&mut roff);
    roff.to_writer(out)
}

fn entry(roff: &mut Roff, name: &str, meaning: &str) {
    roff.control("TP", []).text([bold(name)]).text([roman(meaning)]);
}

fn exit_status(roff: &mut Roff) {
    roff.control("SH", ["EXIT STATUS"]);
    for exit in Exit::ALL {
        entry(roff, &exit.code().to_string(), exit.meaning());
    }
}

fn environment(roff: &mut Roff) {
    roff.control("SH", ["ENVIRONMENT"]);
    for (variable, setting) in config::variables() {
        entry(roff, &variable, &format!("the setting {setting}"));
    }
    for (variable, meaning) in [
        ("EKA_CONFIG", "file with settings, as with --config"),
        ("NO_COLOR", "if set, no colours on a terminal"),
        ("XDG_CACHE_HOME", "directory for exports of source directories, below eka/; default ~/.cache"),
        (
            "XDG_STATE_HOME",
            "directory for the prompt history of eka generate, below eka/; default ~/.local/state",
        ),
    ] {
        entry(roff, variable, meaning);
    }
}

fn files(roff: &mut Roff) {
    roff.control("SH", ["FILES"]);
    for (file, meaning) in [
        ("eka.toml", "settings, in the working directory; --config names another file"),
        ("~/.cache/eka/exports/", "exports of source directories; model.cache_dir changes it"),
        ("~/.local/state/eka/history", "prompts typed into eka generate, unless --no-history"),
        ("eka.json", "manifest of a model directory"),
    ] {
        entry(roff, file, meaning);
    }
}
