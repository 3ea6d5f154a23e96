//! Tool calls in every format, split into chunks at every place, and texts that only look like calls.

use proptest::prelude::*;

use serde_json::json;

use super::{
    format::{IdStyle, Syntax},
    *,
};

/// The formats whose calls are JSON objects with a name and arguments.
fn object_formats() -> impl Iterator<Item = &'static ToolFormat> {
    FORMATS.into_iter().filter(|format| matches!(format.syntax, Syntax::Object { name: "name", .. }))
}

fn named(name: &str) -> &'static ToolFormat {
    FORMATS.into_iter().find(|format| format.name == name).unwrap()
}

fn format(template: &str) -> &'static ToolFormat {
    ToolSupport::of(template).format()
}

fn parser(format: &'static ToolFormat) -> ToolCallParser {
    let tools = ["weather", "now"].map(|name| ToolSignature::new(name, &json!({}))).into();
    ToolCallParser::new(ToolCallParserOptions { format, tools, single: false, opened: false })
}

/// Parses text that arrives in these chunks. Returns the content and calls, without ids, and whether the last call is truncated.
fn parse_chunks<'a>(
    format: &'static ToolFormat,
    chunks: impl Iterator<Item = &'a str>,
) -> (AnswerDelta, bool) {
    let mut parser = parser(format);
    let mut all = AnswerDelta::default();
    chunks.for_each(|chunk| all.append(&parser.push(chunk)));
    all.append(&parser.finish());
    all.calls.iter_mut().for_each(|call| call.id = None);
    (all, parser.is_truncated())
}

/// Parses text that arrives in chunks of `size` characters. Returns the content and calls, without ids.
fn parse_in_chunks_of(format: &'static ToolFormat, text: &str, size: usize) -> AnswerDelta {
    let characters: Vec<char> = text.chars().collect();
    let chunks: Vec<String> = characters.chunks(size).map(|chunk| chunk.iter().collect()).collect();
    parse_chunks(format, chunks.iter().map(String::as_str)).0
}

/// Checks that a text gives the same result whole and at every split into up to three chunks.
fn check_every_split(format: &'static ToolFormat, text: &str) {
    let whole = parse_chunks(format, [text].into_iter());
    let boundaries: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    for (i, first) in boundaries.iter().enumerate() {
        for second in &boundaries[i..] {
            let chunks = [&text[..*first], &text[*first..*second], &text[*second..]];
            assert_eq!(parse_chunks(format, chunks.into_iter()), whole, "{chunks:?}");
        }
    }
}

/// Checks that every chunk size gives the same result, and returns the content and each call as `name(arguments)`.
fn delta(format: &'static ToolFormat, text: &str) -> (String, Vec<String>) {
    let whole = parse_in_chunks_of(format, text, usize::MAX);
    for size in 1..text.chars().count().max(2) {
        assert_eq!(parse_in_chunks_of(format, text, size), whole, "{text:?} in chunks of {size}");
    }
    let calls = whole.calls.iter();
    let calls = calls.map(|call| format!("{}({})", call.name.as_deref().unwrap(), call.arguments));
    (whole.content, calls.collect())
}

#[track_caller]
fn check(format: &'static ToolFormat, text: &str, content: &str, calls: &[&str]) {
    let (found, called) = delta(format, text);
    assert_eq!(
        (found.as_str(), &called.iter().map(String::as_str).collect::<Vec<_>>()[..]),
        (content, calls),
        "{text:?}"
    );
}

#[test]
fn the_tool_call_format_is_recognised_from_the_template() {
    let qwen = "{%- if tools %}{{- \"\\n\\nFor each function call, return a json object with function name and arguments within \
        <tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\\"name\\\": <function-name>, \\\"arguments\\\": <args-json-object>}\\n\
        </tool_call><|im_end|>\\n\" }}";
    let llama = "{%- if tools is not none %}{{- 'Respond in the format {\"name\": function name, \"parameters\": dictionary of \
        argument name and its value}.' }}{%- endif %}{{- '{\"name\": \"' + tool_call.name + '\", ' }}{{- '\"parameters\": ' }}";
    let mistral = "{%- if tools is not none %}[AVAILABLE_TOOLS]{%- endif %}{{- \"[TOOL_CALLS] [\" }}";
    assert_eq!(format(qwen), &HERMES);
    assert_eq!(format(llama), named("llama"));
    assert_eq!(format(&format!("{llama}<|python_tag|>")), named("llama"));
    assert_eq!(format(mistral), named("mistral"));
    for (other, name) in [
        ("{{ tools }}<tool_call>\n<function=", "qwen3_coder"),
        ("{{ tools }}<tool_call>name\n<arg_key>", "glm"),
        ("{{ tools }}[TOOL_CALLS]name[ARGS]", "mistral_args"),
    ] {
        assert_eq!(format(other), named(name), "{other}");
    }
    assert_eq!(ToolSupport::of("{{ messages[0].content }}"), ToolSupport::Generic);
    assert_eq!(ToolSupport::of("{{ tools }}"), ToolSupport::UnknownFormat);
}

