//! Flags of `eka generate`, and the prompt that they describe.

use std::io::{self, Read};

use anyhow::{Context, ensure};

use super::{
    local_model::LocalModel,
    output::{self, OutputFlags},
    sampling::SamplingArgs,
};
use crate::{
    config::ConfigArgs,
    text::{Message, Text},
    worker::faults::FaultPlan,
};

/// Chat with a model: a model directory, a checkpoint or a GGUF file
///
/// The same as `eka generate --model MODEL`.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// The model: a directory that `eka export` wrote, a checkpoint in Hugging Face's layout, or a GGUF file
    #[arg(value_name = "MODEL")]
    served: String,

    #[command(flatten)]
    pub(super) generate: Args,
}

impl RunArgs {
    /// The arguments of `eka generate` with this model.
    pub(super) fn with_model(self) -> Args {
        let mut args = self.generate;
        args.config.flags.set("model", self.served);
        args
    }
}

/// Generate one answer and stream it to the terminal, or start a chat
///
/// Without a prompt on a terminal it starts an interactive chat, where /help lists the commands. Without a terminal it reads
/// the prompt from standard input.
#[derive(Debug, clap::Args)]
#[command(mut_args(hide_unused))]
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
    pub(super) config: ConfigArgs,

    /// Faults for the worker to inject, for tests; see `eka::worker::faults`
    #[arg(long, value_name = "SPEC", hide = true)]
    pub(super) faults: Option<FaultPlan>,
}

/// Hides flags of settings that only a server uses.
fn hide_unused(flag: clap::Arg) -> clap::Arg {
    const OF_SERVERS: [&str; 7] = ["bind", "port", "listen", "queue", "pooling", "join", "models"];
    let is_of_servers = OF_SERVERS.contains(&flag.get_id().as_str());
    if is_of_servers { flag.hide(true) } else { flag }
}

impl Args {
    /// The prompt; `None` starts an interactive chat.
    pub(super) fn prompt(&self) -> anyhow::Result<Option<String>> {
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

    pub(super) fn encode(&self, text: &Text, prompt: &str) -> anyhow::Result<Vec<u32>> {
        if self.raw || !text.card().has_chat_template {
            ensure!(self.system.is_none(), "--system needs a chat template, which the model does not have");
            return Ok(text.encode(prompt)?);
        }
        let mut messages: Vec<_> = self.system.iter().map(|system| Message::new("system", system)).collect();
        messages.push(Message::new("user", prompt));
        Ok(text.encode_chat(&messages.into())?)
    }

    /// Maximum number of tokens of the answer after a prompt of `prompt` tokens.
    pub(super) fn max_new(&self, model: &LocalModel, prompt: usize) -> anyhow::Result<usize> {
        let context = model.context;
        let room = context.saturating_sub(prompt);
        ensure!(
            room > 0,
            "the prompt has {prompt} tokens and fills the context length of {context}; shorten the prompt"
        );
        let asked =
            self.wanted.max_new_tokens.unwrap_or_else(|| room.min(model.default_max_new.unwrap_or(room)));
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
