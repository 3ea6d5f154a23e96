//! A model's reasoning before its answer, told apart from the answer while it is generated.
//!
//! The chat template shows the model earlier reasoning in the form that it was trained on, so the form is recognised by the
//! template's text. In most, the reasoning is between two marks at the beginning of the answer. Some templates end the prompt
//! with the first mark, and then the answer begins within the reasoning. gpt-oss writes messages of several channels.
//!
//! Text that could be the beginning of a mark is held back, so the result does not depend on the boundaries of tokens. White
//! space around the reasoning is dropped.

use std::fmt;

/// How a model writes its reasoning.
pub struct ReasoningFormat {
    name: &'static str,
    is_of: fn(template: &str) -> bool,
    /// The mark before the reasoning; empty for channels.
    open: &'static str,
    /// The mark after it.
    close: &'static str,
    /// A word after the first mark that is not part of the reasoning.
    label: &'static str,
    /// Marks around the answer, if it has any.
    answer: (&'static str, &'static str),
    /// The text that ends the reasoning where it must end.
    end: &'static str,
}

const BASE: ReasoningFormat = ReasoningFormat {
    name: "think",
    is_of: |template| template.contains("<think>") || template.contains("</think>"),
    open: "<think>",
    close: "</think>",
    label: "",
    answer: ("", ""),
    end: "\n</think>\n\n",
};

/// All formats, the more particular first.
const FORMATS: [&ReasoningFormat; 11] = [
    &ReasoningFormat {
        name: "harmony",
        is_of: |template| template.contains("<|channel|>") && template.contains("<|message|>"),
        open: "",
        close: "",
        end: "<|end|><|start|>assistant<|channel|>final<|message|>",
        ..BASE
    },
    &ReasoningFormat {
        name: "gemma4",
        is_of: |template| template.contains("<|channel>") && template.contains("<channel|>"),
        open: "<|channel>",
        close: "<channel|>",
        label: "thought\n",
        end: "\n<channel|>",
        ..BASE
    },
    &ReasoningFormat {
        name: "mistral",
        is_of: |template| template.contains("[THINK]"),
        open: "[THINK]",
        close: "[/THINK]",
        end: "[/THINK]",
        ..BASE
    },
    &ReasoningFormat {
        name: "granite3.2",
        is_of: |template| template.contains("Here is my thought process:"),
        open: "Here is my thought process:",
        close: "Here is my response:",
        end: "\n\nHere is my response: ",
        ..BASE
    },
    &ReasoningFormat {
        name: "granite3.3",
        is_of: |template| template.contains("<think>") && template.contains("<response>"),
        answer: ("<response>", "</response>"),
        end: "</think><response>",
        ..BASE
    },
    &ReasoningFormat {
        name: "hunyuan",
        is_of: |template| template.contains("<think>") && template.contains("<answer>"),
        answer: ("<answer>", "</answer>"),
        end: "\n</think>\n<answer>\n",
        ..BASE
    },
    &ReasoningFormat {
        name: "command_a",
        is_of: |template| template.contains("<|START_THINKING|>"),
        open: "<|START_THINKING|>",
        close: "<|END_THINKING|>",
        answer: ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        end: "<|END_THINKING|><|START_RESPONSE|>",
        ..BASE
    },
    &ReasoningFormat {
        name: "seed_oss",
        is_of: |template| template.contains("<seed:think>"),
        open: "<seed:think>",
        close: "</seed:think>",
        end: "</seed:think>",
        ..BASE
    },
    &ReasoningFormat {
        name: "kimi",
        is_of: |template| template.contains("◁think▷"),
        open: "◁think▷",
        close: "◁/think▷",
        end: "◁/think▷",
        ..BASE
    },
    &ReasoningFormat {
        name: "apertus",
        is_of: |template| template.contains("<|inner_prefix|>"),
        open: "<|inner_prefix|>",
        close: "<|inner_suffix|>",
        end: "<|inner_suffix|>",
        ..BASE
    },
    &BASE,
];

