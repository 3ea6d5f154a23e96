//! Fields of OpenAI's API that eka does not have, route by route and object by object, and of what clients add to them.

use super::compat_field::{CompatField, array, inert, object, off, unsupported};
use crate::http::request::json_type::JsonType::{Any, Array, Boolean, Number, Object, String};

pub(crate) const NO_REASONING: &[CompatField] = &[
    off("effort", &["\"none\""], ""),
    off("enabled", &["false"], ""),
    off("max_tokens", &["0"], ""),
    inert("exclude", Boolean),
    inert("summary", String),
    inert("generate_summary", String),
];

/// Of a schema with a name. They are for models that see them, which no chat template shows.
pub(crate) const NAMED_SCHEMA: &[CompatField] =
    &[inert("name", String), inert("description", String), inert("strict", Boolean)];

/// OpenAI's, of all generating routes.
pub(crate) const OPENAI: &[CompatField] = &[
    inert("user", String),
    inert("metadata", Object),
    inert("safety_identifier", String),
    inert("prompt_cache_key", String),
    inert("prompt_cache_retention", String),
    inert("verbosity", String),
    off("store", &["false"], "; no answers are kept"),
];

/// OpenAI's completions.
pub(crate) const COMPLETIONS: &[CompatField] =
    &[off("suffix", &["\"\""], ""), off("add_special_tokens", &["true"], "; send token ids as prompt")];

/// Chat completions' about tools, of routes that have none.
pub(crate) const WITHOUT_TOOLS: &[CompatField] = &[
    off("tools", &["[]"], "; use /v1/chat/completions"),
    off("tool_choice", &["\"none\"", "\"auto\""], "; use /v1/chat/completions"),
    inert("parallel_tool_calls", Boolean),
];

/// Chat completions' about choices and their scores, of routes that answer once and without scores.
pub(crate) const SINGLE: &[CompatField] =
    &[off("n", &["1"], "; send the request once for each answer"), off("logprobs", &["false"], "")];

/// OpenAI's chat completions.
pub(crate) const CHAT: &[CompatField] = &[
    off("functions", &["[]"], "; use tools"),
    off("function_call", &["\"none\"", "\"auto\""], "; use tool_choice"),
    off("modalities", &["[\"text\"]"], ""),
    off("reasoning_effort", &["\"none\""], ""),
    off("add_special_tokens", &["false"], ""),
    unsupported("audio", ""),
    // A guess at the answer that makes it come sooner.
    inert("prediction", Object),
    unsupported("web_search_options", ""),
    object("reasoning", NO_REASONING),
];

/// OpenAI's responses.
pub(crate) const RESPONSES: &[CompatField] = &[
    off("background", &["false"], ""),
    array("include", NOTHING_TO_INCLUDE),
    off("truncation", &["\"disabled\""], ""),
    off("top_logprobs", &["0"], ""),
    unsupported("previous_response_id", "; send the whole conversation as input"),
    unsupported("conversation", "; send the whole conversation as input"),
    object("reasoning", NO_REASONING),
    // It limits the calls of tools that a server runs itself.
    inert("max_tool_calls", Number),
    unsupported("prompt", "; send its text as instructions"),
    off("context_management", &["[]"], ""),
];

/// Of items that no answer has.
const NOTHING_TO_INCLUDE: &[&str] = &[
    "reasoning.encrypted_content",
    "web_search_call.results",
    "web_search_call.action.sources",
    "file_search_call.results",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "message.input_image.image_url",
];

/// Of `stream_options`.
pub(crate) const STREAM_OPTIONS: &[CompatField] =
    &[inert("include_obfuscation", Boolean), off("continuous_usage_stats", &["false"], "")];

/// Of `text` in responses.
pub(crate) const TEXT_OPTIONS: &[CompatField] = &[inert("verbosity", String)];

/// Of a message: what clients send back of an answer, or mark it with.
pub(crate) const MESSAGE: &[CompatField] = &[
    off("refusal", &["\"\""], ""),
    unsupported("audio", ""),
    inert("annotations", Array),
    unsupported("function_call", "; use tool_calls"),
    off("reasoning_content", &["\"\""], ""),
    off("reasoning", &["\"\""], ""),
    off("images", &["[]"], ""),
    off("prefix", &["false"], ""),
    off("partial", &["false"], ""),
    inert("id", String),
    inert("cache_control", Object),
    inert("provider_specific_fields", Object),
];

/// Of a part of a message.
pub(crate) const PART: &[CompatField] =
    &[inert("annotations", Array), inert("logprobs", Array), inert("cache_control", Object)];

/// Of a call in a message.
pub(crate) const CALL: &[CompatField] = &[inert("index", Number), inert("provider_specific_fields", Object)];

/// Of the function of a call: what OpenAI's client adds when it parses.
pub(crate) const CALLED_FUNCTION: &[CompatField] =
    &[inert("parsed_arguments", Any), inert("provider_specific_fields", Object)];

/// Of an item of responses that is sent back.
pub(crate) const ITEM: &[CompatField] =
    &[inert("id", String), inert("status", String), inert("phase", String)];

/// Of a tool.
pub(crate) const TOOL: &[CompatField] =
    &[inert("cache_control", Object), off("defer_loading", &["false"], "")];

/// llama-server's and vLLM's, of `/tokenize`.
pub(crate) const TOKENIZE: &[CompatField] = &[
    off("parse_special", &["true"], ""),
    off("add_generation_prompt", &["true"], ""),
    off("continue_final_message", &["false"], ""),
    off("return_token_strs", &["false"], "; use with_pieces"),
    unsupported("chat_template", ""),
    off("chat_template_kwargs", &["{}"], ""),
    off("mm_processor_kwargs", &["{}"], ""),
];

/// The same of `/apply-template`.
pub(crate) const TEMPLATE: &[CompatField] = &[
    off("add_generation_prompt", &["true"], ""),
    off("continue_final_message", &["false"], ""),
    unsupported("chat_template", ""),
    off("chat_template_kwargs", &["{}"], ""),
];
