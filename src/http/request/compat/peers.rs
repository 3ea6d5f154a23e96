//! Fields of other servers with OpenAI's API, which clients send to any of them.

use crate::http::request::schema::compat_fields;

compat_fields! {
    /// In all generating routes.
    pub(crate) PEERS {
        // Sampling.
        "mirostat", "mirostat_mode", "top_a", "nsigma", "xtc_probability", "dynatemp_range",
        "dynatemp_min", "dynatemp_max", "smoothing_factor", "epsilon_cutoff", "eta_cutoff": off(0);
        "mirostat_tau", "mirostat_eta", "xtc_threshold", "dynatemp_exponent", "smoothing_curve",
        "adaptive_decay", "min_keep": any(Number);
        "tfs", "tfs_z": off(1);
        "typ_p", "typical": off(1), "use typical_p";
        "top_n_sigma": off(-1, 0);
        "dynamic_temperature": off(false);
        "adaptive_target": off(-1);
        "temperature_last", "backend_sampling": any(Boolean);
        "samplers", "sampler_priority": unsupported();
        "do_sample": off(true), "send temperature 0 to always take the most probable token";
        // Penalties for repetition.
        "repeat_penalty": off(1), "use repetition_penalty";
        "repeat_last_n": off(-1, 0, 64);
        "repetition_penalty_range", "no_repeat_ngram_size", "dry_range", "max_repetition_pattern_size",
        "min_repetition_pattern_size", "repetition_min_count": off(0);
        "encoder_repetition_penalty": off(1);
        "dry_penalty_last_n": off(-1);
        "penalize_nl": any(Boolean);
        "repetition_detection": unsupported();
        // Beam search and choices.
        "best_of", "n_cmpl": off(1), "use n";
        "use_beam_search": off(false);
        "num_beams", "guidance_scale", "cfg_scale": off(1);
        "length_penalty": any(Number);
        "early_stopping": any(Boolean);
        "penalty_alpha": off(0);
        "negative_prompt": off("");
        // End of the answer.
        "min_new_tokens": off(0), "use min_tokens";
        "n_indent": off(0);
        "n_predict", "num_predict": off(-1), "use the route's limit of tokens, such as max_tokens";
        "t_max_predict_ms": off(-1, 0), "use max_time_ms";
        "t_max_prompt_ms": off(-1, 0);
        "stop_regex": off([], ""), "use stop";
        "ban_eos_token": off(false), "use ignore_eos";
        // Tokens that are allowed.
        "bad_words_ids": off([]), "use bad_words";
        "custom_token_bans": off("", []), "use bad_words";
        "logits_processors": off([]);
        "custom_logit_processor": unsupported();
        "watermark": off(false);
        // Format of the text.
        "skip_special_tokens", "detokenize": off(true);
        "spaces_between_special_tokens": any(Boolean);
        "include_stop_str_in_output", "no_stop_trim", "echo", "return_full_text": off(false);
        // Form of the answer.
        "guided_decoding_backend", "guided_whitespace_pattern": any(String);
        "structural_tag": unsupported(), "use response_format or structured_outputs";
        "ebnf": off(""), "use grammar";
        "format": off(""), "use response_format";
        "guideline": off("");
        "grammar_lazy": off(false);
        "grammar_triggers", "preserved_tokens": off([]);
        // The prompt.
        "raw": off(false);
        "add_bos_token": any(Boolean);
        "documents", "image_data", "multimodal_data", "images", "context", "transforms": off([]);
        "chat_template", "tool_prompt", "template": off("");
        "mm_processor_kwargs": off({});
        "truncate", "truncate_prompt_tokens", "prompt_embeds": unsupported();
        "input_ids": unsupported(), "send token ids as prompt";
        "system": off(""), "send a message of the role system";
        "options", "extra_body": off({}), "send its fields beside the others";
        "safe_prompt": off(false), "send a message of the role system";
        // Thinking.
        "thinking_forced_open": off(false);
        "separate_reasoning", "stream_reasoning", "reasoning_in_content", "parse_tool_calls": any(Boolean);
        // Further output.
        "n_probs", "top_n_tokens": off(0), "use logprobs";
        "usage": object(USAGE);
        "post_sampling_probs", "return_cached_tokens_details", "timings_per_token": any(Boolean);
        "details", "decoder_input_details", "return_tokens", "flat_logprobs", "return_hidden_states", "return_routed_experts": off(false);
        "response_fields": off([]);
        // Adapters and other models.
        "lora", "models", "plugins": off([]);
        "lora_path", "adapter_id": unsupported(), "send the adapter's model as model";
        "provider", "custom_params", "vllm_xargs", "kv_transfer_params", "session_params": off({});
        // Scheduling.
        "request_id", "rid", "extra_key", "bootstrap_host": any(String);
        "id_slot", "slot_id", "n_keep", "n_discard", "n_cache_reuse", "data_parallel_rank",
        "bootstrap_port", "bootstrap_room", "speculative.n_max", "speculative.n_min",
        "speculative.p_min": any(Number);
    }

    /// In routes without details of tokens.
    pub(crate) WITHOUT_TOKENS {
        "prompt_logprobs": unsupported(), "use /v1/completions or /v1/chat/completions";
        "return_tokens_as_token_ids", "return_token_ids": off(false), "use /v1/completions or /v1/chat/completions";
    }

    /// In routes that do not tell reasoning from other text, fields for it and for chat templates.
    pub(crate) WITHOUT_THINKING {
        "think", "enable_thinking", "continue_final_message": off(false);
        "thinking": off_json(r#"{"type":"disabled"}"#);
        "thinking_token_budget", "thinking_budget": off(-1), "use /v1/chat/completions";
        "reasoning_effort": off("none"), "use /v1/chat/completions";
        "include_reasoning", "add_generation_prompt": off(true);
        "reasoning_format": off("none", "auto");
        "chat_template_kwargs": off({}), "use /v1/chat/completions";
    }

    /// In `structured_outputs`.
    pub(crate) STRUCTURED_OUTPUTS {
        "disable_any_whitespace", "disable_additional_properties", "disable_fallback": any(Boolean);
        "whitespace_pattern", "_backend": any(String);
    }

    /// In `usage`.
    USAGE {
        "include": any(Boolean);
    }
}