impl ReasoningFormat {
    /// The format of a model with this chat template; `None` if the template does not mention reasoning.
    #[must_use]
    pub fn of(template: &str) -> Option<&'static Self> {
        FORMATS.into_iter().find(|format| (format.is_of)(template))
    }

    /// Whether an answer after this prompt begins within the reasoning.
    #[must_use]
    pub fn is_open(&self, prompt: &str) -> bool {
        !self.has_channels() && prompt.trim_end().ends_with(self.open)
    }

    /// The text that ends the reasoning where it must end.
    #[must_use]
    pub const fn end(&self) -> &'static str {
        self.end
    }

    /// The text between the prompt and an answer without reasoning.
    #[must_use]
    pub const fn answer_start(&self) -> &'static str {
        if self.has_channels() { "<|channel|>final<|message|>" } else { "" }
    }

    /// The mark before the reasoning, and the one after it; `None` for channels.
    #[must_use]
    pub fn marks(&self) -> Option<(&'static str, &'static str)> {
        (!self.has_channels()).then_some((self.open, self.close))
    }

    /// Texts that may be special tokens of the model, which have no text otherwise.
    pub(super) fn special_texts(&'static self) -> impl Iterator<Item = &'static str> {
        let channels: &[&str] = if self.has_channels() { &CHANNEL_TOKENS } else { &[] };
        let marks = [self.open, self.close, self.answer.0, self.answer.1];
        marks.into_iter().filter(|text| !text.is_empty()).chain(channels.iter().copied())
    }

    const fn has_channels(&self) -> bool {
        self.open.is_empty()
    }
}

impl fmt::Debug for ReasoningFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReasoningFormat").field(&self.name).finish()
    }
}

impl PartialEq for ReasoningFormat {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// Reasoning and answer of a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) reasoning: String,
    pub(super) answer: String,
}

/// Separates reasoning from the answer.
#[derive(Debug)]
pub(super) struct ReasoningParser {
    format: &'static ReasoningFormat,
    state: State,
    /// Text that is not parsed yet.
    rest: String,
    /// The part of a call's header that the prompt has, which is not passed on.
    said: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Only white space so far.
    Start,
    /// After the first mark, before text.
    Opened,
    Reasoning,
    /// After the second mark, before text.
    Closed,
    Answer,
    /// Before a message of a channel.
    Header,
    /// Within a message.
    Message(Channel),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Analysis,
    Final,
    /// A call of a function, which the parser of tool calls reads.
    Call,
}

/// Special tokens of channels.
const CHANNEL_TOKENS: [&str; 7] =
    ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>"];

const MESSAGE: &str = "<|message|>";

/// Ends of a message.
const MESSAGE_ENDS: [&str; 4] = ["<|end|>", "<|call|>", "<|return|>", "<|start|>"];

/// Before the name of a function in the header of a call.
const RECIPIENT: &str = "to=functions.";

/// Longest header of a message, in bytes.
const MAX_HEADER: usize = 512;

impl ReasoningParser {
    /// `is_open` is whether the answer begins within the reasoning, and `call` the end of the prompt if it is the beginning
    /// of a call.
    pub(super) fn new(format: &'static ReasoningFormat, is_open: bool, call: &'static str) -> Self {
        let state = match (format.has_channels(), is_open) {
            (true, _) => State::Header,
            (false, true) => State::Opened,
            (false, false) if call.is_empty() => State::Start,
            (false, false) => State::Answer,
        };
        let said = if format.has_channels() && !call.is_empty() { RECIPIENT } else { "" };
        let rest = if format.has_channels() { call.to_owned() } else { String::new() };
        Self { format, state, rest, said }
    }

