//! Whether and how long a model reasons before it answers, and how its prompt ends.
//!
//! Clients have many names for the same. All of them become variables of the chat template, because templates decide:
//!
//! | fields | variables |
//! |---|---|
//! | `enable_thinking`, `think`, `thinking.type`, `reasoning.enabled`; an effort other than `none` | `enable_thinking`, `thinking` |
//! | `reasoning_effort`, `reasoning.effort` | `reasoning_effort`: `low`, `medium` or `high` |
//! | `chat_template_kwargs` | as they are; they win over the others |
//!
//! A budget (`thinking_budget` and its other names) ends the reasoning after this number of tokens: the text that ends it is added to
//! the answer, which then continues.

use serde_json::{Map, Value};

use super::schema::{FieldType, Modify, boolean, integer_from, json_object, object, one_of, shape, string};
use crate::{
    http::field_error::FieldError,
    text::{Conversation, PromptEnding},
};

/// Variables that are the conversation itself.
const RESERVED: [&str; 2] = ["messages", "tools"];

shape! {
    /// Fields for the model's reasoning and the end of its prompt.
    pub(crate) struct ThinkingFields {
        /// Further variables of the chat template.
        chat_template_kwargs: Map<String, Value> = json_object().or_empty();
        /// Whether the model reasons before it answers, if its chat template lets the request decide.
        enable_thinking: Option<bool> = boolean().optional();
        /// The same, as in Ollama.
        think: Option<bool> = boolean().optional();
        /// The same, as in Anthropic's API.
        thinking: Option<ThinkingOptions> = object().optional();
        /// How much the model reasons; `none` turns it off.
        reasoning_effort: Option<Effort> = effort().optional();
        /// The same, as in OpenAI's responses.
        reasoning: Option<ReasoningFields> = object().optional();
        /// Most tokens of reasoning; the answer then follows.
        thinking_budget: Option<usize> = integer_from(0).optional().unset_at("-1");
        /// The same, as in vLLM.
        thinking_token_budget: Option<usize> = integer_from(0).optional().unset_at("-1");
        /// The same, as in llama.cpp.
        thinking_budget_tokens: Option<usize> = integer_from(0).optional().unset_at("-1");
        /// Whether the answer has the reasoning.
        include_reasoning: bool = boolean().or(true);
        /// Where the reasoning is: `none` leaves it in the content, the others put it in `reasoning_content`.
        reasoning_format: ReasoningPlace = one_of(PLACES).or_empty();
        /// Whether the prompt ends with the beginning of the assistant's message.
        add_generation_prompt: Option<bool> = boolean().optional();
        /// Whether the answer continues the last message.
        continue_final_message: bool = boolean().or(false);
    }
}

shape! {
    /// Whether the model reasons, as in Anthropic's API.
    pub(crate) struct ThinkingOptions {
        kind as "type": bool = one_of(&[("enabled", true), ("adaptive", true), ("auto", true), ("disabled", false)]);
        /// Most tokens of reasoning.
        budget_tokens: Option<usize> = integer_from(0).optional();
        _display as "display": Option<String> = string().optional();
    }
}

shape! {
    /// How much the model reasons.
    pub(crate) struct ReasoningFields {
        effort: Option<Effort> = effort().optional();
        enabled: Option<bool> = boolean().optional();
        /// Most tokens of reasoning.
        max_tokens: Option<usize> = integer_from(0).optional();
        /// Whether the answer has no reasoning.
        exclude: bool = boolean().or(false);
        _summary as "summary": Option<String> = string().optional();
        _generate_summary as "generate_summary": Option<String> = string().optional();
    }
}

/// How much a model reasons, in the words of the chat templates that know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    None,
    Low,
    Medium,
    High,
}

/// Where the reasoning is in an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ReasoningPlace {
    /// In the content, as the model wrote it.
    Content,
    /// Apart from the content.
    #[default]
    Apart,
}

