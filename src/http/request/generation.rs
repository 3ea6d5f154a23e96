//! What a generation request asks for, in whichever dialect it was written.
//!
//! The three generating routes share all fields below; they differ in how the prompt is given, in what the number of
//! tokens is called, and in defaults. A value of [`Ask`] is proven: every number is in range and every token id is
//! one that the model has. Only the length of the prompt is not known before it is encoded.

use std::time::Duration;

use serde_json::Value;

use super::{
    cache_salt, compat,
    echoed_fields::EchoedFields,
    fields::{Fields, ids_of, typed, whole_of, wrong_type},
    response_format::Form,
    sampling,
    tools::ToolRules,
};
use crate::{
    executor::{Deadlines, Terms},
    http::field_error::FieldError,
    job::{KeepAlive, Priority, Sampling, ScoresAsked},
    text::{Conversation, Reading},
    units::Tokens,
};

/// Most stop strings of one request.
const MOST_STOPS: usize = 16;

/// Most bytes of one stop string. Up to as many bytes of a streamed answer are held back.
const MOST_STOP_BYTES: usize = 1024;

/// Most tokens that end an answer. A worker compares each token of the answer with all of them.
const MOST_STOP_TOKENS: usize = 1024;

/// What to generate, and under which conditions.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) prompt: Prompt,
    /// `None` leaves it to the settings and the room there is.
    pub(crate) max_new: Option<Tokens>,
    pub(crate) sampling: Sampling,
    /// What a repetition that is penalized does not reach across; made into tokens with the prompt.
    pub(crate) breakers: Vec<String>,
    pub(crate) form: Option<Form>,
    /// How calls of tools are read, where any may come.
    pub(crate) reading: Option<Reading>,
    /// What the answer repeats of the request.
    pub(crate) echoed: EchoedFields,
    /// How many answers to make, one after another.
    pub(crate) choices: usize,
    pub(crate) scores: Option<ScoresAsked>,
    /// Whether the answer begins with the prompt.
    pub(crate) echo: bool,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) ignore_eos: bool,
    /// Whether it may begin with what is kept of earlier prompts, and be kept.
    pub(crate) cache_prompt: bool,
    /// Sets the prompt apart from those with another salt, or with none.
    pub(crate) cache_salt: Option<String>,
    pub(crate) delivery: Delivery,
    pub(crate) terms: Terms,
    /// How long the model stays loaded afterwards.
    pub(crate) keep_alive: Option<KeepAlive>,
}

/// What to continue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Conversation(Conversation),
}

impl Prompt {
    /// As it was given, if it was given as text.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Ids(_) | Self::Conversation(_) => None,
        }
    }
}

/// How the answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// As one JSON document, when it is complete.
    Whole,
    /// As server-sent events, while it is generated.
    Streamed {
        /// With OpenAI's chunk of usage at the end.
        include_usage: bool,
        /// With what is read of a long prompt.
        progress: bool,
    },
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Number of token ids of the model.
    pub(crate) vocabulary: usize,
    /// Used where the request names none; it may ask for shorter ones.
    pub(crate) deadlines: Deadlines,
    /// Used where the request names none: 0 is greedy.
    pub(crate) temperature: f32,
    pub(crate) tools: ToolRules,
}

impl Ask {
    /// Takes the fields that all dialects share.
    pub(crate) fn take(
        fields: &mut Fields,
        rules: &Rules,
        prompt: Prompt,
        max_new: Option<Tokens>,
    ) -> Result<Self, FieldError> {
        if let Prompt::Ids(ids) = &prompt {
            check_ids(ids, "prompt", rules.vocabulary)?;
        }
        let stop_token_ids = fields.ids("stop_token_ids")?.unwrap_or_default();
        if stop_token_ids.len() > MOST_STOP_TOKENS {
            let said = format!("{} token ids, at most {MOST_STOP_TOKENS}", stop_token_ids.len());
            return Err(FieldError::value(fields.path("stop_token_ids"), said));
        }
        check_ids(&stop_token_ids, &fields.path("stop_token_ids"), rules.vocabulary)?;
        let form = Form::take(fields)?;
        let stop = take_stop(fields)?;
        let ignore_eos = fields.take("ignore_eos")?.unwrap_or(false);
        let cache_prompt = fields.take("cache_prompt")?.unwrap_or(true);
        let ask = Self {
            prompt,
            max_new,
            sampling: sampling::take(fields, rules)?,
            breakers: sampling::take_breakers(fields)?,
            form,
            reading: None,
            echoed: EchoedFields::default(),
            choices: 1,
            scores: None,
            echo: false,
            stop,
            stop_token_ids,
            ignore_eos,
            cache_prompt,
            cache_salt: cache_salt::take(fields)?,
            delivery: take_delivery(fields)?,
            terms: take_terms(fields, rules.deadlines)?,
            keep_alive: take_keep_alive(fields)?,
        };
        if let Some(form) = &ask.form {
            form.check_ends(fields, ask.ends())?;
        }
        Ok(ask)
    }

