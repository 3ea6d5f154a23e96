//! `eka generate`: one answer, streamed to the terminal, or an interactive chat.

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};

use anyhow::{Context, anyhow, ensure};
use tokio_util::sync::CancellationToken;

use super::{
    chat,
    exit::{Exit, WithExit},
    local_model::{LocalModel, interruptible},
    logging,
    output::{self, OutputFlags},
    sampling::SamplingArgs,
};
use crate::{
    config::{self, Config, ConfigArgs},
    text::{Message, Text},
    worker::faults::FaultPlan,
};

/// Generate one answer and stream it to the terminal, or start a chat
///
/// Without a prompt on a terminal it starts an interactive chat, where /help lists the commands. Without a terminal it reads
/// the prompt from standard input.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The prompt; `-` reads it from standard input
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,

    /// Continue the prompt as plain text, without the model's chat template
    #[arg(long)]
    pub(super) raw: bool,

    /// System message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(super) system: Option<String>,

    #[command(flatten)]
    pub(super) wanted: SamplingArgs,

    /// Do not read or save the history of typed prompts
    #[arg(long)]
    pub(super) no_history: bool,

    #[command(flatten)]
    pub(super) output: OutputFlags,

    #[command(flatten)]
    config: ConfigArgs,

    /// Faults for the worker to inject, for tests; see `eka::worker::faults`
    #[arg(long, value_name = "SPEC", hide = true)]
    faults: Option<FaultPlan>,
}

/// Generates and streams.
///
/// # Errors
/// When settings, model or prompt cannot be used, or the generation fails.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = config::Settings::load(&args.config)?;
    if args.config.print_config {
        return super::serve::print_config(&settings, args.output.json).map(|()| Exit::Done.into());
    }
    let prompt = args.prompt().with_exit(Exit::Usage)?;
    logging::start_quiet()?;
    super::worker::check_cache(&settings.config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(generate(args, &settings.config, prompt))?;
    Ok(exit.into())
}

async fn generate(args: &Args, config: &Config, prompt: Option<String>) -> anyhow::Result<Exit> {
    let mut model = LocalModel::start(config, args.faults.as_ref()).await?;
    let answered = match prompt {
        Some(prompt) => once(&mut model, args, &prompt).await,
        None => chat::run(&mut model, args).await,
    };
    model.stop().await;
    answered
}

impl Args {
    /// The prompt; `None` starts an interactive chat.
    fn prompt(&self) -> anyhow::Result<Option<String>> {
        match self.prompt.as_deref() {
            Some("-") => from_stdin().map(Some),
            Some(prompt) => Ok(Some(prompt.to_owned())),
            None if output::is_on_a_terminal() && !self.output.json => Ok(None),
            None => {
                ensure!(
                    !output::stdin_is_a_terminal(),
                    "no prompt; pass one, or omit --json and redirections for an interactive chat"
                );
                let prompt = from_stdin()?;
                ensure!(!prompt.is_empty(), "no prompt, and standard input is empty; pass a prompt");
                Ok(Some(prompt))
            }
        }
    }

    fn encode(&self, text: &Text, prompt: &str) -> anyhow::Result<Vec<u32>> {
        if self.raw || !text.card().has_chat_template {
            ensure!(self.system.is_none(), "--system needs a chat template, which the model does not have");
            return Ok(text.encode(prompt)?);
        }
        let mut messages: Vec<_> = self.system.iter().map(|system| Message::new("system", system)).collect();
        messages.push(Message::new("user", prompt));
        Ok(text.encode_chat(&messages.into())?)
    }

    /// Most tokens of the answer after a prompt of `prompt` tokens.
    fn max_new(&self, model: &LocalModel, prompt: usize) -> anyhow::Result<usize> {
        let context = model.context;
        let room = context.saturating_sub(prompt);
        ensure!(
            room > 0,
            "the prompt has {prompt} tokens and fills the context length of {context}; shorten the prompt"
        );
        let asked = self.wanted.max_new_tokens.unwrap_or_else(|| room.min(model.default_max_new));
        ensure!(
            asked <= room,
            "--max-new-tokens is {asked}; after a prompt of {prompt} tokens only {room} of {context} are left"
        );
        Ok(asked)
    }
}

fn from_stdin() -> anyhow::Result<String> {
    let mut prompt = String::new();
    io::stdin().read_to_string(&mut prompt).context("cannot read the prompt from standard input")?;
    Ok(prompt)
}

/// Generates one answer, streamed or as a JSON document.
async fn once(model: &mut LocalModel, args: &Args, prompt: &str) -> anyhow::Result<Exit> {
    let prompt = args.encode(&model.text, prompt).with_exit(Exit::Usage)?;
    let max_new = args.max_new(model, prompt.len()).with_exit(Exit::Usage)?;
    let cancel = CancellationToken::new();
    let mut stream = Stream::new(!args.output.json);
    let generation = model.generate((prompt, max_new), &args.wanted, &cancel, |text| stream.write(text));
    let (answer, was_interrupted) = interruptible(generation, &cancel).await;
    let answer = match answer {
        Err(_) if stream.is_closed => return Ok(Exit::Done),
        answer => answer?,
    };
    if args.output.json {
        output::document(&answer.document(&model.text.card().id))?;
    } else {
        stream.write("\n").or_else(|e| if stream.is_closed { Ok(()) } else { Err(anyhow!(e)) })?;
        output::note(answer.summary());
    }
    Ok(if was_interrupted { Exit::Interrupted } else { Exit::Done })
}

/// Streams text to stdout.
pub(super) struct Stream {
    is_wanted: bool,
    is_terminal: bool,
    /// The pipe is closed.
    is_closed: bool,
}

impl Stream {
    pub(super) fn new(is_wanted: bool) -> Self {
        Self { is_wanted, is_terminal: output::stdout_is_a_terminal(), is_closed: false }
    }

    /// Writes and flushes. Control characters are escaped on a terminal.
    pub(super) fn write(&mut self, text: &str) -> io::Result<()> {
        if !self.is_wanted {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let shown = if self.is_terminal { output::printable(text) } else { text.to_owned() };
        let written = out.write_all(shown.as_bytes()).and_then(|()| out.flush());
        self.is_closed |= matches!(&written, Err(e) if e.kind() == io::ErrorKind::BrokenPipe);
        written
    }
}
