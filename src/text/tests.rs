//! The text side against a real tokenizer of ten languages, and against small ones of every other family.

use std::{
    fs,
    path::Path,
    sync::{Arc, LazyLock},
};

use proptest::{collection::vec, prelude::*};
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::manifest::{self, Dims, Dtype, GraphNames, Manifest, Provenance, SCHEMA};

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/base");
const EXPECTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/demo/expected.json");
const END_TOKENS: [u32; 2] = [2, 6];

#[derive(Deserialize)]
struct Expected {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    prompt: String,
    rendered: String,
    prompt_ids: Vec<u32>,
    merged: Answer,
    base: Answer,
}

#[derive(Deserialize)]
struct Answer {
    ids: Vec<u32>,
    text: String,
}

fn prompts() -> Vec<Prompt> {
    let expected: Expected = serde_json::from_slice(&fs::read(EXPECTED).unwrap()).unwrap();
    assert_eq!(expected.prompts.len(), 10);
    expected.prompts
}

fn answers() -> impl Iterator<Item = Answer> {
    prompts().into_iter().flat_map(|prompt| [prompt.merged, prompt.base])
}

/// A model directory with a manifest for `vocab` ids and nothing else.
fn model_dir(vocab: usize) -> tempfile::TempDir {
    let dims = Dims { layers: 1, hidden: 1, heads: 1, kv_heads: 1, head_dim: 1, intermediate: 1, vocab };
    let provenance =
        Provenance { exporter: "eka test".into(), sources: Vec::new(), adapters: Vec::new(), options: None };
    let manifest = Manifest {
        schema: SCHEMA,
        architecture: "llama".into(),
        dims,
        dtype: Dtype::Float32,
        quantization: None,
        overrides: Vec::new(),
        context_length: 512,
        end_tokens: END_TOKENS.into_iter().filter(|id| (*id as usize) < vocab).collect(),
        parameters: 1,
        graph: GraphNames::default(),
        provenance,
        files: Vec::new(),
    };
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(manifest::FILE_NAME), manifest.to_json()).unwrap();
    dir
}

fn demo_dir() -> tempfile::TempDir {
    let dir = model_dir(4096);
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(Path::new(BASE).join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn demo() -> &'static Arc<Text> {
    static DEMO: LazyLock<Arc<Text>> =
        LazyLock::new(|| Arc::new(Text::open(demo_dir().path(), "demo").unwrap()));
    &DEMO
}

/// A model whose tokenizer has these tokens, the first of them special, and this decoder.
fn small(tokens: &[&str], decoder: &Value) -> Arc<Text> {
    small_with(tokens, &[], decoder)
}

/// The same, with tokens `added` that users have added as text.
fn small_with(tokens: &[&str], added: &[usize], decoder: &Value) -> Arc<Text> {
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, &token)| (token.to_owned(), id.into())).collect();
    let added_token = |id: &usize| {
        json!({
            "id": id, "content": tokens[*id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": *id == 0,
        })
    };
    let added: Vec<Value> = [0].iter().chain(added).map(added_token).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": tokens[0]},
    });
    let dir = model_dir(tokens.len());
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Arc::new(Text::open(dir.path(), "small").unwrap())
}

const PIECES: [&str; 14] = [
    "<s>", "▁", "▁na", "mas", "▁▁te", "<0xE0>", "<0xA4>", "<0x95>", "<0x20>", "<0xFF>", "é", "न", "<0xC3>",
    "\u{fffd}",
];

fn sentence_pieces() -> Arc<Text> {
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    small(&PIECES, &decoder)
}

fn metaspace(scheme: &str) -> Arc<Text> {
    small(&PIECES, &json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true}))
}

/// A decoder without a table: the spaces are replaced after tokens are fused.
fn unusual() -> Arc<Text> {
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Replace", "pattern": {"Regex": "▁"}, "content": " "},
    ]});
    small(&PIECES, &decoder)
}

fn decode_with(text: &Arc<Text>, ids: &[u32], stops: &[&str]) -> (String, bool) {
    let mut decoder = text.detokenizer(stops.iter().map(ToString::to_string).collect());
    let (mut answer, mut stopped) = (String::new(), false);
    for &id in ids {
        let chunk = decoder.push(id);
        assert!(!stopped || chunk.text.is_empty(), "text after a stop string");
        answer += &chunk.text;
        stopped = chunk.stopped;
    }
    answer += &decoder.finish();
    (answer, stopped)
}