    /// With a form that was asked for in another way.
    pub(crate) fn with_form(self, form: Option<Form>, fields: &Fields) -> Result<Self, FieldError> {
        match (&self.form, form) {
            (_, None) => Ok(self),
            (None, Some(form)) => {
                form.check_ends(fields, self.ends())?;
                Ok(Self { form: Some(form), ..self })
            }
            (Some(one), Some(other)) => {
                let said = format!("is given together with {}; send one of them", one.param);
                Err(FieldError::value(other.param, said))
            }
        }
    }

    /// What asks for an end of the answer: `stop`, `stop_token_ids`, `ignore_eos`.
    pub(crate) fn ends(&self) -> [bool; 3] {
        [!self.stop.is_empty(), !self.stop_token_ids.is_empty(), self.ignore_eos]
    }
}

/// Takes how long a model stays loaded, as Ollama has it: seconds, or a duration such as "10m"; less than nothing is for
/// ever.
pub(crate) fn take_keep_alive(fields: &mut Fields) -> Result<Option<KeepAlive>, FieldError> {
    let path = fields.path("keep_alive");
    let wrong = || {
        FieldError::value(
            &path,
            "is no duration of at most 1000000000 seconds; send seconds, \"90s\", \"10m\", \"24h\", or -1 for ever",
        )
    };
    match fields.take::<Value>("keep_alive")? {
        None => Ok(None),
        Some(Value::Number(seconds)) => {
            keep_alive_of(seconds.as_f64().unwrap_or(-1.0)).ok_or_else(wrong).map(Some)
        }
        Some(Value::String(text)) => seconds_of(&text).and_then(keep_alive_of).ok_or_else(wrong).map(Some),
        Some(other) => Err(wrong_type(&path, "a number of seconds or a duration", &other)),
    }
}

/// Some thirty years; who means for ever says so.
const MOST_SECONDS: f64 = 1e9;

fn keep_alive_of(seconds: f64) -> Option<KeepAlive> {
    if seconds < 0.0 {
        return Some(KeepAlive::Forever);
    }
    let longest = seconds <= MOST_SECONDS;
    Duration::try_from_secs_f64(seconds).ok().filter(|_| longest).map(KeepAlive::For)
}

/// A number with a unit, or without one for seconds.
fn seconds_of(text: &str) -> Option<f64> {
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)];
    let (number, unit) =
        units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))?;
    let number: f64 = number.trim().parse().ok()?;
    number.is_finite().then_some(number * unit)
}

/// Takes a number of tokens to generate; -1, with which peers ask for no limit, is as absent.
pub(crate) fn take_tokens(fields: &mut Fields, name: &str) -> Result<Option<Tokens>, FieldError> {
    if fields.get(name).and_then(Value::as_number).and_then(whole_of) == Some(-1) {
        fields.take::<Value>(name)?;
        return Ok(None);
    }
    // The context length is the real limit, and is checked with the prompt's length at hand.
    let tokens = fields.whole(name, 1..=u64::from(u32::MAX))?;
    Ok(tokens.map(|tokens| Tokens(usize::try_from(tokens).unwrap_or(usize::MAX))))
}

/// Takes `n`, the number of answers to one prompt.
pub(crate) fn take_choices(fields: &mut Fields) -> Result<usize, FieldError> {
    const MOST: u64 = 8;
    let choices = fields.whole("n", 1..=MOST)?.unwrap_or(1);
    Ok(usize::try_from(choices).unwrap_or(1))
}

/// The scores of the answer's tokens and, where it is echoed, of the prompt's.
pub(crate) fn asked(top: u64, prompt: bool) -> ScoresAsked {
    ScoresAsked { top: usize::try_from(top).unwrap_or(usize::MAX), prompt }
}

/// Takes `prompt` as OpenAI has it: a string, an array of token ids, or an array of one of either.
pub(crate) fn prompt_of(value: Value, path: &str) -> Result<Prompt, FieldError> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(items) => match items.first() {
            Some(Value::String(_) | Value::Array(_)) => {
                only(items, path).and_then(|item| prompt_of(item, path))
            }
            _ => ids_of(items, path).map(Prompt::Ids),
        },
        other => Err(wrong_type(path, "a string or an array of token ids", &other)),
    }
}

