//! Random models under constraints: every answer matches.

use std::{fs, path::Path, sync::LazyLock};

use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;
use crate::{
    job::{Constraint, Failure, Job, JobId},
    text::{
        AnswerParser, AnswerParserOptions, Calls, ReasoningFormat, ReasoningOptions, ToolCallParserOptions,
        ToolSignature, ToolSupport,
    },
};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/base");
const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama/base");
const END: u32 = 2;

/// A vocabulary in the manner of SentencePiece: spaces are ▁, every byte is a token, and some characters are.
static PIECES: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let pieces = ["▁", "{", "\"", "a", "na", "न", "म", "▁na", "\":", "▁\"", "name", "தமிழ்", "}", "1", "true"];
    let tokens = special.iter().cloned().chain(bytes).chain(pieces.map(str::to_owned));
    let vocab: Vec<Value> = tokens.map(|token| json!([token, -1.0])).collect();
    let added = |id: usize| {
        json!({ "id": id, "content": special[id], "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true })
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(0), added(1), added(2)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": true},
    });
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
});

/// A model whose logits are a hash of seed, position and token id.
struct Random {
    guides: Guides,
    vocabulary: crate::text::Vocabulary,
    size: usize,
}

impl Random {
    fn of(dir: &Path, size: usize) -> Self {
        let vocabulary = crate::text::Vocabulary::open(dir, size).unwrap();
        Self { guides: Guides::new(dir.into(), size), vocabulary, size }
    }

    fn demo() -> Self {
        Self::of(Path::new(DEMO), 4096)
    }

    fn pieces() -> Self {
        Self::of(PIECES.path(), 274)
    }

    fn all() -> [Self; 3] {
        [Self::demo(), Self::of(Path::new(LLAMA), 320), Self::pieces()]
    }

