//! A conversation with whoever sits at the terminal.
//!
//! Ctrl-C has two meanings, and the terminal keeps them apart: while a line is typed it is a key like others, while an
//! answer is written it is a signal, and only the answer ends by it.

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
    generate::{Args, Stream},
    local_model::{Answer, LocalModel, StopReason, interruptible},
    output::{self, note, problem},
    sampling::SamplingArgs,
};

/// Asks for prompts and answers them until told to leave.
///
/// # Errors
/// When the model cannot be loaded or the terminal fails. An answer that fails is said, and the conversation goes on.
pub(super) async fn talk(speaker: &mut LocalModel, args: &Args) -> anyhow::Result<Exit> {
    note(format_args!("loading {}", speaker.text.card().id));
    tokio::select! {
        loaded = speaker.ready() => loaded?,
        Ok(()) = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
    }
    let mut session = ChatSession::new(speaker, args);
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
                note("Ctrl-C once more, or Ctrl-D, to leave");
            }
            Input::Interrupt | Input::End => return Ok(Exit::Done),
        }
    }
}

/// Both sides of the conversation.
struct ChatSession<'a> {
    speaker: &'a mut LocalModel,
    wanted: SamplingArgs,
    conversation: Conversation,
    /// Prompts are turns of a conversation, not texts to continue.
    is_conversation: bool,
    last: Option<Answer>,
}

impl<'a> ChatSession<'a> {
    fn new(speaker: &'a mut LocalModel, args: &Args) -> Self {
        Self {
            is_conversation: speaker.text.card().has_chat_template && !args.raw,
            speaker,
            wanted: args.wanted.clone(),
            conversation: Conversation::new(args.system.clone()),
            last: None,
        }
    }

    fn greeting(&self) -> String {
        let how = if self.is_conversation {
            "a conversation"
        } else {
            "each prompt by itself, continued as it stands"
        };
        format!("{how}; /help lists what can be done, Ctrl-D leaves")
    }

    /// Does what a line says.
    async fn handle(&mut self, line: &str) -> anyhow::Result<ControlFlow<()>> {
        match command::read(line) {
            Command::Say(prompt) if prompt.trim().is_empty() => {}
            Command::Say(prompt) => self.answer(prompt).await,
            Command::Help => show(&command::help())?,
            Command::Clear => note(format_args!("turns forgotten: {}", self.conversation.clear())),
            Command::System(_) if !self.is_conversation => {
                problem(
                    "the model has no chat template that a system message could go into, or --raw leaves it out",
                );
            }
            Command::System(None) => {
                show(self.conversation.system.as_deref().unwrap_or("no system message"))?
            }
            Command::System(Some(text)) => {
                self.conversation.system = Some(text.to_owned()).filter(|text| text != "none");
                note("from the next prompt on");
            }
            Command::Show => show(&self.wanted.lines().join("\n"))?,
            Command::Set(name, value) => match self.wanted.set(name, value) {
                Ok(()) => note("from the next prompt on"),
                Err(why) => problem(why),
            },
            Command::Stats => show(&self.stats())?,
            Command::Bye => return Ok(ControlFlow::Break(())),
            Command::Unknown(why) => problem(why),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Answers, and keeps what was said; what stands on the terminal is what the model reads next time, also of an answer
    /// that was cut short.
    async fn answer(&mut self, asked: &str) {
        match self.say(asked).await {
            Err(error) => problem(output::reasons(&error)),
            Ok(answer) => {
                if self.is_conversation && !answer.text.is_empty() {
                    self.conversation.keep(asked.to_owned(), answer.text.clone());
                }
                self.last = Some(answer);
            }
        }
    }

    async fn say(&mut self, asked: &str) -> anyhow::Result<Answer> {
        let (prompt, max_new) = self.prompt(asked)?;
        let cancel = CancellationToken::new();
        let mut stream = Stream::new(true);
        let saying = self.speaker.say((prompt, max_new), &self.wanted, &cancel, |text| stream.write(text));
        let (answer, _) = interruptible(saying, &cancel).await;
        let _ = stream.write("\n");
        let answer = answer?;
        match answer.end {
            StopReason::Stop => {}
            StopReason::Length => {
                note(format_args!("cut after {max_new} tokens; /set max_new_tokens N for more"))
            }
            StopReason::Cancelled => note("cancelled"),
        }
        Ok(answer)
    }

    /// Token ids to go on from, and how many may follow.
    fn prompt(&mut self, asked: &str) -> anyhow::Result<(Vec<u32>, usize)> {
        let context = self.speaker.context;
        let wanted = self.wanted.max_new_tokens.unwrap_or(self.speaker.default_max_new);
        let prompt = if self.is_conversation {
            // Rather fewer turns than an answer that is cut at once.
            let most = context - wanted.min(context / 4);
            let NextPrompt { prompt, left_out } = self.conversation.next(&self.speaker.text, asked, most)?;
            if left_out > 0 {
                note(format_args!(
                    "turns that no longer fit the context of {context} tokens, and are forgotten: {left_out}"
                ));
            }
            prompt
        } else {
            self.speaker.text.encode(asked)?
        };
        let (tokens, room) = (prompt.len(), context.saturating_sub(prompt.len()));
        ensure!(room > 0, "the prompt of {tokens} tokens leaves no room in the context length of {context}");
        Ok((prompt, wanted.min(room)))
    }

    fn stats(&self) -> String {
        let Some(answer) = &self.last else { return "no answer yet".into() };
        let used = answer.usage.prompt_tokens + answer.usage.completion_tokens;
        let context = self.speaker.context;
        let turns = self.conversation.len();
        format!("{}\n{used} of {context} tokens of context, turns kept: {turns}", answer.summary())
    }
}

fn show(text: &str) -> anyhow::Result<()> {
    output::result(|out| writeln!(out, "{}", output::printable(text)))
}
