//! Templates, and what Jinja2 made of them.

use serde_json::json;

use super::*;

fn messages(contents: &[(&str, &str)]) -> Vec<Message> {
    contents.iter().map(|&(role, content)| Message::new(role, content)).collect()
}

fn render(source: &str) -> Result<String, TextError> {
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let chat = [("system", " Be brief. "), ("user", "a <b> & 'c'\nनमस्ते")];
    ChatTemplate::compile(source, tokens).unwrap().render(TemplateInput::of(&messages(&chat), &[]))
}

#[test]
fn blocks_are_trimmed_as_transformers_trims_them() {
    let source = "{{ bos_token }}\n  {% for m in messages %}\n{{ m.role }};\n  {% endfor %}\nend\n";
    assert_eq!(render(source).unwrap(), "<s>\nsystem;\nuser;\nend");
}

#[test]
fn a_developer_is_the_system_to_a_template_that_does_not_know_one() {
    let render = |source| {
        let messages = messages(&[("developer", "a"), ("user", "b")]);
        ChatTemplate::compile(source, BTreeMap::new())
            .unwrap()
            .render(TemplateInput::of(&messages, &[]))
            .unwrap()
    };
    let all = "{% for m in messages %}{{ m.role }} {% endfor %}";
    assert_eq!(render(all), "system user ");
    assert_eq!(render(&format!("{all}{{# knows the developer #}}")), "developer user ");
}

#[test]
fn python_methods_slices_and_loop_controls_work() {
    let source = "{% for m in messages[1:] %}{% for k, v in m.items() %}{{ k.upper() }}{{ v.split('<')[0].strip() }}\
         {% break %}{% endfor %}{% endfor %}{{ messages[0]['content'].strip() }}{{ messages[-1].get('x', 'y') }}";
    assert_eq!(render(source).unwrap(), "ROLEuserBe brief.y");
}

#[test]
fn tojson_is_pythons_and_escapes_nothing_for_html() {
    let source = "{{ messages[1] | tojson }}";
    assert_eq!(render(source).unwrap(), r#"{"role": "user", "content": "a <b> & 'c'\nनमस्ते"}"#);
    let source = "{{ [1, {'a': [], 'b': none}] | tojson(indent=2) }}";
    assert_eq!(render(source).unwrap(), "[\n  1,\n  {\n    \"a\": [],\n    \"b\": null\n  }\n]");
}

#[test]
fn tools_and_documents_are_none_and_unknown_names_are_empty() {
    let source =
        "{% if tools is none and not documents and add_generation_prompt %}ok{% endif %}{{ nothing }}";
    assert_eq!(render(source).unwrap(), "ok");
}

#[test]
fn tools_and_calls_are_lists_and_arguments_an_object() {
    let source = "{% if tools is not none %}{% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}\
         {% for m in messages %}{% if m.tool_calls is defined %}{% for c in m.tool_calls %}\
         {{ c.function.arguments | tojson }}{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}\
         {% endfor %}{% elif 'tool_call_id' in m %}{{ m.tool_call_id }}{% else %}{{ m.content is none }}{% endif %}{% endfor %}";
    let template = ChatTemplate::compile(source, BTreeMap::new()).unwrap();
    let call = call(json!({ "b": 1, "a": "é" }));
    let messages = [
        Message::new("user", "x"),
        Message { tool_calls: vec![call], content: None, ..Message::new("assistant", "") },
        Message { tool_call_id: Some("id".into()), ..Message::new("tool", "4") },
    ];
    let tools = [json!({ "type": "function", "function": { "name": "add" } })];
    let rendered = template.render(TemplateInput::of(&messages, &tools)).unwrap();
    assert_eq!(rendered, "add False{\"b\": 1, \"a\": \"é\"}b=1a=éid");
}

#[test]
fn a_template_that_loops_over_absent_tools_renders_without_tools() {
    let source = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}{{ messages[0].content }}";
    let rendered = ChatTemplate::compile(source, BTreeMap::new()).unwrap();
    assert_eq!(rendered.render(TemplateInput::of(&[Message::new("user", "x")], &[])).unwrap(), "x");
}

#[test]
fn a_template_that_joins_a_description_renders_a_tool_that_has_none() {
    let source = "{% for t in tools %}{{ t.function.name + ': ' + t.function.description }} {{ t.function.parameters.type }}{% endfor %}";
    let template = ChatTemplate::compile(source, BTreeMap::new()).unwrap();
    let tools = [json!({ "type": "function", "function": { "name": "add" } })];
    assert_eq!(
        template.render(TemplateInput::of(&[Message::new("user", "x")], &tools)).unwrap(),
        "add:  object"
    );
}

#[test]
fn a_template_that_joins_arguments_renders_them_as_they_were_written() {
    let source = "{% for c in messages[0].tool_calls %}{% set a = c.function.arguments %}\
         {{ 'call ' + (a if a is string else a | tojson) }}{% endfor %}";
    let always_text = "{% for c in messages[0].tool_calls %}{{ 'call ' + c.function.arguments }}{% endfor %}";
    for source in [source, always_text] {
        let template = ChatTemplate::compile(source, BTreeMap::new()).unwrap();
        for text in [r#"{"a": True"#, r#"{"b":1.0, "a": 2}"#] {
            let call = ToolCall::new(None, "add", Arguments::Written(text.into()));
            let message = Message { tool_calls: vec![call], ..Message::new("assistant", "") };
            assert_eq!(template.render(TemplateInput::of(&[message], &[])).unwrap(), format!("call {text}"));
        }
    }
}