const PLACES: &[(&str, ReasoningPlace)] = &[
    ("none", ReasoningPlace::Content),
    ("auto", ReasoningPlace::Apart),
    ("deepseek", ReasoningPlace::Apart),
    ("deepseek-legacy", ReasoningPlace::Apart),
];

pub(crate) const fn effort() -> impl FieldType<Value = Effort> {
    one_of(&[
        ("none", Effort::None),
        ("minimal", Effort::Low),
        ("low", Effort::Low),
        ("medium", Effort::Medium),
        ("high", Effort::High),
        ("xhigh", Effort::High),
        ("max", Effort::High),
    ])
}

impl Effort {
    /// The value of the variable; `None` for no reasoning.
    const fn word(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Low => Some("low"),
            Self::Medium => Some("medium"),
            Self::High => Some("high"),
        }
    }
}

/// How an answer's reasoning is handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Thinking {
    /// Whether it is separated from the content.
    pub(crate) is_parsed: bool,
    /// Whether it is left out of the answer.
    pub(crate) is_hidden: bool,
    /// Most tokens of it.
    pub(crate) budget: Option<usize>,
}

/// What a request says about the model's reasoning.
#[derive(Clone, Debug, Default)]
pub(crate) struct ThinkingRequest {
    pub(crate) is_on: Option<bool>,
    pub(crate) effort: Option<Effort>,
    /// Further variables of the chat template.
    pub(crate) variables: Map<String, Value>,
    pub(crate) thinking: Thinking,
}

impl ThinkingRequest {
    /// The variables of the chat template.
    pub(crate) fn variables(self) -> Map<String, Value> {
        let is_on = self.is_on.or(self.effort.map(|effort| effort != Effort::None));
        let is_on = is_on.or((self.thinking.budget == Some(0)).then_some(false));
        let mut variables = self.variables;
        if let Some(is_on) = is_on {
            for name in ["enable_thinking", "thinking"] {
                variables.entry(name).or_insert(is_on.into());
            }
        }
        if let Some(word) = self.effort.and_then(Effort::word) {
            variables.entry("reasoning_effort").or_insert(word.into());
        }
        variables
    }
}

impl ThinkingFields {
    /// Adds the variables and the ending to a conversation.
    pub(super) fn apply(self, conversation: Conversation) -> Result<(Conversation, Thinking), FieldError> {
        let ending = self.ending(conversation.ending)?;
        if let Some(name) = RESERVED.into_iter().find(|name| self.chat_template_kwargs.contains_key(*name)) {
            let message = format!("is the conversation itself; send it as {name}");
            return Err(FieldError::value(format!("chat_template_kwargs.{name}"), message));
        }
        let request = self.request();
        let thinking = request.thinking;
        Ok((Conversation { variables: request.variables(), ending, ..conversation }, thinking))
    }

    fn ending(&self, ending: PromptEnding) -> Result<PromptEnding, FieldError> {
        let continues = self.continue_final_message || ending == PromptEnding::ContinueLast;
        match (continues, self.add_generation_prompt) {
            (true, Some(true)) => {
                let message = "cannot be true if the answer continues the last message; send false";
                Err(FieldError::value("add_generation_prompt", message))
            }
            (true, _) => Ok(PromptEnding::ContinueLast),
            (false, Some(false)) => Ok(PromptEnding::LastMessage),
            (false, _) => Ok(ending),
        }
    }

