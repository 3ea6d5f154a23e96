//! Fields of OpenAI's API, by route and by object, and those that its clients add.

use crate::http::request::schema::compat_fields;

compat_fields! {
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
    }

    /// In routes whose answers are not stored.
    pub(crate) NOT_STORED {
        "store": off(false), "only /v1/responses stores answers";
    }

    /// In a text that is sent as an object.
    pub(crate) TEXT_OBJECT {
        "multimodal_data": off([]);
    }

    /// In `/v1/completions`.
    pub(crate) COMPLETIONS {
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
        "add_special_tokens": off(false);
        "audio": unsupported();
        // A predicted answer, to speed up generation.
        "prediction": any(Object);
        "web_search_options": unsupported();
    }

    /// In `/v1/responses`.
    pub(crate) RESPONSES {
        "background": off(false), "send the request in the foreground, streamed if it takes long";
        // Items that no answer has.
        "include": items(
            "reasoning.encrypted_content", "web_search_call.results", "web_search_call.action.sources",
            "file_search_call.results", "code_interpreter_call.outputs",
            "computer_call_output.output.image_url", "message.input_image.image_url"
        );
        "truncation": off("disabled");
        "top_logprobs": off(0);
        "conversation": unsupported(), "send previous_response_id, or the whole conversation as input";
        // Limits the tools that OpenAI's servers run.
        "max_tool_calls": any(Number);
        "prompt": unsupported(), "send its text as instructions";
        "context_management": off([]);
        "client_metadata": any(Object);
    }

    /// In `stream_options`.
    pub(crate) STREAM_OPTIONS {
        "include_obfuscation": any(Boolean);
    }

    /// In `text` of `/v1/responses`.
    pub(crate) TEXT_OPTIONS {
        "verbosity": any(String);
    }

    /// In a message: fields of an answer that clients send back, and marks that they add.
    pub(crate) MESSAGE {
        "refusal": off("");
        "reasoning_details": any(Array);
        "audio": unsupported();
        "annotations": any(Array);
        "function_call": unsupported(), "use tool_calls";
        "images": off([]);
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

    /// In a request of Anthropic's API.
    pub(crate) ANTHROPIC {
        "metadata", "context_management", "cache_control": any(Object);
        "service_tier", "speed", "inference_geo", "container": any(String);
        "betas": any(Array);
        "mcp_servers": off([]);
    }

    /// In a request of Ollama's API.
    pub(crate) OLLAMA {
        "truncate", "shift", "logprobs": any(Boolean);
        "top_logprobs": off(0);
        "format_schema", "images": off([]);
        "user": any(String);
    }

    /// In requests for embeddings.
    pub(crate) EMBEDDINGS {
        "user", "input_type", "instruction", "embedding_type": any(String);
        "add_special_tokens", "truncate": off(true);
        "truncate_prompt_tokens", "truncation": off(-1, false), "send shorter texts";
        "rank_fields", "max_chunks_per_doc", "max_tokens_per_doc": unsupported(), "send shorter texts";
        "late_chunking", "raw_scores": off(false);
        "task": any(String);
    }

    /// In requests of Ollama's API for embeddings.
    pub(crate) OLLAMA_EMBED {
        "truncate": any(Boolean);
        "options": any(Object);
        "user": any(String);
    }

    /// In a request of Ollama's `/api/generate`.
    pub(crate) OLLAMA_GENERATE {
        "suffix", "template": off("");
        "context": off([]), "send the whole conversation to /api/chat";
    }

    /// In the options of Ollama's requests: settings of the server, and samplers that are off.
    pub(crate) OLLAMA_OPTIONS {
        "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "repeat_last_n", "draft_num_predict",
        "mirostat_tau", "mirostat_eta": any(Number);
        "numa", "low_vram", "f16_kv", "vocab_only", "use_mmap", "use_mlock", "logits_all", "embedding_only",
        "penalize_newline": any(Boolean);
        "mirostat": off(0);
        "tfs_z": off(1);
    }

    /// In a message of Ollama's API.
    pub(crate) OLLAMA_MESSAGE {
        "images": off([]);
        "name": any(String);
    }

    /// In a call of Ollama's API.
    pub(crate) OLLAMA_CALL {
        "type", "description": any(String);
        "index": any(Number);
    }

    /// In a request of Ollama's `/api/show`.
    pub(crate) OLLAMA_SHOW {
        "system", "template": off("");
        "options": any(Object);
    }

    /// In a tool of Anthropic's API.
    pub(crate) ANTHROPIC_TOOL {
        "input_examples", "allowed_callers": any(Array);
        "eager_input_streaming": any(Boolean);
    }

    /// In a message or a block of Anthropic's API.
    pub(crate) ANTHROPIC_BLOCK {
        "cache_control", "caller": any(Object);
        "citations": any(Any);
        "signature", "id", "name": any(String);
    }

    /// In an item of reasoning: what only the server that wrote it can read.
    pub(crate) REASONING_ITEM {
        "encrypted_content": any(String);
    }

    /// In a tool.
    pub(crate) TOOL {
        "cache_control": any(Object);
        "defer_loading": off(false);
    }

    /// In `/tokenize`, from llama-server and vLLM.
    pub(crate) TOKENIZE {
        "parse_special": off(true);
        "chat_template": unsupported();
        "mm_processor_kwargs": off({});
    }

    /// In `/apply-template`, from the same.
    pub(crate) TEMPLATE {
        "chat_template": unsupported();
    }
}