#[test]
fn a_failing_template_reports_the_first_error() {
    let error = render("{% for tool in tools %}{% endfor %}{{ messages[0].content + 1 }}").unwrap_err();
    assert!(error.to_string().contains("NoneType is not iterable"), "{error}");
}

#[test]
fn a_raised_exception_is_the_clients_with_the_templates_words_even_from_within_a_macro() {
    let source =
        "{% macro check() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ check() }}";
    let error = render(source).unwrap_err();
    assert!(error.is_client_error(), "{error:?}");
    assert!(error.to_string().contains("roles must alternate"), "{error}");
}

#[test]
fn unsupported_template_features_are_named_with_their_line() {
    for construct in ["| frobnicate", "is frobnicate"] {
        let error = render(&format!("a\n{{{{ messages[0].content {construct} }}}}")).unwrap_err();
        assert!(matches!(error, TextError::TemplateUnsupported { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("frobnicate") && message.contains("chat:2"), "{message}");
    }
}

#[test]
fn an_error_that_python_also_raises_is_a_template_failure_with_its_line() {
    for construct in [".frobnicate()", ".frobnicate.more", " + 1", " < 1"] {
        let error = render(&format!("a\n{{{{ messages[0].content{construct} }}}}")).unwrap_err();
        assert!(matches!(error, TextError::TemplateFailed { .. }), "{error:?}");
        assert!(error.to_string().contains("chat:2"), "{error}");
    }
}

/// A call of `add`.
fn call(arguments: serde_json::Value) -> ToolCall {
    let arguments = arguments.as_object().cloned().unwrap();
    ToolCall::new(None, "add", Arguments::Object(arguments))
}

#[test]
fn arguments_that_a_model_wrote_are_written_as_they_are_unless_a_layout_is_asked_for() {
    let source = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function | tojson }} {{ c.function.arguments | tojson(indent=2) }}\
         {% if c.function.arguments is string %} string{% else %}{% for k, v in c.function.arguments.items() %} {{ k }}={{ v }}\
         {% endfor %}{% endif %}{% endfor %}{% endfor %}";
    let template = ChatTemplate::compile(source, BTreeMap::new()).unwrap();
    let render = |text: &str| {
        let call = ToolCall::new(None, "add", Arguments::Written(text.into()));
        template
            .render(TemplateInput::of(
                &[Message { tool_calls: vec![call], ..Message::new("assistant", "") }],
                &[],
            ))
            .unwrap()
    };
    let object = r#"{"b":1.0,"a":"\u00e9"}"#;
    let laid_out = "{\n  \"b\": 1.0,\n  \"a\": \"é\"\n}";
    assert_eq!(render(object), format!(r#"{{"name": "add", "arguments": {object}}} {laid_out} b=1.0 a=é"#));
    let none = r#"{"a": True, 1e400"#;
    assert_eq!(render(none), format!(r#"{{"name": "add", "arguments": {none}}} {none} string"#));
}

/// A conversation with a call that has no text beside it.
fn with_a_call_alone() -> [Message; 3] {
    let call = call(json!({}));
    [
        Message::new("user", "x"),
        Message { tool_calls: vec![call], content: None, ..Message::new("assistant", "") },
        Message { tool_call_id: Some("id".into()), ..Message::new("tool", "4") },
    ]
}

#[test]
fn content_that_is_null_reaches_a_template_as_an_empty_string() {
    let source = "{% for message in messages %}{{ message.role }}{% if '</think>' in message.content %}!{% endif %}\
         {{ message.content.strip() }}{% for call in message.tool_calls %}[{{ call.function.name }}]{% endfor %} {% endfor %}";
    let template = ChatTemplate::compile(source, BTreeMap::new()).unwrap();
    assert_eq!(
        template.render(TemplateInput::of(&with_a_call_alone(), &[])).unwrap(),
        "userx assistant[add] tool4 "
    );
}

#[test]
fn a_template_that_writes_calls_only_beside_null_gets_null() {
    let source = "{% for message in messages %}{% if message['content'] is none %}{% for call in message.tool_calls %}\
         [{{ call.function.name }}]{% endfor %}{% else %}{{ message.content + ' ' }}{% endif %}{% endfor %}";
    let template = ChatTemplate::compile(source, BTreeMap::new()).unwrap();
    assert_eq!(template.render(TemplateInput::of(&with_a_call_alone(), &[])).unwrap(), "x [add]4 ");
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}\
         {% endfor %}{% endfor %}";
    assert!(matches!(render(source), Err(TextError::TemplateSteps { .. })));
}

#[test]
fn generation_marks_render_as_if_they_were_not_there() {
    let source = "{%- generation -%} a {%- endgeneration %}{% generation %}b{% endgeneration %}{% if true %}c{% endif %}";
    assert_eq!(render(source).unwrap(), "abc");
}

#[test]
fn a_template_that_does_not_compile_says_where() {
    let error = ChatTemplate::compile("{% for %}", BTreeMap::new()).err().unwrap();
    assert!(error.to_string().contains("chat:1"), "{error}");
}

/// What Jinja2 made of templates, with the names that each of them finds.
fn jinja_table() -> serde_json::Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jinja/table.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn render_with(source: &str, context: &serde_json::Value) -> Result<String, Error> {
    let mut environment = environment::new()?;
    environment.add_template_owned(NAME, syntax::translate(source)?)?;
    environment.get_template(NAME)?.render(Value::from(Serde(context)))
}

#[test]
fn more_than_a_thousand_templates_render_as_jinja2_renders_them_and_fail_where_it_fails() {
    let table = jinja_table();
    let groups = table["groups"].as_object().unwrap();
    let entries: Vec<_> = groups.values().flat_map(|group| group.as_array().unwrap()).collect();
    assert!(entries.len() > 1_000, "{}", entries.len());
    let differences: Vec<String> = entries
        .into_iter()
        .filter_map(|entry| {
            let rendered = render_with(entry["template"].as_str().unwrap(), &table["context"]);
            let is_same = rendered.as_ref().ok().map(String::as_str) == entry["output"].as_str();
            (!is_same).then(|| format!("{entry}\n  eka: {rendered:?}"))
        })
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn differences_from_jinja2_are_listed_with_the_results_of_eka() {
    let table = jinja_table();
    for entry in table["differs"].as_array().unwrap() {
        let rendered = render_with(entry["template"].as_str().unwrap(), &table["context"]);
        let eka = rendered.unwrap_or_else(|_| "error".into());
        assert_eq!(Some(eka.as_str()), entry["eka"].as_str(), "{entry}");
        assert_ne!(entry["output"].as_str(), Some(eka.as_str()), "{entry} does not differ");
    }
}

#[test]
fn widths_and_repetitions_that_need_gigabytes_fail_their_own_request() {
    for expression in [
        "'{:>9999999999}'.format(1)",
        "'{:.999999999}'.format(1.5)",
        "'%9999999999d' % 1",
        "'%.99999999f' % 1.5",
        "'%*d' % (999999999, 1)",
        "'a'.ljust(99999999999)",
        "'1'.zfill(99999999999)",
        "'a' | center(99999999999)",
        "'a' * 99999999999",
        "[1] * 99999999999",
        "'a' | indent(99999999999)",
        "('a' * 100000).replace('a', 'b' * 100000)",
        "('b' * 100000).join(['a'] * 100000)",
        "('\\t' * 100000).expandtabs(60000)",
        "range(99999999999) | list",
        "[1] | batch(99999999999, 'a') | map('length') | first > 100000",
        "[1] | slice(99999999999) | list",
    ] {
        let rendered = render(&format!("{{{{ {expression} }}}}"));
        let is_small = rendered.as_ref().is_ok_and(|text| text.len() < 100);
        assert!(rendered.is_err() || is_small, "{expression}");
    }
}

#[test]
fn expressions_nested_a_hundred_thousand_deep_are_refused() {
    for (open, close) in [("(", ")"), ("[", "]"), ("not ", ""), ("-", ""), ("{1:", "}"), ("a[", "]")] {
        let source = format!("{{{{ {}1{} }}}}", open.repeat(100_000), close.repeat(100_000));
        assert!(ChatTemplate::compile(&source, BTreeMap::new()).is_err(), "{open}");
    }
    for source in [
        "{% if a %}".repeat(100_000),
        format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(100_000)),
        format!("{{{{ a {} }}}}", "+ a ".repeat(100_000)),
        format!("{{{{ a {} }}}}", "| upper ".repeat(100_000)),
        format!("{{% include {}a %}}", "-".repeat(100_000)),
        format!("{{{{ {}@ }}}}", "-".repeat(100_000)),
    ] {
        assert!(ChatTemplate::compile(&source, BTreeMap::new()).is_err(), "{}", &source[..40]);
    }
}

#[test]
fn a_long_chain_of_operators_does_not_count_as_nesting() {
    let source = format!("{{{{ {}'c' }}}}", "'a' + 'b' ~ 'b' + ".repeat(300));
    assert_eq!(render(&source).unwrap().len(), 901);
}

#[test]
fn nothing_that_a_template_calls_with_too_few_arguments_panics() {
    let names = ["mod", "concat", "slice", "item", "attribute", "in", "lt", "plus", "iter", "collect"];
    for call in names.map(|name| format!("eka_{name}()")).iter().map(String::as_str).chain([
        "range()",
        "cycler()",
        "joiner()",
        "raise_exception()",
        "strftime_now()",
        "dict(1, 2)",
        "'a' | replace",
        "[1] | map",
        "[1] | selectattr",
        "[1] | groupby",
        "[1] | batch",
        "'a'.join()",
        "1 is divisibleby",
        "1 is in",
    ]) {
        let _either_is_fine = render(&format!("{{{{ {call} }}}}"));
    }
}
