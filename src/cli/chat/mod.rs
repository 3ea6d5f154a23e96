//! Interactive chat in the terminal.
//!
//! Ctrl-C is a key while a line is edited, and a signal while an answer is generated, which ends only the answer.

mod command;
mod conversation;
mod readline;

use std::ops::ControlFlow;

use anyhow::ensure;
use tokio_util::sync::CancellationToken;

use self::{
    command::Command,
    conversation::{Conversation, NextPrompt},
    readline::{Input, LineReader},
};
use super::{
    exit::Exit,
    generate_args::Args,
    local_model::{Answer, LocalModel, StopReason, interruptible},
    output::{self, note, problem},
    sampling::SamplingArgs,
    stdout_stream::StdoutStream,
};

/// Reads prompts and answers them until the user leaves.
///
/// # Errors
/// When the model cannot be loaded or the terminal fails. A failed answer is printed, and the chat continues.
pub(super) async fn run(model: &mut LocalModel, args: &Args) -> anyhow::Result<Exit> {
    note(format_args!("loading {}", model.text.card().id));
    tokio::select! {
        loaded = model.ready() => loaded?,
        Ok(()) = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
    }
    let mut session = ChatSession::new(model, args);
    note(session.greeting());
    let history = if args.no_history { None } else { readline::history_file() };
    let mut lines = LineReader::open(history)?;
    let mut wants_to_leave = false;
    loop {
        match lines.next().await? {
            Input::Text(text) => {
                wants_to_leave = false;
                if session.handle(&text).await?.is_break() {
                    return Ok(Exit::Done);
                }
            }
            Input::Quoted(text) => {
                wants_to_leave = false;
                session.answer(&text).await;
            }
            Input::Interrupt if !wants_to_leave => {
                wants_to_leave = true;
                note("press Ctrl-C again or Ctrl-D to leave");
            }
            Input::Interrupt | Input::End => return Ok(Exit::Done),
        }
    }
}

/// State of a chat.
struct ChatSession<'a> {
    model: &'a mut LocalModel,
    sampling: SamplingArgs,
    conversation: Conversation,
    /// Prompts are turns of a conversation, not plain text to continue.
    is_conversation: bool,
    last: Option<Answer>,
}

impl<'a> ChatSession<'a> {
    fn new(model: &'a mut LocalModel, args: &Args) -> Self {
        Self {
            is_conversation: model.text.card().has_chat_template && !args.raw,
            model,
            sampling: args.wanted.clone(),
            conversation: Conversation::new(args.system.clone()),
            last: None,
        }
    }

    fn greeting(&self) -> String {
        let how = if self.is_conversation {
            "a conversation"
        } else {
            "plain text: each prompt is continued on its own"
        };
        format!("{how}; /help lists commands, Ctrl-D leaves")
    }

    /// Executes one line of input.
    async fn handle(&mut self, line: &str) -> anyhow::Result<ControlFlow<()>> {
        match command::read(line) {
            Command::Prompt(prompt) if prompt.trim().is_empty() => {}
            Command::Prompt(prompt) => self.answer(prompt).await,
            Command::Help => show(&command::help())?,
            Command::Clear => note(format_args!("turns removed: {}", self.conversation.clear())),
            Command::System(_) if !self.is_conversation => {
                problem(
                    "a system message needs a chat template, which the model does not have or --raw disables",
                );
            }
            Command::System(None) => {
                show(self.conversation.system.as_deref().unwrap_or("no system message"))?
            }
            Command::System(Some(text)) => {
                self.conversation.system = Some(text.to_owned()).filter(|text| text != "none");
                note("takes effect with the next prompt");
            }
            Command::Show => show(&self.sampling.lines().join("\n"))?,
            Command::Set(name, value) => match self.sampling.set(name, value) {
                Ok(()) => note("takes effect with the next prompt"),
                Err(why) => problem(why),
            },
            Command::Stats => show(&self.stats())?,
            Command::Bye => return Ok(ControlFlow::Break(())),
            Command::Invalid(why) => problem(why),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Answers and adds the turn to the conversation, including an interrupted answer: the model reads what the user saw.
    async fn answer(&mut self, asked: &str) {
        match self.generate(asked).await {
            Err(error) => problem(output::reasons(&error)),
            Ok(answer) => {
                if self.is_conversation && !answer.text.is_empty() {
                    self.conversation.keep(asked.to_owned(), answer.text.clone());
                }
                self.last = Some(answer);
            }
        }
    }

    async fn generate(&mut self, asked: &str) -> anyhow::Result<Answer> {
        let (prompt, max_new) = self.prompt(asked)?;
        let is_context_full = prompt.len() + max_new >= self.model.context;
        let cancel = CancellationToken::new();
        let mut stream = StdoutStream::for_reading();
        let generation =
            self.model.generate((prompt, max_new), &self.sampling, &cancel, |text| stream.write(text));
        let (answer, _) = interruptible(generation, &cancel).await;
        let _ = stream.finish().and_then(|()| stream.write("\n"));
        let answer = answer?;
        match answer.end {
            StopReason::Stop => {}
            StopReason::Length if is_context_full => {
                let context = self.model.context;
                note(format_args!("the context of {context} tokens is full; /clear makes room"));
            }
            StopReason::Length => {
                note(format_args!("stopped after {max_new} tokens; /set max_new_tokens N allows more"))
            }
            StopReason::Cancelled => note("cancelled"),
        }
        Ok(answer)
    }

    /// The prompt's tokens, and the most tokens of the answer.
    fn prompt(&mut self, asked: &str) -> anyhow::Result<(Vec<u32>, usize)> {
        let context = self.model.context;
        let max_new_tokens = self.sampling.max_new_tokens.or(self.model.default_max_new).unwrap_or(context);
        let prompt = if self.is_conversation {
            // Old turns are dropped to leave room for the answer.
            let max = context - max_new_tokens.min(context / 4);
            let NextPrompt { prompt, left_out } = self.conversation.next(&self.model.text, asked, max)?;
            if left_out > 0 && prompt.len() < context {
                self.conversation.leave_out(left_out);
                note(format_args!("turns removed to fit the context of {context} tokens: {left_out}"));
            }
            prompt
        } else {
            self.model.text.encode(asked)?
        };
        let (tokens, room) = (prompt.len(), context.saturating_sub(prompt.len()));
        ensure!(
            room > 0,
            "the prompt has {tokens} tokens and fills the context length of {context}; shorten the prompt"
        );
        Ok((prompt, max_new_tokens.min(room)))
    }

    fn stats(&self) -> String {
        let Some(answer) = &self.last else { return "no answer yet".into() };
        let used = answer.usage.prompt_tokens + answer.usage.completion_tokens;
        let context = self.model.context;
        let turns = self.conversation.len();
        format!("{}\ncontext: {used} of {context} tokens, turns kept: {turns}", answer.summary())
    }
}

fn show(text: &str) -> anyhow::Result<()> {
    output::result(|out| writeln!(out, "{}", output::printable(text)))
}