    fn request(self) -> ThinkingRequest {
        let thinking = self.thinking.as_ref();
        let reasoning = self.reasoning.as_ref();
        let is_on = self.enable_thinking.or(self.think).or(thinking.map(|thinking| thinking.kind));
        let budget = self.thinking_budget.or(self.thinking_token_budget).or(self.thinking_budget_tokens);
        let budget = budget.or(thinking.and_then(|thinking| thinking.budget_tokens));
        ThinkingRequest {
            is_on: is_on.or(reasoning.and_then(|reasoning| reasoning.enabled)),
            effort: self.reasoning_effort.or(reasoning.and_then(|reasoning| reasoning.effort)),
            variables: self.chat_template_kwargs,
            thinking: Thinking {
                is_parsed: self.reasoning_format == ReasoningPlace::Apart,
                is_hidden: !self.include_reasoning || reasoning.is_some_and(|reasoning| reasoning.exclude),
                budget: budget.or(reasoning.and_then(|reasoning| reasoning.max_tokens)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::request::schema::{Fields, ReadObject};

    fn applied(body: &Value) -> Result<(Conversation, Thinking), FieldError> {
        let fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        ThinkingFields::read(fields)?.apply(Conversation::default())
    }

    #[test]
    fn every_name_of_thinking_becomes_the_variables_that_templates_read() {
        let off = json!({ "enable_thinking": false, "thinking": false });
        let on = json!({ "enable_thinking": true, "thinking": true });
        let low = json!({ "enable_thinking": true, "thinking": true, "reasoning_effort": "low" });
        for (body, variables) in [
            (json!({}), json!({})),
            (json!({ "enable_thinking": false }), off.clone()),
            (json!({ "think": true }), on.clone()),
            (json!({ "thinking": { "type": "enabled", "budget_tokens": 7 } }), on.clone()),
            (json!({ "reasoning": { "enabled": false } }), off.clone()),
            (json!({ "reasoning_effort": "none" }), off.clone()),
            (json!({ "thinking_budget": 0 }), off),
            (json!({ "reasoning_effort": "minimal" }), low.clone()),
            (json!({ "reasoning": { "effort": "low", "summary": "auto" } }), low),
            (
                json!({ "chat_template_kwargs": { "enable_thinking": true, "x": 1 }, "think": false }),
                json!({ "enable_thinking": true, "x": 1, "thinking": false }),
            ),
        ] {
            let (conversation, _) = applied(&body).unwrap();
            assert_eq!(Value::Object(conversation.variables), variables, "{body}");
        }
    }

    #[test]
    fn a_budget_has_many_names_and_the_answer_may_leave_the_reasoning_out() {
        for body in [
            json!({ "thinking_budget": 7 }),
            json!({ "thinking_token_budget": 7, "thinking_budget": -1 }),
            json!({ "thinking_budget_tokens": 7 }),
            json!({ "thinking": { "type": "enabled", "budget_tokens": 7 } }),
            json!({ "reasoning": { "max_tokens": 7 } }),
        ] {
            let (_, thinking) = applied(&body).unwrap();
            assert_eq!(thinking, Thinking { is_parsed: true, is_hidden: false, budget: Some(7) }, "{body}");
        }
        for body in [json!({ "include_reasoning": false }), json!({ "reasoning": { "exclude": true } })] {
            assert!(applied(&body).unwrap().1.is_hidden, "{body}");
        }
        assert!(!applied(&json!({ "reasoning_format": "none" })).unwrap().1.is_parsed);
    }

    #[test]
    fn the_prompt_ends_as_the_request_says() {
        let ending = |body: Value| applied(&body).map(|(conversation, _)| conversation.ending);
        assert_eq!(ending(json!({})).unwrap(), PromptEnding::NextMessage);
        assert_eq!(ending(json!({ "add_generation_prompt": false })).unwrap(), PromptEnding::LastMessage);
        let both = json!({ "continue_final_message": true, "add_generation_prompt": true });
        assert_eq!(ending(both).unwrap_err().param(), "add_generation_prompt");
        assert_eq!(ending(json!({ "continue_final_message": true })).unwrap(), PromptEnding::ContinueLast);
        let reserved = ending(json!({ "chat_template_kwargs": { "messages": [] } })).unwrap_err();
        assert_eq!(reserved.param(), "chat_template_kwargs.messages");
    }
}
