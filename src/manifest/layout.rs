//! Names and largest sizes of the files beside a model's weights, as `transformers` writes them.
//!
//! `export` copies them and `text` reads them. The limits are several times the largest published files.

use crate::units::Bytes;

/// The tokenizer, in the format of the `tokenizers` library.
pub const TOKENIZER: &str = "tokenizer.json";

/// Further settings of the tokenizer.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Special tokens by name, where older versions kept them.
pub const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";

/// How to sample, and where to end.
pub const GENERATION_CONFIG: &str = "generation_config.json";

/// The chat template named `default`.
pub const TEMPLATE: &str = "chat_template.jinja";

/// The chat template named `tool_use`.
pub const TOOL_TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";

/// Chat templates of a multimodal processor, in JSON.
pub const PROCESSOR_TEMPLATE: &str = "chat_template.json";

/// Largest `tokenizer.json` that is read. Gemma 3's, the largest of a common model, has 33 MB.
pub const MAX_TOKENIZER: Bytes = Bytes::mib(256);

/// Largest chat template that is read. Published ones have some tens of kilobytes.
pub const MAX_TEMPLATE: Bytes = Bytes::mib(1);