fn decode(text: &Arc<Text>, ids: &[u32]) -> String {
    decode_with(text, ids, &[]).0
}

/// What the `tokenizers` crate makes of all ids at once, without its marks for invalid bytes.
fn reference(text: &Text, ids: &[u32]) -> String {
    text.tokenizer.decode(ids, true).unwrap().replace('\u{fffd}', "")
}

#[test]
fn the_model_card_matches_the_directory() {
    let card = demo().card();
    assert_eq!((card.id.as_str(), card.context_length, card.vocabulary), ("demo", 512, 4096));
    assert_eq!(card.end_tokens, END_TOKENS);
    assert!(card.created > 1_700_000_000 && card.has_chat_template);
}

#[test]
fn conversations_render_and_encode_as_transformers_does_in_ten_languages() {
    for expected in prompts() {
        let messages = vec![Message::new("user", expected.prompt)].into();
        assert_eq!(demo().render(&messages).unwrap(), expected.rendered);
        assert_eq!(demo().encode_chat(&messages).unwrap(), expected.prompt_ids);
    }
}

#[test]
fn a_prompt_gets_one_beginning_of_sequence_whether_it_has_one_or_not() {
    let bare = demo().encode("नमस्ते").unwrap();
    assert_eq!(bare[0], 1);
    assert_eq!(demo().encode("<s>नमस्ते").unwrap(), bare);
    for expected in prompts() {
        assert_eq!(demo().encode(&expected.rendered).unwrap(), expected.prompt_ids);
    }
}

#[test]
fn any_tokens_can_be_spelled_and_read_again_special_ones_by_their_names() {
    for expected in prompts() {
        let decoded = demo().decode_with_special(&expected.prompt_ids);
        assert_eq!(decoded, expected.rendered);
        assert_eq!(demo().encode_bare(&decoded).unwrap(), expected.prompt_ids);
        for cut in 0..expected.prompt_ids.len() {
            let decoded = demo().decode_with_special(&expected.prompt_ids[..cut]);
            assert!(expected.rendered.starts_with(&decoded), "whole characters only: {decoded}");
        }
    }
    assert_eq!(demo().decode_with_special(&[1, 4_095, u32::MAX, 2]).matches("s>").count(), 2);
}

#[test]
fn a_special_token_is_text_where_it_is_asked_to_be_and_ends_a_character_that_is_cut() {
    for text in [sentence_pieces(), metaspace("always"), unusual()] {
        let ids = [2, 0, 5, 0, 10];
        let mut decoder = text.detokenizer(Vec::new()).with_special("<s>").with_special("<missing>");
        let mut decoded: String = ids.iter().map(|id| decoder.push(*id).text).collect();
        decoded += &decoder.finish();
        assert!(decoded.trim_start().starts_with("na<s>") && decoded.ends_with("<s>é"), "{decoded}");
        assert!(!decoded.contains('\u{fffd}'), "{decoded}");
    }
}