fn only(mut items: Vec<Value>, path: &str) -> Result<Value, FieldError> {
    match (items.pop(), items.len()) {
        (Some(item), 0) => Ok(item),
        (_, more) => {
            let said = format!(
                "{} prompts in one request; eka answers one at a time, send them one by one",
                more + 1
            );
            Err(FieldError::value(path, said))
        }
    }
}

fn take_stop(fields: &mut Fields) -> Result<Vec<String>, FieldError> {
    let path = fields.path("stop");
    let stops: Vec<String> = match fields.take::<Value>("stop")? {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop],
        Some(stops @ Value::Array(_)) => typed(stops, &path)?,
        Some(other) => return Err(wrong_type(&path, "a string or an array of strings", &other)),
    };
    let empty = "an empty stop string would match before anything";
    check_strings(&stops, &path, [MOST_STOPS, MOST_STOP_BYTES], empty)?;
    Ok(stops)
}

/// Checks a list of strings: how many there are, how long each is, and that none is empty; `empty` says why not.
pub(crate) fn check_strings(
    strings: &[String],
    path: &str,
    [most, most_bytes]: [usize; 2],
    empty: &str,
) -> Result<(), FieldError> {
    if strings.len() > most {
        return Err(FieldError::value(path, format!("{} strings, at most {most}", strings.len())));
    }
    let wrong = strings.iter().enumerate().find(|(_, text)| text.is_empty() || text.len() > most_bytes);
    let Some((place, text)) = wrong else { return Ok(()) };
    let said = match text.len() {
        0 => format!("string {place} is empty; {empty}"),
        bytes => format!("string {place} has {bytes} bytes, at most {most_bytes}"),
    };
    Err(FieldError::value(path, said))
}

fn take_delivery(fields: &mut Fields) -> Result<Delivery, FieldError> {
    let streamed = fields.take("stream")?.unwrap_or(false);
    let path = fields.path("stream_options");
    let options: Option<Value> = fields.take("stream_options")?;
    let progress = fields.take("return_progress")?.unwrap_or(false);
    if progress && !streamed {
        let said = "is for streams; send \"stream\": true with it";
        return Err(FieldError::value(fields.path("return_progress"), said));
    }
    let include_usage = match options {
        None => false,
        Some(options) => {
            let mut options = fields.nested(options, &path)?;
            let include_usage = options.take("include_usage")?.unwrap_or(false);
            options.finish(&[compat::STREAM_OPTIONS])?;
            include_usage
        }
    };
    match streamed {
        true => Ok(Delivery::Streamed { include_usage, progress }),
        false if include_usage => {
            Err(FieldError::value(path, "is for streams; send \"stream\": true with it"))
        }
        false => Ok(Delivery::Whole),
    }
}

/// A request may be less patient than the server, never more.
fn take_terms(fields: &mut Fields, most: Deadlines) -> Result<Terms, FieldError> {
    let priority = take_priority(fields)?;
    let mut take = |name, most: Duration| {
        let limit = u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1);
        fields.whole(name, 1..=limit).map(|ms| ms.map(Duration::from_millis))
    };
    let queue = take("queue_timeout_ms", most.queue)?.unwrap_or(most.queue);
    let total = take("timeout_ms", most.total)?.unwrap_or(most.total);
    let max_time = take("max_time_ms", most.total)?;
    Ok(Terms { deadlines: Deadlines { queue, total }, priority, max_time })
}

/// Takes `priority`, or what OpenAI's `service_tier` says of it: a request on the tier `flex` may wait.
fn take_priority(fields: &mut Fields) -> Result<Priority, FieldError> {
    let tier = fields.take::<String>("service_tier")?;
    // vLLM's priorities are numbers, and 0 is its default.
    let is_vllms = fields.get("priority").and_then(Value::as_number).and_then(whole_of) == Some(0);
    let asked = fields.take::<Value>("priority")?.filter(|_| !is_vllms);
    let asked: Option<String> = asked.map(|asked| typed(asked, &fields.path("priority"))).transpose()?;
    let refuse = |name, said: &str| Err(FieldError::value(fields.path(name), said));
    match (asked.as_deref(), tier.as_deref()) {
        (Some(_), Some(_)) => refuse("priority", "is given together with service_tier; send one of them"),
        (Some("batch"), None) | (None, Some("flex")) => Ok(Priority::Batch),
        (Some("interactive"), None) | (None, Some("auto" | "default" | "priority") | None) => {
            Ok(Priority::Interactive)
        }
        (Some(_), None) => refuse("priority", "is no priority; send \"interactive\" or \"batch\""),
        (None, Some(_)) => refuse(
            "service_tier",
            "is no tier of this server; send \"auto\", \"default\", \"priority\" or \"flex\"",
        ),
    }
}