#[test]
fn hermes_calls_are_in_tags_and_may_follow_text() {
    let hermes = &HERMES;
    let one = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"पुणे\"}}\n</tool_call>";
    check(hermes, one, "", &["weather({\"city\": \"पुणे\"})"]);
    let two =
        format!("Let me look.\n\n{one}\n<tool_call>{{\"arguments\":{{}},\"name\":\"now\"}}</tool_call>\n");
    check(hermes, &two, "Let me look.", &["weather({\"city\": \"पुणे\"})", "now({})"]);
    check(hermes, &format!("{one} And so on."), " And so on.", &["weather({\"city\": \"पुणे\"})"]);
    check(hermes, "<tool_call>{\"name\": \"now\"}", "", &["now({})"]);
    let nested =
        "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": [{\"b\": \"}\\\"{\"}], \"c\": 1}}</tool_call>";
    check(hermes, nested, "", &["now({\"a\": [{\"b\": \"}\\\"{\"}], \"c\": 1})"]);
}

#[test]
fn llama_calls_are_the_whole_answer_or_follow_the_python_tag() {
    let llama = named("llama");
    let one = "{\"name\": \"weather\", \"parameters\": {\"city\": \"Pune\"}}";
    check(llama, one, "", &["weather({\"city\": \"Pune\"})"]);
    check(llama, &format!("\n <|python_tag|>{one}"), "", &["weather({\"city\": \"Pune\"})"]);
    check(
        llama,
        &format!("{one}; {{\"type\": \"function\", \"name\": \"now\", \"parameters\": {{}}}}"),
        "",
        &["weather({\"city\": \"Pune\"})", "now({})"],
    );
    check(llama, &format!("It is {one}"), &format!("It is {one}"), &[]);
    let own = "<|python_tag|>brave_search.call(query=\"Pune\")";
    check(llama, own, own, &[]);
}

#[test]
fn mistral_calls_are_a_list_after_the_marker_and_have_ids_of_nine_characters() {
    let mistral = named("mistral");
    let list = "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Pune\"}, \"id\": \"123456789\"}, \
        {\"name\": \"now\", \"arguments\": {}}]";
    check(mistral, list, "", &["weather({\"city\": \"Pune\"})", "now({})"]);
    check(mistral, "[TOOL_CALLS][{\"name\":\"now\",\"arguments\":{}}]", "", &["now({})"]);
    assert!(
        mistral.new_id("now", 0).len() == 9
            && mistral.new_id("now", 0).bytes().all(|byte| byte.is_ascii_alphanumeric())
    );
    assert_ne!(mistral.new_id("now", 0), mistral.new_id("now", 0));
    assert_eq!(mistral.id, IdStyle::Nine);
}

#[test]
fn text_that_only_looks_like_a_call_is_exact_content() {
    for text in [
        "",
        " ",
        "a <tool",
        "<tool_call>",
        "see <tool_call> above",
        "<tool_call>\n{\"name\": \"none\", \"arguments\": {}}\n",
        "<tool_call>{\"name\": \"now\", \"arguments\": 7}</tool_call> ",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"now\"",
        "<tool_call>[1]</tool_call>",
        "\n<tool_call><tool_call>",
        "{\"name\": \"now\"}",
    ] {
        check(&HERMES, text, text, &[]);
    }
    for text in [
        "{",
        "{}",
        "{\"name\": \"none\"}",
        " {\"a\": 1}",
        "{\"name\": \"now\", \"parameters\": \"{}\"} ",
        "<|python_tag|> x",
    ] {
        check(named("llama"), text, text, &[]);
    }
    for text in
        ["[TOOL_CALLS]", "[TOOL_CALLS] {\"name\": \"x\"}", "[TOOL_CALLS] [1]", "[TOOL_", "[TOOL_CALLS] [ \n"]
    {
        check(named("mistral"), text, text, &[]);
    }
}

#[test]
fn arguments_are_streamed_and_a_truncated_call_stays_incomplete() {
    let mut parser = parser(&HERMES);
    assert!(parser.push("<tool_call>{\"name\": \"weather\", \"arguments\": ").is_empty());
    let begun = &parser.push("{\"ci").calls[0];
    assert_eq!((begun.index, begun.name.as_deref(), begun.arguments.as_str()), (0, Some("weather"), "{\"ci"));
    assert!(begun.id.as_ref().unwrap().starts_with("call_"));
    let more = Call { arguments: "ty".into(), ..Call::default() };
    assert_eq!(parser.push("ty").calls, [more]);
    assert!(parser.finish().is_empty() && parser.is_truncated());
}

#[test]
fn a_single_call_is_the_only_one_returned() {
    let tools = [ToolSignature::new("now", &json!({}))].into();
    let mut parser = ToolCallParser::new(ToolCallParserOptions {
        format: named("mistral"),
        tools,
        single: true,
        opened: true,
    });
    let delta =
        parser.push(" [{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"now\", \"arguments\": {}}] more");
    assert!(parser.is_over() && delta.calls.len() == 1 && delta.content.is_empty());
    assert!(parser.push("more").is_empty() && parser.finish().is_empty());
}

/// The text of `format` before and after the JSON object of a call.
fn around(format: &ToolFormat) -> (String, String) {
    (format.written.first.to_owned(), format.written.last.to_owned())
}

fn object(format: &ToolFormat, arguments: &str) -> String {
    let Syntax::Object { arguments: key, .. } = format.syntax else { panic!("{format:?}") };
    format!("{{\"name\": \"now\", \"{key}\": {arguments}")
}

#[test]
fn recognising_a_call_does_not_depend_on_the_chunks() {
    for format in object_formats() {
        let (before, after) = around(format);
        for text in [
            object(format, "{}}"),
            object(format, "{\"a\": \"}\"}"),
            object(format, "{}}}"),
            object(format, "{}}]}"),
            object(format, "{\"a\": [1}}"),
            object(format, "{\"a\": \"b"),
            object(format, "{}, \"name\": \"no\"}"),
            object(format, "{}, \"arguments\": {}}"),
            object(format, "{} x}"),
            "{\"arguments\": {\"a\": 1}, \"name\": \"now\"".to_owned(),
            "{\"arguments\": {}, \"name\": \"none\"}".to_owned(),
            "{\"name\": \"now\"".to_owned(),
            "{\"name\": \"now\", \"name\": \"now\"}".to_owned(),
        ] {
            check_every_split(format, &format!("{before}{text}{after}"));
            check_every_split(format, &format!("a {before}{text}{after} b"));
            check_every_split(format, &format!("{before}{text}"));
        }
    }
}

#[test]
fn an_object_without_its_last_brace_is_a_call() {
    for format in object_formats() {
        let (before, after) = around(format);
        for rest in [after.as_str(), "", "\n"] {
            let text = format!("{before}{}{rest}", object(format, "{\"a\": 1}"));
            check(format, &text, "", &["now({\"a\": 1})"]);
        }
    }
}

#[test]
fn unmatched_closing_brackets_after_a_call_are_dropped() {
    for format in object_formats() {
        let (before, after) = around(format);
        let text = format!("{before}{}}}}}{after}", object(format, "{\"a\": 1}"));
        check(format, &text, "", &["now({\"a\": 1})"]);
        let text = format!("{before}{}}}}}{after} So.", object(format, "{}"));
        check(format, &text, " So.", &["now({})"]);
    }
}

#[test]
fn a_call_is_truncated_until_its_arguments_are_complete() {
    for format in object_formats() {
        let (before, after) = around(format);
        let text = format!("{before}{}{after}", object(format, "{\"a\": {\"b\": \"}\"}}}"));
        let begins = text.find("{\"a\"").unwrap() + 1;
        let ends = text.find("}}}").unwrap() + 2;
        for at in 0..=text.len() {
            let (delta, is_truncated) = parse_chunks(format, [&text[..at]].into_iter());
            assert_eq!(is_truncated, (begins..ends).contains(&at), "{:?}", &text[..at]);
            assert_eq!(delta.calls.len(), usize::from(at >= begins), "{:?}", &text[..at]);
        }
    }
}

#[test]
fn a_separator_without_a_following_call_is_content_unless_it_ends_the_answer() {
    let one = "{\"name\": \"now\", \"parameters\": {}}";
    check(named("llama"), &format!("{one}; "), "", &["now({})"]);
    check(named("llama"), &format!("{one}, so be it"), ", so be it", &["now({})"]);
}

proptest! {
    // Every case takes a run for each format and split.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_text_gives_the_same_result_at_every_split(
        chunks in prop::collection::vec(prop::sample::select(&["<tool_call>\n{\"name\": \"now\", \"arguments\": {", "</tool_call>",
            "[TOOL_CALLS] [{\"name\": \"now\", \"arguments\": {", "{\"name\": \"now\", \"parameters\": {", "{", "}", "[", "]", "\"", "\"a\": ",
            ":", ",", ";", " ", "1", "é", "\\"][..]), 0..7),
    ) {
        let text = chunks.concat();
        for format in FORMATS {
            check_every_split(format, &text);
        }
    }

    #[test]
    fn text_without_calls_is_returned_unchanged(
        chunks in prop::collection::vec(prop::sample::select(&["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>",
            "{", "}", "[", "]", "\"name\"", "\"now\"", "\"arguments\"", "\"parameters\"", ":", ",", " ", "\n", "1", "é", "\\", ";"][..]), 0..20),
    ) {
        let text = chunks.concat();
        for format in FORMATS {
            let (content, calls) = delta(format, &text);
            prop_assert!(!calls.is_empty() || content == text, "{:?} became {:?}", text, content);
        }
    }
}
