//! The text of an answer, separated into reasoning, content and tool calls, up to a stop string.
//!
//! ```text
//! text ──► reasoning ──► tool calls ──► stop strings ──► content
//!              │              └──────────────────────────► calls
//!              └─────────────────────────────────────────► reasoning
//! ```
//!
//! Stop strings apply to content: not to the reasoning, nor to the arguments of calls.

use super::{
    reasoning::{ReasoningFormat, ReasoningParser},
    stop_strings::StopStrings,
    tools::{AnswerDelta, ToolCallParser, ToolCallParserOptions},
};

/// How an answer's text is separated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnswerParserOptions {
    /// How the model writes its reasoning; `None` leaves it in the content.
    pub reasoning: Option<ReasoningOptions>,
    /// How the model writes tool calls; `None` without tools.
    pub tools: Option<ToolCallParserOptions>,
    /// The content ends before any of these; empty ones never match.
    pub stop: Vec<String>,
    /// Whether the content has the stop string that ends it.
    pub includes_stop: bool,
}

/// How a model writes its reasoning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReasoningOptions {
    /// The format.
    pub format: &'static ReasoningFormat,
    /// Whether the answer begins within the reasoning.
    pub is_open: bool,
}

/// Separates the text of one answer.
#[derive(Debug)]
pub struct AnswerParser {
    reasoning: Option<ReasoningParser>,
    tools: Option<ToolCallParser>,
    stops: StopStrings,
    includes_stop: bool,
    is_stopped: bool,
}

impl AnswerParserOptions {
    /// Texts that may be special tokens of the model, which have no text otherwise.
    pub fn special_texts(&self) -> impl Iterator<Item = &'static str> + use<> {
        let reasoning = self.reasoning.map(|reasoning| reasoning.format.special_texts());
        let tools = self.tools.as_ref().map(|tools| tools.format.special_texts());
        reasoning.into_iter().flatten().chain(tools.into_iter().flatten())
    }
}

impl AnswerParser {
    /// At the beginning of an answer.
    #[must_use]
    pub fn new(options: AnswerParserOptions) -> Self {
        let opened = options.tools.as_ref().filter(|tools| tools.opened);
        let call = opened.map_or("", |tools| tools.format.answer_prefix());
        let reasoning = options.reasoning.map(|ReasoningOptions { format, is_open }| {
            ReasoningParser::new(format, is_open && call.is_empty(), call)
        });
        let stops = StopStrings::new(options.stop);
        Self {
            reasoning,
            tools: options.tools.map(ToolCallParser::new),
            stops,
            includes_stop: options.includes_stop,
            is_stopped: false,
        }
    }

    /// Separates the next text.
    pub fn push(&mut self, text: &str) -> AnswerDelta {
        if self.is_stopped || text.is_empty() {
            return AnswerDelta::default();
        }
        let (reasoning, answer) = match &mut self.reasoning {
            Some(parser) => {
                let split = parser.push(text);
                (split.reasoning, split.answer)
            }
            None => (String::new(), text.to_owned()),
        };
        let delta = self.read_calls(answer);
        self.stop(AnswerDelta { reasoning, ..delta })
    }

    /// The text held back at the end of the answer. An incomplete call stays incomplete.
    pub fn finish(&mut self) -> AnswerDelta {
        if self.is_stopped {
            return AnswerDelta::default();
        }
        let (reasoning, answer) = match &mut self.reasoning {
            Some(parser) => {
                let split = parser.finish();
                (split.reasoning, split.answer)
            }
            None => Default::default(),
        };
        let mut delta = self.read_calls(answer);
        if let Some(parser) = &mut self.tools {
            delta.append(&parser.finish());
        }
        let mut delta = self.stop(AnswerDelta { reasoning, ..delta });
        if !self.is_stopped {
            delta.content += &self.stops.flush();
        }
        delta
    }

    /// Whether nothing can be added: a stop string was found, or the only call that is allowed is complete.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_stopped || self.tools.as_ref().is_some_and(ToolCallParser::is_over)
    }

    /// The stop string that ended the content.
    #[must_use]
    pub fn stop_string(&self) -> Option<&str> {
        self.stops.found()
    }

    /// Whether the next text belongs to the reasoning.
    #[must_use]
    pub fn is_reasoning(&self) -> bool {
        self.reasoning.as_ref().is_some_and(ReasoningParser::is_reasoning)
    }

    /// The text that ends the reasoning.
    #[must_use]
    pub fn end_of_reasoning(&self) -> Option<&'static str> {
        self.reasoning.as_ref().map(ReasoningParser::end)
    }

    /// Whether the last call ended before its arguments did.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.tools.as_ref().is_some_and(ToolCallParser::is_truncated)
    }

    fn read_calls(&mut self, text: String) -> AnswerDelta {
        match &mut self.tools {
            Some(parser) if !text.is_empty() => parser.push(&text),
            _ => AnswerDelta { content: text, ..AnswerDelta::default() },
        }
    }

    /// Applies the stop strings.
    fn stop(&mut self, delta: AnswerDelta) -> AnswerDelta {
        let chunk = self.stops.push(&delta.content);
        self.is_stopped = chunk.stopped;
        let mut content = chunk.text;
        if chunk.stopped && self.includes_stop {
            content += self.stops.found().unwrap_or_default();
        }
        // A stop string does not reach across a call.
        let calls = if chunk.stopped { Vec::new() } else { delta.calls };
        if !calls.is_empty() {
            content += &self.stops.flush();
        }
        AnswerDelta { content, calls, ..delta }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::{ToolSignature, ToolSupport};

    fn options(stop: &str) -> AnswerParserOptions {
        let tools = ToolCallParserOptions {
            format: ToolSupport::of("{{ tools }}<tool_call>").format(),
            tools: [ToolSignature::new("now", &json!({}))].into(),
            single: false,
            opened: false,
        };
        let format = ReasoningFormat::of("<think>").unwrap();
        let reasoning = Some(ReasoningOptions { format, is_open: false });
        AnswerParserOptions { reasoning, tools: Some(tools), stop: vec![stop.into()], includes_stop: false }
    }

    fn parse(options: &AnswerParserOptions, text: &str) -> (AnswerDelta, bool) {
        let mut parser = AnswerParser::new(options.clone());
        let mut all = AnswerDelta::default();
        for c in text.chars() {
            all.append(&parser.push(&c.to_string()));
        }
        all.append(&parser.finish());
        (all, parser.is_over())
    }

    #[test]
    fn a_stop_string_ends_content_but_not_reasoning_or_arguments() {
        let call = "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"END\"}}</tool_call>";
        let (answer, is_over) =
            parse(&options("END"), &format!("<think>the END</think>Look. {call} The END of it"));
        assert_eq!(
            (answer.reasoning.as_str(), answer.content.as_str(), is_over),
            ("the END", "Look. The ", true)
        );
        assert_eq!(answer.calls[0].arguments, "{\"a\": \"END\"}");
        let included = AnswerParserOptions { includes_stop: true, ..options("END") };
        assert_eq!(parse(&included, "Look. The END of it").0.content, "Look. The END");
        let (answer, is_over) = parse(&options("END"), &format!("EN{call}D"));
        assert_eq!((answer.content.as_str(), is_over), ("END", false));
    }
}
