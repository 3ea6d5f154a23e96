//! Named chat templates and special tokens, in every place where `transformers` looks for them.

use std::fs;

use eka::{
    export::{Options, Source, export},
    text::{Conversation, Message, Text},
};
use serde_json::{Value, json};

use crate::support::{files::copy, model_folder::Folder, program::root};

const DEFAULT: &str =
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}";
const TOOL_USE: &str = "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}{% for m in messages %}({{ m.role }}){{ m.content }}{% endfor %}";

fn chat(tools: Vec<Value>) -> Conversation {
    Conversation { messages: vec![Message::new("user", "hi")], tools, ..Conversation::default() }
}

fn tool() -> Value {
    json!({ "type": "function", "function": { "name": "add" } })
}

fn rendered(dir: &std::path::Path) -> [String; 2] {
    let text = Text::open(dir, "model").unwrap();
    [vec![], vec![tool()]].map(|tools| text.render(&chat(tools)).unwrap())
}

const RIGHT: [&str; 2] = ["<s>[user]hi</s>", "<add>(user)hi"];

/// The named templates as a list in `tokenizer_config.json`.
fn listed() -> Value {
    json!([{ "name": "default", "template": DEFAULT }, { "name": "tool_use", "template": TOOL_USE },
           { "name": "rag", "template": "{% this is never compiled" }])
}

fn config(more: &Value) -> String {
    let mut config = json!({ "bos_token": "<s>", "eos_token": "</s>" });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config.to_string()
}

#[test]
fn the_template_named_tool_use_is_used_with_tools_wherever_it_is_found() {
    let folder = Folder::new();
    fs::write(folder.file("tokenizer_config.json"), config(&json!({ "chat_template": listed() }))).unwrap();
    assert_eq!(rendered(&folder.path()), RIGHT);
    // It also renders conversations that have only results of tools.
    let result = Message { tool_call_id: Some("a".into()), ..Message::new("tool", "4") };
    let text = Text::open(&folder.path(), "model").unwrap();
    let followed = Conversation { messages: vec![result], ..Conversation::default() };
    assert_eq!(text.render(&followed).unwrap(), "(tool)4");
    // Files win over the list.
    fs::create_dir(folder.file("additional_chat_templates")).unwrap();
    fs::write(folder.file("additional_chat_templates/tool_use.jinja"), format!("file {TOOL_USE}")).unwrap();
    fs::write(folder.file("chat_template.jinja"), DEFAULT).unwrap();
    assert_eq!(rendered(&folder.path()), [RIGHT[0], "file <add>(user)hi"]);
}

#[test]
fn a_processors_template_is_used_if_there_is_no_other() {
    let folder = Folder::new();
    fs::write(folder.file("tokenizer_config.json"), config(&json!({}))).unwrap();
    fs::write(folder.file("chat_template.json"), json!({ "chat_template": DEFAULT }).to_string()).unwrap();
    let text = Text::open(&folder.path(), "model").unwrap();
    assert_eq!(text.render(&chat(vec![])).unwrap(), RIGHT[0]);
    let with_tools = text.render(&chat(vec![tool()])).unwrap();
    assert!(
        with_tools.contains("\"add\"") && with_tools.contains("<tool_call>"),
        "instructions replace the template's: {with_tools}"
    );
}

#[test]
fn bos_and_eos_are_found_in_the_map_and_in_the_defaults_of_the_tokenizers_class() {
    let folder = Folder::new();
    fs::write(folder.file("chat_template.jinja"), DEFAULT).unwrap();
    let write = |name: &str, content: &Value| fs::write(folder.file(name), content.to_string()).unwrap();
    let first = || Text::open(&folder.path(), "model").unwrap().render(&chat(vec![])).unwrap();
    write("tokenizer_config.json", &json!({ "tokenizer_class": "PreTrainedTokenizerFast" }));
    assert_eq!(first(), "[user]hi");
    write("tokenizer_config.json", &json!({ "tokenizer_class": "LlamaTokenizer" }));
    assert_eq!(first(), RIGHT[0]);
    write("tokenizer_config.json", &json!({ "tokenizer_class": "PreTrainedTokenizerFast" }));
    write("special_tokens_map.json", &json!({ "bos_token": { "content": "<s>" }, "eos_token": "</s>" }));
    assert_eq!(first(), RIGHT[0]);
}

#[test]
fn an_export_keeps_every_template_and_special_token() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    copy(&root().join("tests/fixtures/llama/base"), &base);
    fs::write(base.join("tokenizer_config.json"), json!({ "chat_template": listed() }).to_string()).unwrap();
    fs::write(base.join("special_tokens_map.json"), r#"{"bos_token": "<s>", "eos_token": "</s>"}"#).unwrap();
    let output = dir.path().join("model");
    let source = Source::Checkpoint { base, adapters: Vec::new() };
    export(&Options::new(source, output.clone()), &()).unwrap();
    assert_eq!(rendered(&output), RIGHT);
    let manifest: Value = serde_json::from_slice(&fs::read(output.join("eka.json")).unwrap()).unwrap();
    let recorded: Vec<&str> =
        manifest["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert_eq!(
        recorded,
        [
            "adapter_base.json",
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
            "generation_config.json",
            "model.onnx",
            "model.onnx.data",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
}

#[test]
fn the_tokenizers_eos_token_also_ends_an_answer() {
    let folder = Folder::new();
    let end_tokens = || Text::open(&folder.path(), "model").unwrap().card().end_tokens.clone();
    let write = |config: Value| fs::write(folder.file("tokenizer_config.json"), config.to_string()).unwrap();
    let mut manifest = folder.manifest();
    manifest["end_tokens"] = json!([]);
    folder.write_manifest(&manifest);
    write(json!({ "eos_token": "</s>" }));
    assert_eq!(end_tokens(), [2]);
    manifest["end_tokens"] = json!([2]);
    folder.write_manifest(&manifest);
    assert_eq!(end_tokens(), [2]);
    write(json!({ "eos_token": "<unk>" }));
    assert_eq!(end_tokens(), [2, 0]);
}
