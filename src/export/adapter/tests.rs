//! Adapters against the blueprint of a tiny Llama.

use std::{fs, path::Path};

use super::*;
use crate::export::{
    blueprint::{Blueprint, LmHead},
    testing::{self, Tensor},
};

const QUERY: &str = "model.layers.0.self_attn.q_proj";
const EMBEDDING: &str = "model.embed_tokens";

fn config(more: &str) -> String {
    format!(r#"{{"peft_type": "LORA", "r": 2, "lora_alpha": 8, {more} "bias": "none"}}"#)
}

fn open(dir: &Path, more: &str, tensors: &[Tensor]) -> Result<Adapter, AdapterError> {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join(CONFIG), config(more)).unwrap();
    testing::write(&dir.join("adapter_model.safetensors"), tensors);
    Adapter::open(dir, 1.0)
}

/// Lays one adapter over a model whose head is tied or not.
fn merge_plan(tied: bool, more: &str, tensors: &[Tensor]) -> Result<(MergePlan, Blueprint), AdapterError> {
    let dir = tempfile::tempdir().unwrap();
    MergePlan::new(vec![open(dir.path(), more, tensors)?], testing::blueprint(tied))
}

fn refusal(tied: bool, more: &str, tensors: &[Tensor]) -> String {
    merge_plan(tied, more, tensors).unwrap_err().to_string()
}

fn tensor(name: &str, shape: &[usize]) -> Tensor {
    Tensor::new(&format!("base_model.model.{name}"), shape)
}

fn pair(module: &str, [rows, cols]: [usize; 2]) -> [Tensor; 2] {
    [
        tensor(&format!("{module}.lora_A.weight"), &[2, cols]),
        tensor(&format!("{module}.lora_B.weight"), &[rows, 2]),
    ]
}

fn table(module: &str, rows: usize) -> Tensor {
    tensor(&format!("{module}.weight"), &[rows, 64])
}

