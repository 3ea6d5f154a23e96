//! Fields of OpenAI's API, by route and by object, and those that its clients add.

use crate::http::request::schema::compat_fields;

compat_fields! {
    pub(crate) NO_REASONING {
        "effort": off("none");
        "enabled": off(false);
        "max_tokens": off(0);
        "exclude": any(Boolean);
        "summary", "generate_summary": any(String);
    }

    /// In a schema with a name: texts for models that see them, which no chat template shows.
    pub(crate) NAMED_SCHEMA {
        "name", "description": any(String);
        "strict": any(Boolean);
    }

    /// In all generating routes.
    pub(crate) OPENAI {
        "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "verbosity": any(String);
        "metadata": any(Object);
        "store": off(false), "answers are not stored";
    }

    /// In `/v1/completions`.
    pub(crate) COMPLETIONS {
        "suffix": off("");
        "add_special_tokens": off(true), "send token ids as prompt";
    }

    /// Fields for tools, in routes without tools.
    pub(crate) WITHOUT_TOOLS {
        "tools": off([]), "use /v1/chat/completions";
        "tool_choice": off("none", "auto"), "use /v1/chat/completions";
        "parallel_tool_calls": any(Boolean);
    }

    /// In routes with one answer and without log-probabilities.
    pub(crate) SINGLE {
        "n": off(1), "send the request once for each answer";
        "logprobs": off(false);
    }

    /// In `/v1/chat/completions`.
    pub(crate) CHAT {
        "functions": off([]), "use tools";
        "function_call": off("none", "auto"), "use tool_choice";
        "modalities": off(["text"]);
        "reasoning_effort": off("none");
        "add_special_tokens": off(false);
        "audio": unsupported();
        // A predicted answer, to speed up generation.
        "prediction": any(Object);
        "web_search_options": unsupported();
        "reasoning": object(NO_REASONING);
    }

    /// In `/v1/responses`.
    pub(crate) RESPONSES {
        "background": off(false);
        // Items that no answer has.
        "include": items(
            "reasoning.encrypted_content", "web_search_call.results", "web_search_call.action.sources",
            "file_search_call.results", "code_interpreter_call.outputs",
            "computer_call_output.output.image_url", "message.input_image.image_url"
        );
        "truncation": off("disabled");
        "top_logprobs": off(0);
        "previous_response_id", "conversation": unsupported(), "send the whole conversation as input";
        "reasoning": object(NO_REASONING);
        // Limits the tools that OpenAI's servers run.
        "max_tool_calls": any(Number);
        "prompt": unsupported(), "send its text as instructions";
        "context_management": off([]);
    }

    /// In `stream_options`.
    pub(crate) STREAM_OPTIONS {
        "include_obfuscation": any(Boolean);
        "continuous_usage_stats": off(false);
    }

    /// In `text` of `/v1/responses`.
    pub(crate) TEXT_OPTIONS {
        "verbosity": any(String);
    }

    /// In a message: fields of an answer that clients send back, and marks that they add.
    pub(crate) MESSAGE {
        "refusal", "reasoning_content", "reasoning": off("");
        "audio": unsupported();
        "annotations": any(Array);
        "function_call": unsupported(), "use tool_calls";
        "images": off([]);
        "prefix", "partial": off(false);
        "id": any(String);
        "cache_control", "provider_specific_fields": any(Object);
    }

    /// In a part of a message.
    pub(crate) PART {
        "annotations", "logprobs": any(Array);
        "cache_control": any(Object);
    }

    /// In a call of a message.
    pub(crate) CALL {
        "index": any(Number);
        "provider_specific_fields": any(Object);
    }

    /// In the function of a call: OpenAI's client adds parsed arguments.
    pub(crate) CALLED_FUNCTION {
        "parsed_arguments": any(Any);
        "provider_specific_fields": any(Object);
    }

    /// In an item of `/v1/responses` that is sent back.
    pub(crate) ITEM {
        "id", "status", "phase": any(String);
    }

    /// In a tool.
    pub(crate) TOOL {
        "cache_control": any(Object);
        "defer_loading": off(false);
    }

    /// In `/tokenize`, from llama-server and vLLM.
    pub(crate) TOKENIZE {
        "parse_special", "add_generation_prompt": off(true);
        "continue_final_message": off(false);
        "return_token_strs": off(false), "use with_pieces";
        "chat_template": unsupported();
        "chat_template_kwargs", "mm_processor_kwargs": off({});
    }

    /// In `/apply-template`, from the same.
    pub(crate) TEMPLATE {
        "add_generation_prompt": off(true);
        "continue_final_message": off(false);
        "chat_template": unsupported();
        "chat_template_kwargs": off({});
    }
}
