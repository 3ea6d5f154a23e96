//! Chat templates: messages to the text that the model was trained on.
//!
//! Templates come with models and are written against Python's Jinja2 as `transformers` sets it up, so the set-up is
//! repeated here: its options, its three functions and filters, and Python's methods on strings, lists and maps.
//! They are programs by strangers: steps are bounded, and nothing that they do can panic.

use std::{collections::BTreeMap, fmt, time::SystemTime};

use minijinja::{Environment, Error, ErrorKind, Value, context, syntax::SyntaxConfig, value::Serde};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{Message, TextError, date, json};

/// Steps that one rendering may take: hundreds for a usual message, so this is a long conversation or a loop.
const FUEL: u64 = 5_000_000;

/// OpenAI's newer name for the role of whoever sets a model up.
const DEVELOPER: &str = "developer";

const NAME: &str = "chat";

/// A chat template, ready to render.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like.
    tokens: BTreeMap<String, String>,
    /// It tells a developer's messages from the system's.
    knows_developer: bool,
}

impl ChatTemplate {
    /// Compiles `source`; `tokens` are the names under which it finds special tokens.
    pub(super) fn compile(source: &str, tokens: BTreeMap<String, String>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| date::format(SystemTime::now(), format));
        environment.add_filter("tojson", json::tojson);
        environment.add_template_owned(NAME, without_generation_marks(source))?;
        Ok(Self { environment, tokens, knows_developer: source.contains(DEVELOPER) })
    }

    /// The text that asks the model for the next answer.
    pub(super) fn render(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
    ) -> Result<String, TextError> {
        let messages = self.with_known_roles(messages);
        let none = Value::from(());
        // Templates ask whether there is a list, and some not whether anything is in it.
        let tools = if tools.is_empty() { none.clone() } else { Value::from(Serde(tools)) };
        let asked = context! {
            messages => Serde(&messages), add_generation_prompt => true, tools => tools, documents => none,
        };
        let context = context! { ..asked, ..Value::from(Serde(&self.tokens)) };
        let template = self.environment.get_template(NAME);
        template.and_then(|template| template.render(context)).map_err(to_text_error)
    }
}

impl ChatTemplate {
    /// OpenAI's newer name for the system's role becomes the older one where the template has never heard of it: most pass
    /// on any role, and the model would read one that it was not trained on.
    fn with_known_roles(&self, messages: &[Message]) -> Vec<Message> {
        let mut messages = messages.to_vec();
        for message in
            messages.iter_mut().filter(|message| !self.knows_developer && message.role == DEVELOPER)
        {
            message.role = "system".into();
        }
        messages
    }
}

/// What a template passed to `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
}

fn to_text_error(error: Error) -> TextError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TextError::TemplateSteps { most: FUEL };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(e) = cause {
        if let Some(Raised(message)) = e.downcast_ref() {
            return TextError::Messages { message: message.clone() };
        }
        cause = e.source();
    }
    TextError::Template { message: error.to_string() }
}

/// `{% generation %}` marks what a model is trained on and renders as if it were not there. Jinja2 knows it by an
/// extension; a condition that always holds does the same and keeps the marks for white space.
fn without_generation_marks(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        plain.push_str(before);
        plain.push_str(&match tag_name(&tag[..end]) {
            "generation" => tag[..end].replace("generation", "if true"),
            "endgeneration" => tag[..end].replace("endgeneration", "endif"),
            _ => tag[..end].to_owned(),
        });
        rest = &tag[end..];
    }
    plain + rest
}

fn tag_name(tag: &str) -> &str {
    tag.trim_matches(|c: char| c.is_whitespace() || "{%-+}".contains(c))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(contents: &[(&str, &str)]) -> Vec<Message> {
        contents.iter().map(|&(role, content)| Message::new(role, content)).collect()
    }

    fn render(source: &str) -> Result<String, TextError> {
        let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        let chat = [("system", " Be brief. "), ("user", "a <b> & 'c'\nनमस्ते")];
        ChatTemplate::compile(source, tokens).unwrap().render(&messages(&chat), &[])
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
            ChatTemplate::compile(source, BTreeMap::new()).unwrap().render(&messages, &[]).unwrap()
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
        let call = json!({ "function": { "name": "add", "arguments": { "b": 1, "a": "é" } } });
        let messages = [
            Message::new("user", "x"),
            Message { tool_calls: vec![call], content: None, ..Message::new("assistant", "") },
            Message { tool_call_id: Some("id".into()), ..Message::new("tool", "4") },
        ];
        let tools = [json!({ "type": "function", "function": { "name": "add" } })];
        let said = template.render(&messages, &tools).unwrap();
        assert_eq!(said, "add False{\"b\": 1, \"a\": \"é\"}b=1a=éid");
    }

    #[test]
    fn a_raised_exception_is_the_clients_with_the_templates_words_even_from_within_a_macro() {
        let source =
            "{% macro check() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ check() }}";
        let error = render(source).unwrap_err();
        assert!(error.is_the_clients(), "{error:?}");
        assert!(error.to_string().contains("roles must alternate"), "{error}");
    }

    #[test]
    fn a_mistake_in_the_template_is_not_the_clients() {
        let error = render("{{ messages[0].content.frobnicate() }}").unwrap_err();
        assert!(!error.is_the_clients(), "{error:?}");
        assert!(error.to_string().contains("frobnicate"), "{error}");
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
}