pub(crate) fn check_ids(ids: &[u32], path: &str, vocabulary: usize) -> Result<(), FieldError> {
    ids.iter()
        .enumerate()
        .try_for_each(|(place, id)| check_id(*id, &format_args!("{path}[{place}]"), vocabulary))
}

pub(crate) fn check_id(id: u32, path: &dyn std::fmt::Display, vocabulary: usize) -> Result<(), FieldError> {
    if (id as usize) < vocabulary {
        return Ok(());
    }
    let range = format!("0 to {}, the model's token ids", vocabulary.saturating_sub(1));
    Err(FieldError::Range { param: path.to_string(), found: id.to_string(), range })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{
        http::formats::{
            chat::Chat, completions::Completions, format::ApiFormat, generate_lite::GenerateLite,
            responses::Responses,
        },
        text::ToolSupport,
    };

    const RULES: Rules = Rules {
        vocabulary: 100,
        deadlines: Deadlines { queue: Duration::from_secs(1), total: Duration::from_secs(2) },
        temperature: 1.0,
        tools: ToolRules { support: ToolSupport::None, is_marker_special: false },
    };

    const NAMES: [&str; 29] = [
        "cache_prompt",
        "cache_salt",
        "priority",
        "service_tier",
        "max_time_ms",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "json_schema",
        "grammar",
        "regex",
        "n",
        "logprobs",
        "echo",
        "dry_multiplier",
        "return_progress",
        "prompt",
        "messages",
        "temperature",
        "top_k",
        "seed",
        "stop",
        "stop_token_ids",
        "logit_bias",
        "stream",
        "stream_options",
        "timeout_ms",
        "max_tokens",
    ];

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("role|content|type|text|7|include_usage", inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    /// What is accepted is within the rules, whatever was sent.
    fn check<D: ApiFormat>(body: &str) {
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        let Ok(ask) = D::ask(&mut fields, &RULES) else { return };
        assert!((0.0..=2.0).contains(&ask.sampling.temperature));
        assert!(ask.sampling.logit_bias.iter().all(|(id, bias)| *id < 100 && bias.abs() <= 100.0));
        assert!(ask.stop_token_ids.iter().all(|id| *id < 100));
        assert!((1..=8).contains(&ask.choices) && ask.scores.is_none_or(|asked| asked.top <= 20));
        assert!(ask.stop.iter().all(|stop| !stop.is_empty()));
        assert!(ask.terms.deadlines.total <= RULES.deadlines.total && ask.max_new != Some(Tokens(0)));
    }

    fn stop(stop: Value) -> Result<Vec<String>, FieldError> {
        let mut fields = Fields::parse(json!({ "stop": stop }).to_string().as_bytes()).unwrap();
        take_stop(&mut fields)
    }

    #[test]
    fn stop_strings_are_few_and_short_and_the_error_names_the_limit() {
        assert_eq!(stop(json!(vec!["क".repeat(341); 16])).unwrap().len(), 16);
        for (refused, words) in [
            (json!(vec!["a".repeat(250_000); 16]), "string 0 has 250000 bytes, at most 1024"),
            (json!(vec!["a"; 17]), "17 strings, at most 16"),
            (json!(["a", ""]), "string 1 is empty"),
        ] {
            let error = stop(refused).unwrap_err();
            assert!(error.param() == "stop" && error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn tokens_that_end_an_answer_are_few() {
        let body = json!({ "prompt": "a", "stop_token_ids": vec![1; 1025] }).to_string();
        let error = GenerateLite::ask(&mut Fields::parse(body.as_bytes()).unwrap(), &RULES).unwrap_err();
        assert!(error.to_string().contains("1025 token ids, at most 1024"), "{error}");
    }

    proptest! {
        #[test]
        fn no_json_breaks_it_and_what_it_accepts_is_proven(
            fields in prop::collection::vec((prop::sample::select(&NAMES[..]), any_json()), 0..5),
        ) {
            let object: serde_json::Map<String, Value> = fields.into_iter().map(|(name, value)| (name.into(), value)).collect();
            let mut body = Value::Object(object);
            check::<GenerateLite>(&body.to_string());
            body["prompt"] = json!("a");
            check::<Completions>(&body.to_string());
            body["messages"] = json!([{ "role": "user", "content": "a" }]);
            check::<Chat>(&body.to_string());
            body["input"] = json!("a");
            check::<Responses>(&body.to_string());
        }
    }
}