#[test]
fn modules_and_shapes_must_be_the_bases() {
    merge_plan(true, "", &pair(QUERY, [64, 64])).unwrap();
    let message = refusal(true, "", &pair(QUERY, [64, 63]));
    assert!(message.contains("[2, 63]") && message.contains("[2, 64]"), "{message}");
    let message = refusal(true, "", &pair("model.layers.9.self_attn.q_proj", [64, 64]));
    assert!(message.contains("layers.9.self_attn.q_proj.lora_A.weight"), "{message}");
    let message = refusal(true, r#""rank_pattern": {"q_proj": 4},"#, &pair(QUERY, [64, 64]));
    assert!(message.contains("[4, 64]"), "{message}");
}

#[test]
fn adapters_of_the_model_without_its_head_fit_as_well() {
    let more = r#""target_modules": ["q_proj"], "rank_pattern": {"^layers.0.*": 2}, "r": 4,"#;
    merge_plan(true, more, &pair("layers.0.self_attn.q_proj", [64, 64])).unwrap();
}

#[test]
fn every_tensor_that_nothing_uses_is_named() {
    let unused = [
        tensor("model.norm.bias", &[64]),
        tensor("model.norm.lora_A.weight", &[2, 64]),
        tensor("model.embed_tokens.lora_A.weight", &[2, 64]),
        tensor("model.layers.1.self_attn.q_proj.lora_C.weight", &[2, 2]),
        tensor("model.layers.1.self_attn.q_proj.lora_B.bias", &[64]),
    ];
    let message = refusal(true, "", &[&pair(QUERY, [64, 64])[..], &unused].concat());
    for Tensor { name, .. } in &unused {
        assert!(message.contains(name), "{name} in {message}");
    }
}

#[test]
fn an_incomplete_pair_is_named_with_the_missing_half() {
    let [a, b] = pair(QUERY, [64, 64]);
    let magnitude = tensor(&format!("{QUERY}.lora_magnitude_vector"), &[64]);
    for (more, tensors, expected) in [
        ("", vec![b.clone()], "has lora_B but no lora_A"),
        ("", vec![a.clone()], "has lora_A but no lora_B"),
        (r#""use_dora": true,"#, vec![magnitude.clone()], "has lora_magnitude_vector but no lora_A"),
        (r#""use_dora": true,"#, vec![a.clone(), b.clone()], "has lora_A but no lora_magnitude_vector"),
        ("", vec![a, b, magnitude], "use_dora is off"),
    ] {
        let message = refusal(true, more, &tensors);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn tensors_of_modules_that_the_settings_leave_out_are_named_with_the_setting() {
    for (more, expected) in [
        (r#""target_modules": ["k_proj"],"#, "target_modules does not name it"),
        (r#""target_modules": ["q_proj"], "exclude_modules": ["q_proj"],"#, "exclude_modules names it"),
        (r#""target_modules": ["q_proj"], "layers_to_transform": [1],"#, "layers_to_transform"),
    ] {
        let message = refusal(true, more, &pair(QUERY, [64, 64]));
        assert!(message.contains(expected) && message.contains("q_proj.lora_A"), "{message}");
    }
}

#[test]
fn a_module_that_the_settings_name_must_have_tensors() {
    let pair = pair(QUERY, [64, 64]);
    for (more, missing) in [
        (r#""target_modules": ["q_proj", "k_proj"],"#, "target_modules names \"k_proj\""),
        (r#""target_modules": ["q_proj", "model.embed_tokens"],"#, "\"model.embed_tokens\""),
        (r#""modules_to_save": ["lm_head"],"#, "modules_to_save names \"lm_head\""),
    ] {
        let message = refusal(true, more, &pair);
        assert!(message.contains(missing), "{message}");
    }
    for more in [
        r#""target_modules": ["q_proj", "c_attn", "query_key_value"],"#,
        r#""target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"],"#,
        r#""target_modules": ["q_proj", "k_proj"], "exclude_modules": "model.*k_proj","#,
        r#""target_modules": ["model.layers.0.self_attn.q_proj"],"#,
    ] {
        merge_plan(true, more, &pair).unwrap();
    }
}

#[test]
fn a_head_that_the_adapter_saves_whole_is_untied() {
    let is_tied = |more: &str, tensors: &[Tensor]| {
        matches!(merge_plan(true, more, tensors).unwrap().1.head, LmHead::Tied { .. })
    };
    let [embedding, head] = [EMBEDDING, "lm_head"].map(|module| table(module, 50));
    assert!(!is_tied(r#""modules_to_save": ["embed_tokens"],"#, std::slice::from_ref(&embedding)));
    assert!(!is_tied(r#""modules_to_save": ["lm_head"],"#, std::slice::from_ref(&head)));
    let both = r#""modules_to_save": ["embed_tokens", "lm_head"],"#;
    assert!(!is_tied(both, &[embedding.clone(), head.clone()]));
    let same = Tensor { values: embedding.values.clone(), ..head };
    assert!(is_tied(both, &[embedding.clone(), same.clone()]));
    // Saved because the vocabulary was thought to have grown: the base's table, in both places.
    assert!(is_tied("", &[embedding, same]));
}

#[test]
fn copies_of_a_shared_table_must_be_the_same() {
    let message = refusal(true, "", &[table(EMBEDDING, 50), table("lm_head", 50)]);
    assert!(message.contains("embed_tokens.weight") && message.contains("differ"), "{message}");
}

#[test]
fn the_vocabulary_has_as_many_tokens_as_the_adapters_tables() {
    let more = r#""modules_to_save": ["embed_tokens", "lm_head"],"#;
    let (_, blueprint) = merge_plan(false, more, &[table(EMBEDDING, 58), table("lm_head", 58)]).unwrap();
    assert_eq!((blueprint.dims.vocab, blueprint.embedding.table.shape.rows()), (58, 58));
    let more = r#""modules_to_save": ["embed_tokens"],"#;
    assert!(refusal(true, more, &[table(EMBEDDING, 0)]).contains("1 to 16777216 rows"));
    for tied in [true, false] {
        let message = refusal(tied, more, &[table(EMBEDDING, 58)]);
        assert!(message.contains("58 rows") && message.contains("lm_head.weight has 50"), "{message}");
    }
}

#[test]
fn replaced_rows_are_those_of_tokens_that_there_are() {
    let delta = tensor("model.embed_tokens.token_adapter.trainable_tokens_delta", &[2, 64]);
    let try_tokens = |more: &str| merge_plan(true, more, std::slice::from_ref(&delta));
    try_tokens(r#""trainable_token_indices": [49, 3],"#).unwrap();
    let message = |more| try_tokens(more).unwrap_err().to_string();
    assert!(
        message(r#""trainable_token_indices": [3, 50],"#).contains("token 50, and the vocabulary has 50")
    );
    assert!(message(r#""trainable_token_indices": [3],"#).contains("[1, 64]"));
    assert!(message("").contains("trainable_token_indices"));
}

#[test]
fn replaced_rows_and_low_rank_matrices_cannot_share_a_table() {
    let delta = tensor("model.embed_tokens.token_adapter.trainable_tokens_delta", &[1, 64]);
    let tensors = [&pair("lm_head", [50, 64])[..], &[delta]].concat();
    let more = r#""trainable_token_indices": [3],"#;
    merge_plan(false, more, &tensors).unwrap();
    let message = refusal(true, more, &tensors);
    assert!(message.contains("lm_head.lora_A") && message.contains("trainable_token_indices"), "{message}");
}

#[test]
fn adapters_are_added_up_where_that_is_a_sum_and_refused_where_not() {
    let dir = tempfile::tempdir().unwrap();
    let magnitude = tensor(&format!("{QUERY}.lora_magnitude_vector"), &[64]);
    let dora = [&pair(QUERY, [64, 64])[..], &[magnitude]].concat();
    let saved = [table("model.norm", 1)].map(|norm| Tensor { shape: vec![64], ..norm });
    let open = |name: &str| match name {
        "dora" => open(&dir.path().join(name), r#""use_dora": true,"#, &dora),
        "saved" | "again" => open(&dir.path().join(name), r#""modules_to_save": ["norm"],"#, &saved),
        _ => open(&dir.path().join(name), "", &pair(QUERY, [64, 64])),
    };
    let try_both = |one, other| {
        MergePlan::new(vec![open(one).unwrap(), open(other).unwrap()], testing::blueprint(true)).map(drop)
    };
    try_both("plain", "other").unwrap();
    try_both("plain", "saved").unwrap();
    try_both("dora", "saved").unwrap();
    for (one, other, what) in [("plain", "dora", "DoRA"), ("saved", "again", "saved whole")] {
        let message = try_both(one, other).unwrap_err().to_string();
        for part in [format!("/{one}"), format!("/{other}"), what.into()] {
            assert!(message.contains(&part), "{part} in {message}");
        }
    }
}

#[test]
fn an_adapter_in_a_subfolder_is_found_and_several_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let opened = || Adapter::open(dir.path(), 1.0);
    assert!(opened().unwrap_err().to_string().contains(CONFIG));
    let pair = |name: &str, shape: &[usize]| {
        Tensor::new(&format!("base_model.model.layers.0.mlp.up_proj.{name}.weight"), shape)
    };
    for name in ["french", "hindi"] {
        let sub = dir.path().join(name);
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join(CONFIG), config("")).unwrap();
        testing::write(
            &sub.join("adapter_model.safetensors"),
            &[pair("lora_A", &[2, 8]), pair("lora_B", &[8, 2])],
        );
        if name == "french" {
            assert_eq!(opened().unwrap().dir(), sub);
        }
    }
    let message = opened().unwrap_err().to_string();
    assert!(message.contains("/french") && message.contains("/hindi"), "{message}");
}