    /// The text that ends the reasoning.
    pub(super) const fn end(&self) -> &'static str {
        self.format.end
    }

    /// Whether the next text belongs to the reasoning.
    pub(super) const fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Opened | State::Reasoning | State::Message(Channel::Analysis))
    }

    pub(super) fn push(&mut self, text: &str) -> Split {
        self.rest.push_str(text);
        let mut split = Split::default();
        while self.step(&mut split) {}
        split
    }

    /// The text held back.
    pub(super) fn finish(&mut self) -> Split {
        let rest = std::mem::take(&mut self.rest);
        match self.state {
            State::Opened | State::Reasoning | State::Message(Channel::Analysis) => {
                Split { reasoning: rest.trim_end().to_owned(), ..Split::default() }
            }
            State::Closed => Split::default(),
            // The beginning of a header does not belong to the text.
            State::Header if begins_header(rest.trim_start()) => Split::default(),
            State::Start | State::Answer | State::Header | State::Message(_) => {
                Split { answer: rest, ..Split::default() }
            }
        }
    }

    /// Parses the next part; returns whether it may be possible to continue.
    fn step(&mut self, split: &mut Split) -> bool {
        match self.state {
            State::Start => self.start(),
            State::Opened => self.opened(),
            State::Reasoning => self.reasoning(split),
            State::Closed => self.closed(),
            State::Answer => self.answer(split),
            State::Header => self.header(split),
            State::Message(channel) => self.message(channel, split),
        }
    }

    /// Whether the text begins with `mark`, which is removed with the white space before it. `None` if more text decides.
    fn take(&mut self, mark: &str) -> Option<bool> {
        let rest = self.rest.trim_start();
        if rest.starts_with(mark) && !mark.is_empty() {
            let length = self.rest.len() - rest.len() + mark.len();
            self.rest.drain(..length);
            return Some(true);
        }
        if mark.starts_with(rest) { None } else { Some(false) }
    }

    fn start(&mut self) -> bool {
        match self.take(self.format.open) {
            None => false,
            Some(is_open) => {
                self.state = if is_open { State::Opened } else { State::Answer };
                true
            }
        }
    }

    fn opened(&mut self) -> bool {
        // Some models repeat the mark that the prompt ends with.
        for mark in [self.format.open, self.format.label] {
            if self.take(mark).is_none() {
                return false;
            }
        }
        let length = self.rest.len() - self.rest.trim_start().len();
        self.rest.drain(..length);
        if self.rest.is_empty() {
            return false;
        }
        self.state = State::Reasoning;
        true
    }

    fn reasoning(&mut self, split: &mut Split) -> bool {
        let is_over = self.pass(&[self.format.close], true, &mut split.reasoning);
        if is_over {
            self.state = State::Closed;
        }
        is_over
    }

    fn closed(&mut self) -> bool {
        let (before, _) = self.format.answer;
        if self.take(before).is_none() {
            return false;
        }
        let length = self.rest.len() - self.rest.trim_start().len();
        self.rest.drain(..length);
        if self.rest.is_empty() {
            return false;
        }
        self.state = State::Answer;
        true
    }

    fn answer(&mut self, split: &mut Split) -> bool {
        let (_, after) = self.format.answer;
        if after.is_empty() {
            split.answer.push_str(&std::mem::take(&mut self.rest));
            return false;
        }
        self.pass(&[after], false, &mut split.answer)
    }

    /// Moves text to `out` up to one of `marks`, which is removed, or up to what may be the beginning of one. Returns whether
    /// there was one. With `trim`, white space before a mark is dropped.
    fn pass(&mut self, marks: &[&str], trim: bool, out: &mut String) -> bool {
        let found = marks.iter().filter_map(|mark| Some((self.rest.find(mark)?, mark.len()))).min();
        let end = found.map_or_else(|| self.rest.len() - beginning(&self.rest, marks), |(at, _)| at);
        let shown = if trim { self.rest[..end].trim_end().len() } else { end };
        out.push_str(&self.rest[..shown]);
        let passed = found.map_or(shown, |(at, length)| at + length);
        self.rest.drain(..passed);
        found.is_some()
    }

    fn header(&mut self, split: &mut Split) -> bool {
        let text = self.rest.trim_start();
        let Some(at) = self.rest.find(MESSAGE) else {
            let may_be = begins_header(text);
            // Text without a header.
            if !may_be || text.len() > MAX_HEADER {
                self.state = State::Message(Channel::Final);
                return true;
            }
            return false;
        };
        let header: String = self.rest.drain(..at + MESSAGE.len()).collect();
        let channel = header.split("<|channel|>").nth(1).unwrap_or_default().trim_start();
        self.state = State::Message(match header.find(RECIPIENT) {
            Some(at) => {
                // The rest of the header does not belong to the call.
                let call = header[at..].split("<|channel|>").next().unwrap_or_default();
                let call = call.strip_suffix(MESSAGE).unwrap_or(call);
                let said = std::mem::take(&mut self.said);
                split.answer.push_str(call.strip_prefix(said).unwrap_or(call));
                split.answer.push_str(MESSAGE);
                Channel::Call
            }
            None if channel.starts_with("analysis") => Channel::Analysis,
            None => Channel::Final,
        });
        true
    }

    fn message(&mut self, channel: Channel, split: &mut Split) -> bool {
        let out = if channel == Channel::Analysis { &mut split.reasoning } else { &mut split.answer };
        let mut text = std::mem::take(out);
        let is_over = self.pass(&MESSAGE_ENDS, false, &mut text);
        if is_over && channel == Channel::Call {
            text.push_str("<|call|>");
        }
        *(if channel == Channel::Analysis { &mut split.reasoning } else { &mut split.answer }) = text;
        if is_over {
            self.state = State::Header;
        }
        is_over
    }
}

/// Whether text before a message may be its header, as far as it goes.
fn begins_header(text: &str) -> bool {
    let begins = |token: &str| text.starts_with(token) || token.starts_with(text);
    CHANNEL_TOKENS.into_iter().chain([RECIPIENT]).any(begins)
}