#[test]
fn tools_calls_and_results_are_texts_where_the_template_has_none() {
    let call = ToolCall::new(None, "now", Arguments::Written("{\"a\": 1}".into()));
    let messages = vec![
        Message::new("user", "hello"),
        Message { tool_calls: vec![call], ..Message::new("assistant", "") },
        Message::new("tool", "4"),
        Message::new("tool", "5"),
    ];
    let tool = json!({ "type": "function", "function": { "name": "now" } });
    let conversation = Conversation { messages, tools: vec![tool], ..Conversation::default() };
    let text = demo().render(&conversation).unwrap();
    for part in [
        "<tools>\n{\"name\":\"now\"}\n</tools>",
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": 1}}\n</tool_call>",
        "<tool_response>\n4\n</tool_response>\n<tool_response>\n5\n</tool_response>",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let opened = Conversation { answer_prefix: "[".into(), ..vec![Message::new("user", "hello")].into() };
    assert!(demo().render(&opened).unwrap().ends_with("<|assistant|>["));
}

#[test]
fn answers_are_whole_at_every_cut_between_tokens() {
    for answer in answers() {
        assert_eq!(decode(demo(), &answer.ids), answer.text);
        let mut before = String::new();
        for cut in 0..=answer.ids.len() {
            let text = decode(demo(), &answer.ids[..cut]);
            assert!(text.starts_with(&before) && answer.text.starts_with(&text), "cut at {cut}: {text}");
            before = text;
        }
    }
}

#[test]
fn answers_stop_before_every_stop_string_at_every_character() {
    for answer in answers() {
        let starts: Vec<usize> =
            answer.text.char_indices().map(|(at, _)| at).chain([answer.text.len()]).collect();
        for (n, &start) in starts.iter().enumerate() {
            for &end in &starts[n + 1..] {
                let stop = &answer.text[start..end];
                let expected = answer.text.split(stop).next().unwrap().to_owned();
                assert_eq!(decode_with(demo(), &answer.ids, &[stop]), (expected, true), "stop {stop:?}");
                let never = format!("{stop}\u{1}");
                assert_eq!(decode_with(demo(), &answer.ids, &[&never]), (answer.text.clone(), false));
            }
        }
    }
}

#[test]
fn invalid_bytes_are_dropped_and_decoding_goes_on() {
    let byte = |name: &str| demo().tokenizer.token_to_id(name).unwrap();
    // In GPT-2's alphabet: the bytes E0 A4, a beginning, E0, another, and FF, which no character has.
    let invalid = [byte("à"), byte("¤"), byte("à"), byte("ÿ"), byte("ÿ")];
    for answer in answers() {
        assert_eq!(decode(demo(), &[&invalid, &answer.ids[..]].concat()), answer.text);
    }
}

#[test]
fn special_tokens_and_unknown_ids_have_no_text() {
    assert_eq!(decode(demo(), &[0, 1, 2, 3, 4, 5, 6, 4096, u32::MAX]), "");
}

#[test]
fn sentence_pieces_lose_one_leading_space_and_bytes_become_characters() {
    let text = sentence_pieces();
    assert!(text.token_bytes.is_some());
    let valid: [&[u32]; 8] = [
        &[2, 3, 4],
        &[0, 2, 3, 1],
        &[4, 4],
        &[8, 2],
        &[1, 1, 2],
        &[5, 6, 7, 2],
        &[2, 5, 6, 7, 5, 6, 7, 10],
        &[0, 0, 11, 8, 8],
    ];
    for ids in valid {
        assert_eq!(decode(&text, ids), reference(&text, ids), "{ids:?}");
    }
    assert_eq!(decode(&text, &[2, 5, 6, 3, 9, 5, 6, 7, 4]), "namasक  te", "invalid bytes alone are lost");
    assert_eq!(decode(&text, &[2, 5, 6]), "na");
}

#[test]
fn added_tokens_of_a_byte_level_tokenizer_are_the_text_that_they_stand_for() {
    let decoder =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    // ö and ß are letters of the alphabet of bytes, for bytes that are not text by themselves.
    let text = small_with(&["<s>", "Gr", "Ã¶", "ÃŁe", "Größe"], &[4], &decoder);
    assert!(text.token_bytes.is_some());
    assert_eq!(decode(&text, &[1, 2, 3]), "Größe");
    assert_eq!(decode(&text, &[4]), "Größe");
    assert_eq!(decode(&text, &[1, 4, 1, 2]), "GrGrößeGrö");
}

#[test]
fn metaspace_drops_its_mark_in_the_first_token_unless_it_never_prepends() {
    for scheme in ["always", "first", "never"] {
        let text = metaspace(scheme);
        assert!(text.token_bytes.is_some());
        for ids in [&[0, 2, 3, 2][..], &[4, 4], &[1, 1, 1], &[3, 2]] {
            assert_eq!(decode(&text, ids), reference(&text, ids), "{scheme} {ids:?}");
        }
    }
}

#[test]
fn a_decoder_without_a_table_is_left_to_the_crate_and_never_stalls() {
    let text = unusual();
    assert!(text.token_bytes.is_none());
    for ids in [&[2, 3, 4][..], &[2, 5, 6, 7, 0, 0, 0, 0, 0, 4], &[11, 12], &[]] {
        assert_eq!(decode(&text, ids), reference(&text, ids), "{ids:?}");
    }
    let mut decoder = text.detokenizer(Vec::new());
    let nonsense: String = [9; 64].map(|id| decoder.push(id).text).concat();
    assert_eq!(nonsense, "");
    assert_eq!(decoder.push(3).text, "mas");
}

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    let dir = model_dir(4);
    let error = Text::open(dir.path(), "m").err().unwrap();
    assert!(matches!(&error, TextError::Read { path, .. } if path.ends_with("tokenizer.json")), "{error}");
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(Text::open(dir.path(), "m"), Err(TextError::Tokenizer { .. })));
    let dir = demo_dir();
    fs::write(dir.path().join("chat_template.jinja"), "{% for %}").unwrap();
    let text = Text::open(dir.path(), "m").unwrap();
    assert!(matches!(text.check_templates(), Err(TextError::TemplateFile { .. })));
    assert!(matches!(text.render(&Conversation::default()), Err(TextError::TemplateFile { .. })));
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), "[").unwrap();
    assert!(matches!(Text::open(dir.path(), "m"), Err(TextError::Json { .. })));
    assert!(matches!(Text::open(Path::new("nowhere"), "m"), Err(TextError::Manifest(_))));
}

