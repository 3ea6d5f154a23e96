//! Fields of OpenAI's API, by route and by object, and those that its clients add.

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

/// In a schema with a name: texts for models that see them, which no chat template shows.
pub(crate) const NAMED_SCHEMA: &[CompatField] =
    &[inert("name", String), inert("description", String), inert("strict", Boolean)];

/// In all generating routes.
pub(crate) const OPENAI: &[CompatField] = &[
    inert("user", String),
    inert("metadata", Object),
    inert("safety_identifier", String),
    inert("prompt_cache_key", String),
    inert("prompt_cache_retention", String),
    inert("verbosity", String),
    off("store", &["false"], "; answers are not stored"),
];

/// In `/v1/completions`.
pub(crate) const COMPLETIONS: &[CompatField] =
    &[off("suffix", &["\"\""], ""), off("add_special_tokens", &["true"], "; send token ids as prompt")];

/// Fields for tools, in routes without tools.
pub(crate) const WITHOUT_TOOLS: &[CompatField] = &[
    off("tools", &["[]"], "; use /v1/chat/completions"),
    off("tool_choice", &["\"none\"", "\"auto\""], "; use /v1/chat/completions"),
    inert("parallel_tool_calls", Boolean),
];

/// In routes with one answer and without log-probabilities.
pub(crate) const SINGLE: &[CompatField] =
    &[off("n", &["1"], "; send the request once for each answer"), off("logprobs", &["false"], "")];

/// In `/v1/chat/completions`.
pub(crate) const CHAT: &[CompatField] = &[
    off("functions", &["[]"], "; use tools"),
    off("function_call", &["\"none\"", "\"auto\""], "; use tool_choice"),
    off("modalities", &["[\"text\"]"], ""),
    off("reasoning_effort", &["\"none\""], ""),
    off("add_special_tokens", &["false"], ""),
    unsupported("audio", ""),
    // A predicted answer, to speed up generation.
    inert("prediction", Object),
    unsupported("web_search_options", ""),
    object("reasoning", NO_REASONING),
];

/// In `/v1/responses`.
pub(crate) const RESPONSES: &[CompatField] = &[
    off("background", &["false"], ""),
    array("include", NOTHING_TO_INCLUDE),
    off("truncation", &["\"disabled\""], ""),
    off("top_logprobs", &["0"], ""),
    unsupported("previous_response_id", "; send the whole conversation as input"),
    unsupported("conversation", "; send the whole conversation as input"),
    object("reasoning", NO_REASONING),
    // Limits the tools that OpenAI's servers run.
    inert("max_tool_calls", Number),
    unsupported("prompt", "; send its text as instructions"),
    off("context_management", &["[]"], ""),
];

/// Items that no answer has.
const NOTHING_TO_INCLUDE: &[&str] = &[
    "reasoning.encrypted_content",
    "web_search_call.results",
    "web_search_call.action.sources",
    "file_search_call.results",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "message.input_image.image_url",
];

/// In `stream_options`.
pub(crate) const STREAM_OPTIONS: &[CompatField] =
    &[inert("include_obfuscation", Boolean), off("continuous_usage_stats", &["false"], "")];

/// In `text` of `/v1/responses`.
pub(crate) const TEXT_OPTIONS: &[CompatField] = &[inert("verbosity", String)];

/// In a message: fields of an answer that clients send back, and marks that they add.
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

/// In a part of a message.
pub(crate) const PART: &[CompatField] =
    &[inert("annotations", Array), inert("logprobs", Array), inert("cache_control", Object)];

/// In a call of a message.
pub(crate) const CALL: &[CompatField] = &[inert("index", Number), inert("provider_specific_fields", Object)];

/// In the function of a call: OpenAI's client adds parsed arguments.
pub(crate) const CALLED_FUNCTION: &[CompatField] =
    &[inert("parsed_arguments", Any), inert("provider_specific_fields", Object)];

/// In an item of `/v1/responses` that is sent back.
pub(crate) const ITEM: &[CompatField] =
    &[inert("id", String), inert("status", String), inert("phase", String)];

/// In a tool.
pub(crate) const TOOL: &[CompatField] =
    &[inert("cache_control", Object), off("defer_loading", &["false"], "")];

/// In `/tokenize`, from llama-server and vLLM.
pub(crate) const TOKENIZE: &[CompatField] = &[
    off("parse_special", &["true"], ""),
    off("add_generation_prompt", &["true"], ""),
    off("continue_final_message", &["false"], ""),
    off("return_token_strs", &["false"], "; use with_pieces"),
    unsupported("chat_template", ""),
    off("chat_template_kwargs", &["{}"], ""),
    off("mm_processor_kwargs", &["{}"], ""),
];

/// In `/apply-template`, from the same.
pub(crate) const TEMPLATE: &[CompatField] = &[
    off("add_generation_prompt", &["true"], ""),
    off("continue_final_message", &["false"], ""),
    unsupported("chat_template", ""),
    off("chat_template_kwargs", &["{}"], ""),
];
