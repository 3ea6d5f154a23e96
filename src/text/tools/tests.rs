//! Answers in every format, at every cut, beside texts that only look like calls.

use proptest::prelude::*;

use super::*;

fn format(template: &str) -> &'static ToolFormat {
    match ToolSupport::of(template) {
        ToolSupport::Read(format) => format,
        other => panic!("{other:?}: {template}"),
    }
}

fn reader(format: &'static ToolFormat) -> CallReader {
    let names = ["weather".to_owned(), "now".to_owned()].into();
    CallReader::new(Reading { format, names, single: false, opened: false })
}

/// The result of reading a text in these pieces, without ids, and whether its last call is cut.
fn told_of<'a>(format: &'static ToolFormat, pieces: impl Iterator<Item = &'a str>) -> (AnswerDelta, bool) {
    let mut reader = reader(format);
    let mut all = AnswerDelta::default();
    pieces.for_each(|piece| all.append(&reader.push(piece)));
    all.append(&reader.finish());
    all.calls.iter_mut().for_each(|call| call.id = None);
    (all, reader.is_cut())
}

/// The same for pieces of `size` characters.
fn told_by(format: &'static ToolFormat, text: &str, size: usize) -> AnswerDelta {
    let characters: Vec<char> = text.chars().collect();
    let pieces: Vec<String> = characters.chunks(size).map(|piece| piece.iter().collect()).collect();
    told_of(format, pieces.iter().map(String::as_str)).0
}

/// Checks that a text is read in the same way whole and at every cut into two or three pieces.
fn check_every_cut(format: &'static ToolFormat, text: &str) {
    let whole = told_of(format, [text].into_iter());
    let cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    for (place, first) in cuts.iter().enumerate() {
        for second in &cuts[place..] {
            let pieces = [&text[..*first], &text[*first..*second], &text[*second..]];
            assert_eq!(told_of(format, pieces.into_iter()), whole, "{pieces:?}");
        }
    }
}

