//! `eka generate`: one answer, streamed to the terminal, or a conversation with whoever sits there.

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
    worker::faults::Plan,
};

/// Generate one answer and stream it to the terminal, or talk to the model
///
/// Without a prompt, on a terminal, it asks for prompts and keeps the conversation; /help there says how. Without a prompt
/// elsewhere it reads one from standard input.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The prompt; `-` reads it from standard input
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,

    /// Continue prompts as they stand, without the model's chat template
    #[arg(long)]
    pub(super) raw: bool,

    /// A system message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(super) system: Option<String>,

    #[command(flatten)]
    pub(super) wanted: SamplingArgs,

    /// Neither read nor keep the prompts typed earlier
    #[arg(long)]
    pub(super) no_history: bool,

    #[command(flatten)]
    pub(super) output: OutputFlags,

    #[command(flatten)]
    config: ConfigArgs,

    /// Faults that the worker commits, for tests of what happens then; see `eka::worker::faults`
    #[arg(long, value_name = "SPEC", hide = true)]
    faults: Option<Plan>,
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
    let mut speaker = LocalModel::start(config, args.faults.as_ref()).await?;
    let answered = match prompt {
        Some(prompt) => once(&mut speaker, args, &prompt).await,
        None => chat::talk(&mut speaker, args).await,
    };
    speaker.stop().await;
    answered
}

impl Args {
    /// The prompt, or none for someone who will type them.
    fn prompt(&self) -> anyhow::Result<Option<String>> {
        match self.prompt.as_deref() {
            Some("-") => from_stdin().map(Some),
            Some(prompt) => Ok(Some(prompt.to_owned())),
            None if output::is_on_a_terminal() && !self.output.json => Ok(None),
            None => {
                ensure!(
                    !output::stdin_is_a_terminal(),
                    "no prompt; give one, or leave --json and redirections out to be asked"
                );
                let prompt = from_stdin()?;
                ensure!(!prompt.is_empty(), "no prompt, and nothing on standard input; give one of them");
                Ok(Some(prompt))
            }
        }
    }

    fn encode(&self, text: &Text, prompt: &str) -> anyhow::Result<Vec<u32>> {
        if self.raw || !text.card().has_chat_template {
            ensure!(self.system.is_none(), "the model has no chat template that --system could go into");
            return Ok(text.encode(prompt)?);
        }
        let mut messages: Vec<_> = self.system.iter().map(|system| Message::new("system", system)).collect();
        messages.push(Message::new("user", prompt));
        Ok(text.encode_chat(&messages.into())?)
    }

    /// Tokens that the answer may have after a prompt of so many.
    fn max_new(&self, speaker: &LocalModel, prompt: usize) -> anyhow::Result<usize> {
        let context = speaker.context;
        let room = context.saturating_sub(prompt);
        ensure!(room > 0, "the prompt of {prompt} tokens leaves no room in the context length of {context}");
        let asked = self.wanted.max_new_tokens.unwrap_or_else(|| room.min(speaker.default_max_new));
        ensure!(
            asked <= room,
            "--max-new-tokens is {asked}: after a prompt of {prompt} there is room for {room} of {context}"
        );
        Ok(asked)
    }
}

fn from_stdin() -> anyhow::Result<String> {
    let mut prompt = String::new();
    io::stdin().read_to_string(&mut prompt).context("the prompt cannot be read from standard input")?;
    Ok(prompt)
}

/// One answer, streamed or as a document.
async fn once(speaker: &mut LocalModel, args: &Args, prompt: &str) -> anyhow::Result<Exit> {
    let prompt = args.encode(&speaker.text, prompt).with_exit(Exit::Usage)?;
    let max_new = args.max_new(speaker, prompt.len()).with_exit(Exit::Usage)?;
    let cancel = CancellationToken::new();
    let mut stream = Stream::new(!args.output.json);
    let saying = speaker.say((prompt, max_new), &args.wanted, &cancel, |text| stream.write(text));
    let (answer, was_interrupted) = interruptible(saying, &cancel).await;
    let answer = match answer {
        Err(_) if stream.is_closed => return Ok(Exit::Done),
        answer => answer?,
    };
    if args.output.json {
        output::document(&answer.document(&speaker.text.card().id))?;
    } else {
        stream.write("\n").or_else(|e| if stream.is_closed { Ok(()) } else { Err(anyhow!(e)) })?;
        output::note(answer.summary());
    }
    Ok(if was_interrupted { Exit::Interrupted } else { Exit::Done })
}

/// Stdout, as text comes.
pub(super) struct Stream {
    is_wanted: bool,
    is_terminal: bool,
    /// Whoever read it has left.
    is_closed: bool,
}

impl Stream {
    pub(super) fn new(is_wanted: bool) -> Self {
        Self { is_wanted, is_terminal: output::stdout_is_a_terminal(), is_closed: false }
    }

    /// Writes at once; to a terminal, nothing that it would obey.
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
