//! The architectures: each is a file that reads a configuration and names tensors.
//!
//! Fields that a configuration leaves out have the [defaults] of transformers' configuration classes, but sizes of a whole
//! file have none: a file without them is truncated.

mod adjust;
mod bloom;
mod cohere;
mod deepseek;
mod defaults;
mod exaone4;
mod experts;
mod falcon;
mod family;
mod fields;
mod gemma;
mod gemma4;
mod glm;
mod glm_moe;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod hunyuan;
mod llama;
mod llama4;
mod mistral;
mod mixtral;
mod mpt;
mod nemotron;
mod olmo;
mod opt;
mod phi;
mod phi3;
mod qwen;
mod qwen_moe;
mod remote_code;
mod smollm3;
mod stablelm;
mod starcoder2;

use serde_json::Value;

use self::defaults::Place;
use super::{
    blueprint::Blueprint,
    json_config::{JsonConfig, JsonConfigError},
};

/// Reads the configuration of one architecture.
type Read = fn(&JsonConfig) -> Result<Blueprint, JsonConfigError>;

/// Every architecture, by its `model_type`.
const ARCHITECTURES: [(&str, Read); 72] = [
    ("apertus", llama::read_apertus),
    ("arcee", llama::read_arcee),
    ("baichuan", remote_code::read_baichuan),
    ("biogpt", opt::read_biogpt),
    ("bloom", bloom::read),
    ("chatglm", remote_code::read_chatglm),
    ("codegen", gptj::read_codegen),
    ("cohere", cohere::read),
    ("cohere2", cohere::read_2),
    ("cwm", llama::read_cwm),
    ("deepseek_v2", deepseek::read_2),
    ("deepseek_v3", deepseek::read_3),
    ("ernie4_5", llama::read_ernie4_5),
    ("ernie4_5_moe", glm_moe::read_ernie4_5),
    ("exaone", remote_code::read_exaone),
    ("exaone4", exaone4::read),
    ("falcon", falcon::read),
    ("gemma", gemma::read_1),
    ("gemma2", gemma::read_2),
    ("gemma3_text", gemma::read_3),
    ("gemma4_text", gemma4::read),
    ("gemma4_unified_text", gemma4::read),
    ("glm", glm::read),
    ("glm4", glm::read_4),
    ("glm4_moe", glm_moe::read_glm4),
    ("gpt2", gpt2::read),
    ("gpt_bigcode", gpt_neo::read_bigcode),
    ("gpt_neo", gpt_neo::read),
    ("gpt_neox", gpt_neox::read),
    ("gpt_oss", gpt_oss::read),
    ("gptj", gptj::read),
    ("granite", granite::read),
    ("granitemoe", granite::read_moe),
    ("helium", llama::read_helium),
    ("hunyuan_v1_dense", hunyuan::read),
    ("hunyuan_v1_moe", glm_moe::read_hunyuan),
    ("hyperclovax", granite::read_hyperclovax),
    ("internlm2", remote_code::read_internlm2),
    ("internlm3", llama::read),
    ("iquestcoder", llama::read),
    ("jais2", llama::read_jais2),
    ("llama", llama::read),
    ("llama4_text", llama4::read),
    ("ministral", mistral::read_ministral),
    ("ministral3", mistral::read_ministral3),
    ("mistral", mistral::read),
    ("mixtral", mixtral::read),
    ("mpt", mpt::read),
    ("nanochat", hunyuan::read_nanochat),
    ("nemotron", nemotron::read),
    ("olmo", olmo::read),
    ("olmo2", olmo::read_2),
    ("olmo3", olmo::read_3),
    ("olmoe", qwen_moe::read_olmoe),
    ("opt", opt::read),
    ("persimmon", gpt_neox::read_persimmon),
    ("phi", phi::read),
    ("phi3", phi3::read),
    ("phimoe", mixtral::read_phimoe),
    ("qwen2", qwen::read_2),
    ("qwen2_5_vl_text", qwen::read_2_vl),
    ("qwen2_moe", qwen_moe::read_2),
    ("qwen2_vl_text", qwen::read_2_vl),
    ("qwen3", qwen::read_3),
    ("qwen3_moe", qwen_moe::read_3),
    ("qwen3_vl_text", qwen::read_3_vl),
    ("seed_oss", llama::read_seed_oss),
    ("smollm3", smollm3::read),
    ("stablelm", stablelm::read),
    ("starcoder2", starcoder2::read),
    ("vaultgemma", gemma::read_vault),
    ("xglm", opt::read_xglm),
];

/// Multimodal models whose older files have the settings of the text model beside those of vision, and the type of those.
const FLAT: [(&str, &str); 2] = [("qwen2_5_vl", "qwen2_5_vl_text"), ("qwen2_vl", "qwen2_vl_text")];

/// Names of remote code for architectures that transformers has by another.
const OTHER_NAMES: [(&str, &str); 2] = [("RefinedWeb", "falcon"), ("RefinedWebModel", "falcon")];

/// Where models that also see or hear keep the settings of their text model.
pub(super) const TEXT: &str = "text_config";

const TYPE: &str = "model_type";

/// The blueprint of the model that `config` describes.
pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    refuse_unsupported(config)?;
    // Only one level: no model nests these sections, and each level would copy all levels within it.
    let blueprint = match config.section(TEXT)? {
        Some(text) => {
            refuse_unsupported(&text)?;
            read_text(&with_tie(text, config)?, Place::Section)
        }
        None => read_text(config, Place::Whole),
    };
    Ok(blueprint?.with_supported_heads())
}

fn read_text(config: &JsonConfig, place: Place) -> Result<Blueprint, JsonConfigError> {
    let supported = ARCHITECTURES.map(|(name, _)| name).join(", ");
    let stated = config.text(TYPE)?.ok_or_else(|| config.missing(TYPE, supported.clone()))?;
    let others = FLAT.iter().chain(&OTHER_NAMES);
    let name = others.copied().find(|(other, _)| *other == stated).map_or(stated, |(_, name)| name);
    match ARCHITECTURES.iter().find(|(known, _)| *known == name) {
        Some((_, read)) => read(&defaults::complete(config, name, place)),
        None => Err(config.unsupported(TYPE, supported)),
    }
}

/// The settings of the text model in `whole`, where the whole model decides whether the head is tied.
fn with_tie(text: JsonConfig, whole: &JsonConfig) -> Result<JsonConfig, JsonConfigError> {
    const TIE: &str = "tie_word_embeddings";
    let default = whole.text(TYPE)?.and_then(defaults::is_tied);
    let is_tied = match (whole.get(TIE), default) {
        (Some(_), _) => whole.flag(TIE, false)?,
        (None, Some(true)) => true,
        // These classes take it over from the text model.
        (None, Some(false)) => text.flag(TIE, false)?,
        (None, None) => return Ok(text),
    };
    Ok(text.with(TIE, is_tied))
}

/// Refuses settings that change the model in a way that no architecture here has.
fn refuse_unsupported(config: &JsonConfig) -> Result<(), JsonConfigError> {
    if config.get("quantization").is_some_and(|settings| settings.get("group_size").is_some()) {
        let supported = "weights in float32, float16 or bfloat16, and these are packed (MLX); take the model that they \
                         were quantized from, and quantize it here with --quantize";
        return Err(config.unsupported("quantization", supported));
    }
    fields::require_flag(config, "is_causal", true)?;
    // A string names the tokens of images, which text does not have.
    if matches!(config.get("use_bidirectional_attention"), Some(Value::Bool(true))) {
        return Err(config.unsupported("use_bidirectional_attention", "false"));
    }
    Ok(())
}