/// The same at every size, in short: the content, and each call as `name(arguments)`.
fn delta(format: &'static ToolFormat, text: &str) -> (String, Vec<String>) {
    let whole = told_by(format, text, usize::MAX);
    for size in 1..text.chars().count().max(2) {
        assert_eq!(told_by(format, text, size), whole, "{text:?} in pieces of {size}");
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
fn a_template_says_by_its_text_which_format_its_model_writes() {
    let qwen = "{%- if tools %}{{- \"\\n\\nFor each function call, return a json object with function name and arguments within \
        <tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\\"name\\\": <function-name>, \\\"arguments\\\": <args-json-object>}\\n\
        </tool_call><|im_end|>\\n\" }}";
    let llama = "{%- if tools is not none %}{{- 'Respond in the format {\"name\": function name, \"parameters\": dictionary of \
        argument name and its value}.' }}{%- endif %}{{- '{\"name\": \"' + tool_call.name + '\", ' }}{{- '\"parameters\": ' }}";
    let mistral = "{%- if tools is not none %}[AVAILABLE_TOOLS]{%- endif %}{{- \"[TOOL_CALLS] [\" }}";
    assert_eq!(format(qwen), &hermes::FORMAT);
    assert_eq!(format(llama), &llama::FORMAT);
    assert_eq!(format(&format!("{llama}<|python_tag|>")), &llama::FORMAT);
    assert_eq!(format(mistral), &mistral::FORMAT);
    assert_eq!(ToolSupport::of("{{ messages[0].content }}"), ToolSupport::None);
    for other in [
        "{{ tools }}<tool_call>\n<function=",
        "{{ tools }}<tool_call>name\n<arg_key>",
        "{{ tools }}[TOOL_CALLS]name[ARGS]",
        "{{ tools }}",
    ] {
        assert_eq!(ToolSupport::of(other), ToolSupport::Unread, "{other}");
    }
}

#[test]
fn hermes_calls_stand_within_tags_after_text() {
    let hermes = &hermes::FORMAT;
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
fn llama_calls_are_the_whole_answer_or_stand_after_a_mark() {
    let llama = &llama::FORMAT;
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
fn mistral_calls_are_a_list_after_a_mark() {
    let mistral = &mistral::FORMAT;
    let list = "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Pune\"}, \"id\": \"123456789\"}, \
        {\"name\": \"now\", \"arguments\": {}}]";
    check(mistral, list, "", &["weather({\"city\": \"Pune\"})", "now({})"]);
    check(mistral, "[TOOL_CALLS][{\"name\":\"now\",\"arguments\":{}}]", "", &["now({})"]);
    assert!(mistral.new_id().len() == 9 && mistral.new_id().bytes().all(|byte| byte.is_ascii_alphanumeric()));
    assert_ne!(mistral.new_id(), mistral.new_id());
}

#[test]
fn what_only_looks_like_a_call_is_content_to_the_letter() {
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
        check(&hermes::FORMAT, text, text, &[]);
    }
    for text in [
        "{",
        "{}",
        "{\"name\": \"none\"}",
        " {\"a\": 1}",
        "{\"name\": \"now\", \"parameters\": \"{}\"} ",
        "<|python_tag|> x",
    ] {
        check(&llama::FORMAT, text, text, &[]);
    }
    for text in
        ["[TOOL_CALLS]", "[TOOL_CALLS] {\"name\": \"x\"}", "[TOOL_CALLS] [1]", "[TOOL_", "[TOOL_CALLS] [ \n"]
    {
        check(&mistral::FORMAT, text, text, &[]);
    }
}

#[test]
fn arguments_are_told_as_they_come_and_a_call_that_is_cut_stays_so() {
    let mut reader = reader(&hermes::FORMAT);
    assert!(reader.push("<tool_call>{\"name\": \"weather\", \"arguments\": ").is_empty());
    let begun = &reader.push("{\"ci").calls[0];
    assert_eq!((begun.index, begun.name.as_deref(), begun.arguments.as_str()), (0, Some("weather"), "{\"ci"));
    assert!(begun.id.as_ref().unwrap().starts_with("call_"));
    let more = Call { arguments: "ty".into(), ..Call::default() };
    assert_eq!(reader.push("ty").calls, [more]);
    assert!(reader.finish().is_empty());
}

#[test]
fn one_call_is_all_that_is_told_where_one_is_wanted() {
    let names = ["now".to_owned()].into();
    let mut reader = CallReader::new(Reading { format: &mistral::FORMAT, names, single: true, opened: true });
    let delta =
        reader.push(" [{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"now\", \"arguments\": {}}] more");
    assert!(reader.is_over() && delta.calls.len() == 1 && delta.content.is_empty());
    assert!(reader.push("more").is_empty() && reader.finish().is_empty());
}

/// Of a format: the text before and after an object that is a call.
fn around(format: &ToolFormat) -> (String, String) {
    (format!("{}{}", format.opening, format.open), format.close.to_owned())
}

fn object(format: &ToolFormat, arguments: &str) -> String {
    format!("{{\"name\": \"now\", \"{}\": {arguments}", format.arguments)
}

#[test]
fn what_is_a_call_does_not_depend_on_how_the_text_was_cut() {
    for format in FORMATS {
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
            check_every_cut(format, &format!("{before}{text}{after}"));
            check_every_cut(format, &format!("a {before}{text}{after} b"));
            check_every_cut(format, &format!("{before}{text}"));
        }
    }
}

#[test]
fn an_object_without_its_last_brace_is_a_call() {
    for format in FORMATS {
        let (before, after) = around(format);
        for rest in [after.as_str(), "", "\n"] {
            let text = format!("{before}{}{rest}", object(format, "{\"a\": 1}"));
            check(format, &text, "", &["now({\"a\": 1})"]);
        }
    }
}

#[test]
fn brackets_that_close_nothing_behind_a_call_are_dropped() {
    for format in FORMATS {
        let (before, after) = around(format);
        let text = format!("{before}{}}}}}{after}", object(format, "{\"a\": 1}"));
        check(format, &text, "", &["now({\"a\": 1})"]);
        let text = format!("{before}{}}}}}{after} So.", object(format, "{}"));
        check(format, &text, " So.", &["now({})"]);
    }
}

#[test]
fn a_call_is_cut_as_long_as_its_arguments_have_not_ended() {
    for format in FORMATS {
        let (before, after) = around(format);
        let text = format!("{before}{}{after}", object(format, "{\"a\": {\"b\": \"}\"}}}"));
        let begins = text.find("{\"a\"").unwrap() + 1;
        let ends = text.find("}}}").unwrap() + 2;
        for at in 0..=text.len() {
            let (delta, is_cut) = told_of(format, [&text[..at]].into_iter());
            assert_eq!(is_cut, (begins..ends).contains(&at), "{:?}", &text[..at]);
            assert_eq!(delta.calls.len(), usize::from(at >= begins), "{:?}", &text[..at]);
        }
    }
}

#[test]
fn a_separator_behind_which_no_call_comes_is_content() {
    let one = "{\"name\": \"now\", \"parameters\": {}}";
    check(&llama::FORMAT, &format!("{one}; "), "", &["now({})"]);
    check(&llama::FORMAT, &format!("{one}, so be it"), ", so be it", &["now({})"]);
}

proptest! {
    #[test]
    fn any_text_is_told_the_same_at_every_cut(
        pieces in prop::collection::vec(prop::sample::select(&["<tool_call>\n{\"name\": \"now\", \"arguments\": {", "</tool_call>",
            "[TOOL_CALLS] [{\"name\": \"now\", \"arguments\": {", "{\"name\": \"now\", \"parameters\": {", "{", "}", "[", "]", "\"", "\"a\": ",
            ":", ",", ";", " ", "1", "é", "\\"][..]), 0..7),
    ) {
        let text = pieces.concat();
        for format in FORMATS {
            check_every_cut(format, &text);
        }
    }

    #[test]
    fn nothing_is_lost_and_cuts_change_nothing(
        pieces in prop::collection::vec(prop::sample::select(&["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>",
            "{", "}", "[", "]", "\"name\"", "\"now\"", "\"arguments\"", "\"parameters\"", ":", ",", " ", "\n", "1", "é", "\\", ";"][..]), 0..20),
    ) {
        let text = pieces.concat();
        for format in FORMATS {
            let (content, calls) = delta(format, &text);
            prop_assert!(!calls.is_empty() || content == text, "{:?} became {:?}", text, content);
        }
    }
}