    fn logits(&self, seed: u64, position: usize) -> Vec<f32> {
        let hash = |id: u64| {
            let mixed =
                (seed ^ id.rotate_left(17) ^ ((position as u64) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            f32::from(u16::try_from((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 48).unwrap())
        };
        (0..self.size as u64).map(hash).collect()
    }

    /// Extends `answer` until it ends or has `max` tokens; whether it ended, and how often there was a choice.
    fn go_on(
        &self,
        constraint: &Constraint,
        seed: u64,
        mut answer: Vec<u32>,
        max: usize,
    ) -> Result<(Vec<u32>, bool, usize), Failure> {
        let constraint = Some(constraint.clone());
        let job = Job { constraint, answer: answer.clone(), ..Job::new(JobId(1), vec![1], max) };
        let mut guide = self.guides.begin(&job)?.unwrap();
        let mut chosen = 0;
        loop {
            if answer.len() >= max {
                answer.truncate(max);
                return Ok((answer, false, chosen));
            }
            match guide.choice()? {
                Choice::Nothing => return Ok((answer, true, chosen)),
                Choice::Forced(tokens) => answer.extend(tokens),
                Choice::Among(allowed) => {
                    chosen += 1;
                    let mut logits = self.logits(seed, answer.len());
                    allowed.mask(&mut logits, &[END]);
                    let greatest = (0_u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
                    assert!(*greatest.1 > f32::NEG_INFINITY, "nothing is allowed");
                    if greatest.0 == END {
                        return Ok((answer, true, chosen));
                    }
                    answer.push(greatest.0);
                    guide.picked(greatest.0);
                }
            }
        }
    }

    fn answer(&self, constraint: &Constraint, seed: u64) -> String {
        let (answer, ended, _) = self.go_on(constraint, seed, Vec::new(), 4_000).unwrap();
        assert!(ended, "it does not end: {}", self.text(&answer));
        self.text(&answer)
    }

    /// The text of an answer that may be cut within a character.
    fn text_so_far(&self, answer: &[u32]) -> String {
        let tokens: Vec<&[u8]> = self.vocabulary.tokens().collect();
        let bytes: Vec<u8> = answer.iter().flat_map(|id| tokens[*id as usize].iter().copied()).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\u{fffd}').to_owned()
    }

    fn text(&self, answer: &[u32]) -> String {
        let tokens: Vec<&[u8]> = self.vocabulary.tokens().collect();
        let bytes = answer.iter().flat_map(|id| tokens[*id as usize].iter().copied()).collect();
        String::from_utf8(bytes).unwrap()
    }
}

/// Checks where there is room for deep recursion, as the sandbox does.
fn check(constraint: &Constraint) -> Result<(), ConstraintError> {
    let constraint = constraint.clone();
    grammar::spawn("check", move || super::check(&constraint)).unwrap().join().unwrap()
}

fn schema(schema: Value) -> Constraint {
    Constraint::Schema(schema.to_string())
}

fn person() -> Constraint {
    schema(json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "பெயர்": {"enum": ["தமிழ்", "नमस्ते", "ಕನ್ನಡ"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "பெயர்", "age", "tags"],
        "additionalProperties": false,
    }))
}

fn check_person(text: &str) {
    let person: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(person["name"].as_str().unwrap().chars().count() <= 6, "{text}");
    assert!(["தமிழ்", "नमस्ते", "ಕನ್ನಡ"].contains(&person["பெயர்"].as_str().unwrap()), "{text}");
    assert!(person["age"].as_u64().unwrap() <= 120, "{text}");
    assert!((1..=3).contains(&person["tags"].as_array().unwrap().len()), "{text}");
    assert_eq!(person.as_object().unwrap().len(), 4, "{text}");
}

#[test]
fn a_random_model_keeps_a_schema_in_every_kind_of_tokenizer() {
    for model in Random::all() {
        for seed in 0..12 {
            check_person(&model.answer(&person(), seed));
        }
    }
}

/// Whether an answer that begins with `text` can be one to `schema`, and may end there.
fn may_be(model: &Random, schema: &Value, text: &str) -> bool {
    let answer = model.vocabulary.tokenize(text.as_bytes()).unwrap();
    let constraint = Some(Constraint::Schema(schema.to_string()));
    let job = Job { constraint, answer, ..Job::new(JobId(1), vec![1], 500) };
    model.guides.begin(&job).unwrap().unwrap().choice().is_ok_and(|choice| match choice {
        Choice::Nothing => true,
        Choice::Forced(_) => false,
        Choice::Among(allowed) => {
            let mut logits = vec![0.0; model.size];
            allowed.mask(&mut logits, &[END]);
            logits[END as usize] == 0.0
        }
    })
}

/// Answers that the compiler would accept without our changes.
#[test]
fn dates_and_times_are_those_that_every_reader_takes() {
    let model = Random::demo();
    for (format, text, is_one) in [
        ("date", "2024-02-29", true),
        ("date", "2000-02-29", true),
        ("date", "2023-02-28", true),
        ("date", "2023-02-29", false),
        ("date", "1900-02-29", false),
        ("date", "0000-01-01", false),
        ("date", "2023-04-31", false),
        ("time", "23:59:59.5Z", true),
        ("time", "23:59:59+05:30", true),
        ("time", "23:59:59z", false),
        ("time", "23:00:60Z", false),
        ("time", "24:00:00Z", false),
        ("date-time", "2024-02-29T01:02:03Z", true),
        ("date-time", "2023-02-29T01:02:03Z", false),
        ("date-time", "2024-02-29t01:02:03Z", false),
    ] {
        let one = json!({ "type": "string", "format": format });
        let schema = json!({ "type": "array", "items": { "$ref": "#/$defs/one" }, "maxItems": 1, "$defs": { "one": one } });
        assert_eq!(may_be(&model, &schema, &format!("[\"{text}\"]")), is_one, "{format}: {text}");
    }
    let named = json!({ "type": "object", "properties": { "format": { "const": { "format": "date" } } },
        "required": ["format"], "additionalProperties": false });
    assert!(may_be(&model, &named, r#"{"format":{"format":"date"}}"#));
}

#[test]
fn a_regular_expression_is_matched_as_a_whole_from_its_first_space() {
    let constraint = Constraint::Regex(" ?[कखग]{2,5}(தமிழ்|na)!".into());
    let pattern = regex_of("^ ?[कखग]{2,5}(தமிழ்|na)!$");
    for model in Random::all() {
        for seed in 0..12 {
            let text = model.answer(&constraint, seed);
            assert!(pattern.is_match(&text).unwrap(), "{text:?}");
        }
    }
}

fn regex_of(pattern: &str) -> fancy_regex::Regex {
    fancy_regex::Regex::new(pattern).unwrap()
}

#[test]
fn a_grammar_in_larks_syntax_is_kept() {
    let constraint = Constraint::Lark("start: sum\nsum: N (\"+\" N){1,3}\nN: /[1-9][0-9]{0,2}/".into());
    let pattern = regex_of(r"^[1-9][0-9]{0,2}(\+[1-9][0-9]{0,2}){1,3}$");
    for model in Random::all() {
        for seed in 0..12 {
            let text = model.answer(&constraint, seed);
            assert!(pattern.is_match(&text).unwrap(), "{text:?}");
        }
    }
}

#[test]
fn an_answer_resumed_at_any_token_continues_as_without_the_interruption() {
    for model in Random::all() {
        let (whole, _, chosen) = model.go_on(&person(), 5, Vec::new(), 4_000).unwrap();
        assert!(chosen < whole.len(), "no text was forced");
        for cut in 0..=whole.len() {
            let resumed = model.go_on(&person(), 5, whole[..cut].to_vec(), 4_000).unwrap();
            assert_eq!(resumed.0, whole, "resumed after {cut} of {} tokens", whole.len());
        }
    }
}

#[test]
fn a_constraint_is_compiled_once_and_every_answer_under_it_begins_at_its_start() {
    let model = Random::demo();
    let first = model.go_on(&person(), 5, Vec::new(), 4_000).unwrap();
    let again = model.go_on(&person(), 5, Vec::new(), 4_000).unwrap();
    let other = model.go_on(&person(), 6, Vec::new(), 4_000).unwrap();
    assert_eq!((&first, model.guides.kept()), (&again, 1));
    check_person(&model.text(&other.0));
    assert_eq!(other, Random::demo().go_on(&person(), 6, Vec::new(), 4_000).unwrap(), "as if compiled anew");
}

/// Bounds that people write for "any", and similar ones. Answers satisfy the original schema.
#[test]
fn bounds_beyond_the_compilers_range_are_cut_and_not_refused() {
    let model = Random::demo();
    for text in [
        r#"{"type":"integer","minimum":-9223372036854775808}"#,
        r#"{"type":"integer","minimum":-9223372036854775808,"maximum":9223372036854775807}"#,
        r#"{"type":"integer","exclusiveMinimum":-9223372036854775808,"exclusiveMaximum":18446744073709551615}"#,
        r#"{"type":"integer","minimum":0,"maximum":18446744073709551615}"#,
        r#"{"type":"integer","maximum":1e300}"#,
        r#"{"type":"integer","minimum":-1e300}"#,
        r#"{"type":"number","minimum":-1.7976931348623157e308,"maximum":1.7976931348623157e308}"#,
        r#"{"type":"number","exclusiveMinimum":1e-300,"maximum":1}"#,
        r#"{"type":"number","minimum":-1,"maximum":-1e-300}"#,
        r#"{"type":"number","minimum":5e-324,"maximum":2}"#,
        r#"{"type":"integer","minimum":9007199254740993,"maximum":9007199254741001}"#,
        r#"{"type":"string","maxLength":18446744073709551615,"pattern":"^a{0,3}$"}"#,
        r#"{"type":"string","minLength":1.0,"maxLength":5.0}"#,
        r#"{"type":"array","items":{"const":1},"minItems":1,"maxItems":1e30}"#,
        r#"{"type":"object","properties":{"a":{"const":1}},"required":["a"],"additionalProperties":false,
            "maxProperties":18446744073709551615}"#,
        r#"{"type":"integer","multipleOf":1000000,"minimum":-9223372036854775808}"#,
        r#"{"type":["integer","null"],"minimum":-9223372036854775808}"#,
        r##"{"$ref":"#/$defs/id","$defs":{"id":{"type":"integer","minimum":1,"maximum":9223372036854775807}}}"##,
    ] {
        let constraint = Constraint::Schema(text.into());
        check(&constraint).unwrap_or_else(|e| panic!("{text}: {e}"));
        let schema: Value = serde_json::from_str(text).unwrap();
        for seed in 0..3 {
            let Ok((answer, true, _)) = model.go_on(&constraint, seed, Vec::new(), 60) else { continue };
            let value: Value = serde_json::from_str(&model.text(&answer)).unwrap();
            assert!(jsonschema::is_valid(&schema, &value), "{value} under {text}");
        }
    }
}

#[test]
fn an_answer_may_end_exactly_where_the_constraint_is_met() {
    let model = Random::demo();
    let constraint = Constraint::Regex("(aa)+".into());
    let begun = |answer: &str| {
        let answer = model.vocabulary.tokenize(answer.as_bytes()).unwrap();
        let constraint = Some(constraint.clone());
        let job = Job { constraint, answer, ..Job::new(JobId(1), vec![1], 10) };
        model.guides.begin(&job).unwrap().unwrap().choice().unwrap()
    };
    for (answer, may_end) in [("", false), ("a", false), ("aa", true), ("aaa", false), ("aaaa", true)] {
        // "a" must be followed by another, which may be forced.
        let Choice::Among(allowed) = begun(answer) else {
            assert!(!may_end);
            continue;
        };
        let mut logits = vec![0.0; 4096];
        allowed.mask(&mut logits, &[END]);
        assert_eq!(logits[END as usize] == 0.0, may_end, "after {answer:?}");
    }
}

#[test]
fn an_answer_that_breaks_its_constraint_fails_and_says_so() {
    let model = Random::demo();
    let wrong = model.vocabulary.tokenize(b"[1]").unwrap();
    let failure = model.go_on(&person(), 1, wrong, 100).unwrap_err();
    assert!(matches!(failure, Failure::Constraint { .. }), "{failure}");
}

#[test]
fn text_is_cut_as_the_tokenizer_cuts_it_and_never_becomes_other_text() {
    for model in Random::all() {
        let tokens: Vec<&[u8]> = model.vocabulary.tokens().collect();
        for text in ["\"name\": ", "नमस्ते", " a  b", "{\"பெயர்\":\"", "</s>", ""] {
            let Some(ids) = model.vocabulary.tokenize(text.as_bytes()) else {
                assert_eq!(text, "</s>", "a special token has no text");
                continue;
            };
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokens[*id as usize].iter().copied()).collect();
            assert_eq!(bytes, text.as_bytes());
        }
        assert_eq!(model.vocabulary.tokenize(b"\xff"), None);
    }
}

mod refused {
    use super::*;

    fn why(constraint: &Constraint) -> ConstraintError {
        check(constraint).expect_err("it should be refused")
    }

    #[test]
    fn keywords_that_cannot_be_enforced_are_named_with_their_place() {
        let not =
            schema(json!({"type": "object", "properties": {"not": {"type": "string"}, "a": {"not": {}}}}));
        let expected = ConstraintError::Keyword { keyword: "not".into(), place: "#/properties/a".into() };
        assert_eq!(why(&not), expected);
        for (keyword, place, found) in [
            (
                "uniqueItems",
                "#/items",
                json!({"type": "array", "items": {"type": "array", "uniqueItems": true}}),
            ),
            ("if", "#/$defs/a", json!({"$ref": "#/$defs/a", "$defs": {"a": {"if": {}, "then": {}}}})),
            ("oneOf", "#", json!({"oneOf": [{"type": "integer"}, {"type": "number"}]})),
            ("x-guidance", "#", json!({"x-guidance": {"lenient": true}})),
        ] {
            let expected = ConstraintError::Keyword { keyword: keyword.into(), place: place.into() };
            assert_eq!(why(&schema(found)), expected);
        }
    }

    #[test]
    fn invalid_constraints_are_refused_with_the_compilers_message() {
        for (constraint, phrase) in [
            (Constraint::Regex("(a".into()), ""),
            (Constraint::Lark("start: missing".into()), "missing"),
            (Constraint::Lark(String::new()), "start"),
            (schema(json!({"type": "text"})), "text"),
            (schema(json!({"$ref": "https://example.com/a.json"})), "example.com"),
            (
                schema(json!({"type": "object", "properties": {"a": false}, "required": ["a"]})),
                "nsatisfiable",
            ),
            (Constraint::Schema("[]".into()), "object"),
        ] {
            let why = why(&constraint).to_string();
            assert!(why.contains(phrase) && !why.contains('<'), "{constraint:?}: {why}");
        }
    }

    #[test]
    fn a_constraint_that_is_too_long_is_refused_with_the_numbers() {
        let long = Constraint::Regex("a".repeat((64 << 10) + 1));
        assert_eq!(why(&long), ConstraintError::TooLong { found: 65_537, max: 65_536 });
        let deep = Constraint::Regex("(".repeat(200));
        assert_eq!(why(&deep), ConstraintError::TooDeep { found: 200, max: 128 });
    }
}

/// The calls of a random answer in each format, where calls must come and where they may.
#[test]
fn calls_that_a_grammar_allows_are_read_as_calls_and_keep_their_schemas() {
    let parameters = json!({
        "type": "object",
        "properties": {
            "a": { "$ref": "#/$defs/few" }, "b": { "type": "string", "maxLength": 3 },
            "c d": { "type": "string", "pattern": "^(yes|no)$" }, "🙂": { "anyOf": [{ "const": "x" }, { "type": "null" }] },
            "e": { "type": "string", "format": "date" }, "f": { "$ref": "#/$defs/short" },
        },
        "required": ["a", "b", "c d", "🙂", "e", "f"], "additionalProperties": false,
        "$defs": { "few": { "enum": [1, 2] }, "short": { "type": "string", "maxLength": 2 } },
    });
    let templates = include_str!("../../tests/fixtures/templates/tool_formats.jinja").split("### ").skip(1);
    for template in templates {
        let format = ToolSupport::of(template).format();
        for (required, single) in [(true, true), (true, false), (false, true), (false, false)] {
            let tools = ["x", "y"].map(|name| (name, &parameters));
            let grammar = format.grammar(Calls { required, single }, tools.into_iter(), SCHEMA_SYNTAX);
            let grammar = Constraint::Lark(grammar);
            check(&grammar).unwrap_or_else(|e| panic!("{e}: {grammar:?}"));
            for (model, seed) in [Random::demo(), Random::pieces()].iter().zip(0..) {
                let (answer, ended, _) = model.go_on(&grammar, seed, Vec::new(), 300).unwrap();
                let tools = ["x", "y"].map(|name| ToolSignature::new(name, &parameters)).into();
                let tools = ToolCallParserOptions { format, tools, single, opened: required };
                let reasoning = ReasoningFormat::of(template);
                let reasoning = reasoning.map(|format| ReasoningOptions { format, is_open: false });
                let options =
                    AnswerParserOptions { reasoning, tools: Some(tools), ..AnswerParserOptions::default() };
                let mut reader = AnswerParser::new(options);
                let text = model.text_so_far(&answer);
                let mut delta = reader.push(&text);
                delta.append(&reader.finish());
                if required {
                    assert!(delta.content.is_empty() && !delta.calls.is_empty(), "{text}");
                }
                for call in &delta.calls[..delta.calls.len() - usize::from(!ended && !delta.calls.is_empty())]
                {
                    let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
                    assert!([1, 2].contains(&arguments["a"].as_u64().unwrap()), "{text}");
                    assert!(arguments["b"].as_str().unwrap().chars().count() <= 3, "{text}");
                    assert!(["yes", "no"].contains(&arguments["c d"].as_str().unwrap()), "{text}");
                    assert!([json!("x"), json!(null)].contains(&arguments["🙂"]), "{text}");
                    assert_eq!(arguments["e"].as_str().unwrap().len(), "2024-02-29".len(), "{text}");
                    assert!(arguments["f"].as_str().unwrap().chars().count() <= 2, "{text}");
                }
            }
        }
    }
}

/// After a marker there is a call that matches its schema, or nothing.
#[test]
fn a_call_may_follow_text_and_then_has_its_form() {
    let format = ToolSupport::of("{{ tools }}<tool_call>").format();
    let schema = json!({ "type": "object", "properties": {}, "additionalProperties": false });
    let calls = Calls { required: false, single: false };
    let grammar = Constraint::Lark(format.grammar(calls, [("x", &schema)].into_iter(), SCHEMA_SYNTAX));
    let demo = Random::demo();
    let lead = demo.vocabulary.tokenize("Let me <look> <tool_call".as_bytes()).unwrap();
    let call = demo.vocabulary.tokenize(">\n{\"name\": \"x\"".as_bytes()).unwrap();
    for (answer, forced) in [(lead.clone(), false), ([lead, call].concat(), true)] {
        let (all, _, _) = demo.go_on(&grammar, 3, answer.clone(), answer.len() + 12).unwrap();
        let text = demo.text_so_far(&all);
        let expected = "Let me <look> <tool_call>\n{\"name\": \"x\", \"arguments\": {";
        let is_call = text.starts_with(expected) || expected.starts_with(&text);
        assert!(is_call || !forced, "{text}");
    }
    let wrong = demo.vocabulary.tokenize("<tool_call> no".as_bytes()).unwrap();
    demo.go_on(&grammar, 3, wrong, 50).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_is_refused_and_never_panics(
        pieces in prop::collection::vec(select(&["start", ":", "\n", "(", ")", "[", "]", "/", "a", "|", "*", "{", "}", "\"",
            "1", ",", "%", "json", "import", "<", ">", "~", "@", "\\", "é", " ", "regex", "-", ".."][..]), 0..24),
    ) {
        let text = pieces.concat();
        let _ = check(&Constraint::Lark(format!("start: {text}")));
        let _ = check(&Constraint::Regex(text.clone()));
        let _ = check(&Constraint::Schema(format!("{{\"pattern\": {}}}", json!(text))));
    }
}