#[test]
fn a_model_without_a_template_says_so_to_the_request_that_needs_one() {
    let dir = demo_dir();
    fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    let text = Text::open(dir.path(), "plain").unwrap();
    assert!(!text.card().has_chat_template);
    let error = text.encode_chat(&Conversation::default()).unwrap_err();
    assert!(error.is_client_error() && error.to_string().contains("plain"), "{error}");
    let ids = text.encode("<s>a").unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 1).count(), 1, "BOS is known from generation_config.json");
}

#[test]
fn the_template_file_wins_and_a_list_of_templates_has_a_default() {
    let dir = demo_dir();
    let list = json!({
        "bos_token": {"content": "<s>", "special": true},
        "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "{{ bos_token }}d"}],
    });
    fs::write(dir.path().join("tokenizer_config.json"), list.to_string()).unwrap();
    assert_eq!(Text::open(dir.path(), "m").unwrap().render(&Conversation::default()).unwrap(), "<s>d");
    fs::write(dir.path().join("chat_template.jinja"), "file {{ bos_token }}\n").unwrap();
    assert_eq!(Text::open(dir.path(), "m").unwrap().render(&Conversation::default()).unwrap(), "file <s>");
}

#[test]
fn truncation_and_padding_that_training_left_behind_are_ignored() {
    let dir = demo_dir();
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    tokenizer["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 2, "pad_type_id": 0, "pad_token": "</s>"});
    fs::write(&path, tokenizer.to_string()).unwrap();
    let text = Text::open(dir.path(), "m").unwrap();
    let prompt = "Translate to Hindi: Good morning, friend.";
    assert_eq!(text.encode(prompt).unwrap(), demo().encode(prompt).unwrap());
}

/// Whole characters, the same text for any length, and no U+FFFD for invalid bytes.
fn check_any_ids(text: &Arc<Text>, ids: &[u32]) -> Result<(), TestCaseError> {
    let whole = decode(text, ids);
    prop_assert!(!whole.contains(char::REPLACEMENT_CHARACTER));
    let mut before = String::new();
    for cut in 0..=ids.len() {
        let now = decode(text, &ids[..cut]);
        prop_assert!(now.starts_with(&before), "{:?} after {:?}", now, before);
        before = now;
    }
    prop_assert_eq!(before, whole);
    Ok(())
}

proptest! {
    #[test]
    fn decoding_ids_one_by_one_equals_decoding_them_at_once(
        ids in vec(prop_oneof![0_u32..4100, 7_u32..263], 0..40),
    ) {
        check_any_ids(demo(), &ids)?;
        prop_assert_eq!(decode(demo(), &ids), reference(demo(), &ids));
    }

    #[test]
    fn any_ids_of_other_families_leave_whole_characters(ids in vec(0_u32..15, 0..24)) {
        for text in [sentence_pieces(), metaspace("always"), unusual()] {
            check_any_ids(&text, &ids)?;
        }
        let text = metaspace("first");
        prop_assert_eq!(decode(&text, &ids), reference(&text, &ids));
    }

    #[test]
    fn text_comes_back_from_its_own_ids(prompt in "[ -~क-हা-ৌஅ-ஹ\u{1f600}-\u{1f64f}]{0,40}") {
        let ids = demo().ids(&prompt, false).unwrap();
        prop_assert_eq!(decode(demo(), &ids), reference(demo(), &ids));
    }

    #[test]
    fn stop_strings_end_any_ids_where_the_whole_text_has_them(
        ids in vec(prop_oneof![263_u32..4096, 7_u32..263], 0..24), stops in vec("[a-eक-घ ]{1,2}", 1..16),
    ) {
        let whole = decode(demo(), &ids);
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let ends = stops.iter().filter_map(|stop| whole.find(stop).map(|start| (start + stop.len(), start)));
        let cut = ends.min().map(|(_, start)| start);
        let expected = (whole[..cut.unwrap_or(whole.len())].to_owned(), cut.is_some());
        prop_assert_eq!(decode_with(demo(), &ids, &stops), expected);
    }
}
