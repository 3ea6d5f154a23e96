//! Fields of OpenAI's API that eka does not have, route by route and object by object, and of what clients add to them.

use super::other_field::{
    Kind::{Anything, Flag, List, Number, Object, Text},
    OtherField, array, inert, object, off, unsupported,
};

pub(crate) const NO_REASONING: &[OtherField] = &[
    off("effort", &["\"none\""], ""),
    off("enabled", &["false"], ""),
    off("max_tokens", &["0"], ""),
    inert("exclude", Flag),
    inert("summary", Text),
    inert("generate_summary", Text),
];

/// OpenAI's, of all generating routes.
pub(crate) const OPENAI: &[OtherField] = &[
    inert("user", Text),
    inert("metadata", Object),
    inert("safety_identifier", Text),
    inert("prompt_cache_key", Text),
    inert("prompt_cache_retention", Text),
    inert("verbosity", Text),
    off("store", &["false"], "; no answers are kept"),
];

/// OpenAI's completions.
pub(crate) const COMPLETIONS: &[OtherField] =
    &[off("suffix", &["\"\""], ""), off("add_special_tokens", &["true"], "; send token ids as prompt")];

/// Chat completions' about tools, of routes that have none.
pub(crate) const WITHOUT_TOOLS: &[OtherField] = &[
    off("tools", &["[]"], "; use /v1/chat/completions"),
    off("tool_choice", &["\"none\"", "\"auto\""], "; use /v1/chat/completions"),
    inert("parallel_tool_calls", Flag),
];

/// Chat completions' about choices and their scores, of routes that answer once and without scores.
pub(crate) const SINGLE: &[OtherField] =
    &[off("n", &["1"], "; send the request once for each answer"), off("logprobs", &["false"], "")];

/// OpenAI's chat completions.
pub(crate) const CHAT: &[OtherField] = &[
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
pub(crate) const RESPONSES: &[OtherField] = &[
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
pub(crate) const STREAM_OPTIONS: &[OtherField] =
    &[inert("include_obfuscation", Flag), off("continuous_usage_stats", &["false"], "")];

/// Of `text` in responses.
pub(crate) const TEXT_OPTIONS: &[OtherField] = &[inert("verbosity", Text)];

/// Of a message: what clients send back of an answer, or mark it with.
pub(crate) const MESSAGE: &[OtherField] = &[
    off("refusal", &["\"\""], ""),
    unsupported("audio", ""),
    inert("annotations", List),
    off("tool_calls", &["[]"], "; only messages of the assistant have calls"),
    unsupported("tool_call_id", "; only messages of the role tool have one"),
    unsupported("function_call", "; use tool_calls"),
    off("reasoning_content", &["\"\""], ""),
    off("reasoning", &["\"\""], ""),
    off("images", &["[]"], ""),
    off("prefix", &["false"], ""),
    off("partial", &["false"], ""),
    inert("id", Text),
    inert("cache_control", Object),
    inert("provider_specific_fields", Object),
];

/// Of a part of a message.
pub(crate) const PART: &[OtherField] =
    &[inert("annotations", List), inert("logprobs", List), inert("cache_control", Object)];

/// Of a call in a message.
pub(crate) const CALL: &[OtherField] = &[inert("index", Number), inert("provider_specific_fields", Object)];

/// Of the function of a call: what OpenAI's client adds when it parses.
pub(crate) const CALLED_FUNCTION: &[OtherField] =
    &[inert("parsed_arguments", Anything), inert("provider_specific_fields", Object)];

/// Of an item of responses that is sent back.
pub(crate) const ITEM: &[OtherField] = &[inert("id", Text), inert("status", Text), inert("phase", Text)];

/// Of a tool.
pub(crate) const TOOL: &[OtherField] =
    &[inert("cache_control", Object), off("defer_loading", &["false"], "")];

/// llama-server's and vLLM's, of `/tokenize`.
pub(crate) const TOKENIZE: &[OtherField] = &[
    off("parse_special", &["true"], ""),
    off("add_generation_prompt", &["true"], ""),
    off("continue_final_message", &["false"], ""),
    off("return_token_strs", &["false"], "; use with_pieces"),
    unsupported("chat_template", ""),
    off("chat_template_kwargs", &["{}"], ""),
    off("mm_processor_kwargs", &["{}"], ""),
];

/// The same of `/apply-template`.
pub(crate) const TEMPLATE: &[OtherField] = &[
    off("add_generation_prompt", &["true"], ""),
    off("continue_final_message", &["false"], ""),
    unsupported("chat_template", ""),
    off("chat_template_kwargs", &["{}"], ""),
];