/// How many bytes at the end of `text` could be the beginning of one of `marks`.
fn beginning(text: &str, marks: &[&str]) -> usize {
    let of = |mark: &&str| {
        let max = mark.len().saturating_sub(1).min(text.len());
        (1..=max).rev().find(|length| text.as_bytes().ends_with(&mark.as_bytes()[..*length])).unwrap_or(0)
    };
    marks.iter().map(of).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(template: &str) -> &'static ReasoningFormat {
        ReasoningFormat::of(template).unwrap()
    }

    fn parse(format: &'static ReasoningFormat, is_open: bool, pieces: &[&str]) -> Split {
        let mut parser = ReasoningParser::new(format, is_open, "");
        let mut all = Split::default();
        for piece in pieces {
            let split = parser.push(piece);
            all.reasoning += &split.reasoning;
            all.answer += &split.answer;
        }
        let rest = parser.finish();
        Split { reasoning: all.reasoning + &rest.reasoning, answer: all.answer + &rest.answer }
    }

    /// Checks reasoning and answer for the whole text and for every cut into two and into characters.
    #[track_caller]
    fn check(template: &str, is_open: bool, text: &str, reasoning: &str, answer: &str) {
        let format = format(template);
        let expected = Split { reasoning: reasoning.into(), answer: answer.into() };
        for (at, _) in text.char_indices() {
            assert_eq!(parse(format, is_open, &[&text[..at], &text[at..]]), expected, "{text:?} cut at {at}");
        }
        let characters: Vec<String> = text.chars().map(String::from).collect();
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        assert_eq!(parse(format, is_open, &characters), expected, "{text:?}");
    }

    #[test]
    fn reasoning_is_before_the_answer_in_every_format() {
        for (template, text) in [
            ("<think>", "<think>\nA < b.\n</think>\n\nYes. <b>"),
            ("<|channel> <channel|>", "<|channel>thought\nA < b.\n<channel|>Yes. <b>"),
            ("[THINK]", "[THINK]A < b.[/THINK]Yes. <b>"),
            (
                "Here is my thought process:",
                "Here is my thought process: A < b.\n\nHere is my response: Yes. <b>",
            ),
            ("<think> <response>", "<think>A < b.</think><response>Yes. <b></response>"),
            ("<think> <answer>", "<think>\nA < b.\n</think>\n<answer>\nYes. <b></answer>"),
            (
                "<|START_THINKING|>",
                "<|START_THINKING|>A < b.<|END_THINKING|><|START_RESPONSE|>Yes. <b><|END_RESPONSE|>",
            ),
            ("<seed:think>", "<seed:think>A < b.</seed:think>Yes. <b>"),
            ("◁think▷", "◁think▷A < b.◁/think▷Yes. <b>"),
            ("<|inner_prefix|>", "<|inner_prefix|>A < b.<|inner_suffix|>Yes. <b>"),
            (
                "<|channel|> <|message|>",
                "<|channel|>analysis<|message|>A < b.<|end|><|start|>assistant<|channel|>final<|message|>Yes. <b>",
            ),
        ] {
            check(template, false, text, "A < b.", "Yes. <b>");
        }
    }

    #[test]
    fn an_answer_may_begin_within_the_reasoning_and_may_end_there() {
        check("<think>", true, "A.\n</think>\n\nYes.", "A.", "Yes.");
        check("<think>", true, "<think>\nA.</think>Yes.", "A.", "Yes.");
        check("<think>", true, "A. </thi", "A. </thi", "");
        check("<think>", false, "<think>A. ", "A.", "");
        assert!(format("<think>").is_open("<|im_start|>assistant\n<think>\n"));
        assert!(!format("<think>").is_open("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
    }

    #[test]
    fn text_without_reasoning_is_the_answer_unchanged() {
        for text in ["", " ", "Yes. <think>no</think>", " <thin", "\n\nYes.", "<"] {
            check("<think>", false, text, "", text);
        }
        check("<|channel|> <|message|>", false, "Yes.", "", "Yes.");
        check("<think>", false, "<think>\n\n</think>\n\nYes.", "", "Yes.");
    }

    #[test]
    fn calls_of_the_commentary_channel_are_left_to_the_parser_of_tool_calls() {
        let template = "<|channel|> <|message|>";
        let call = "<|channel|>analysis<|message|>A.<|end|><|start|>assistant<|channel|>commentary to=functions.now \
            <|constrain|>json<|message|>{\"a\": 1}<|call|>";
        check(template, false, call, "A.", "to=functions.now <|constrain|>json<|message|>{\"a\": 1}<|call|>");
        let turned = "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>";
        check(template, false, turned, "", "to=functions.now<|message|>{}<|call|>");
    }
}
