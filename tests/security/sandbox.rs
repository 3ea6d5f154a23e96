//! Schemas, grammars and templates with endless time, memory or nesting, in a child process that can be killed.

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use eka::{
    constraint::ConstraintError,
    job::Constraint,
    metrics::{Metrics, SandboxTask},
    sandbox::{ChildProgram, Sandbox, SandboxError},
};
use serde_json::{Map, Value, json};

use crate::support::{
    processes::{resident_kib, send_signal, subcommands_of},
    program::Program,
    server::{Server, ServerOptions, eventually, sandbox},
};

fn fresh() -> Sandbox {
    sandbox(&Arc::new(Metrics::new()))
}

fn json_schema(schema: Value) -> Constraint {
    Constraint::Schema(schema.to_string())
}

const LETTERS: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN";

/// 941 bytes that ask for an automaton of 2^40 states.
fn exponential() -> Value {
    let patterns: Vec<Value> = LETTERS.chars().map(|c| json!({ "pattern": format!(".*{c}.*") })).collect();
    json!({ "type": "string", "allOf": patterns })
}

/// The same where the patterns are not counted: the references are to anchors. `salt` makes it another schema.
fn exponential_in_disguise(salt: usize) -> Value {
    let named = |c: char| json!({ "$anchor": c.to_string(), "pattern": format!(".*{c}.*") });
    let definitions: Map<String, Value> = LETTERS.chars().map(|c| (c.to_string(), named(c))).collect();
    let references: Vec<Value> = LETTERS.chars().map(|c| json!({ "$ref": format!("#{c}") })).collect();
    json!({ "type": "string", "title": salt.to_string(), "allOf": references, "$defs": definitions })
}

fn ordinary(salt: usize) -> Value {
    json!({ "type": "object", "properties": { "name": { "type": "string", "maxLength": 3 }, "age": { "const": salt } },
        "required": ["name", "age"], "additionalProperties": false })
}

#[tokio::test]
async fn an_exponential_schema_is_rejected_with_keyword_and_position() {
    let refused = fresh().check(&json_schema(json!({ "items": exponential() }))).await.unwrap().unwrap_err();
    let ConstraintError::Cap { keyword, place, reason } = &refused else { panic!("{refused}") };
    assert_eq!((keyword.as_str(), place.as_str()), ("pattern", "#/items"));
    assert!(reason.contains("40 patterns"), "{reason}");
}

#[tokio::test]
async fn an_exponential_schema_is_rejected_and_its_process_killed() {
    let program = Program::start(&[]).await;
    let before = resident_kib(program.pid());
    let body = json!({ "prompt": "a", "max_new_tokens": 4, "json_schema": exponential_in_disguise(0) });
    let (status, answer) = program.ask("/generate-lite", &body).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_constraint")), "{answer}");
    assert!(message.contains("take") && message.contains("simpler"), "{message}");
    // What runs on is a fresh process or two, and nothing that computes.
    eventually("the process to be gone", || {
        subcommands_of(program.pid(), "sandbox").into_iter().all(is_idle)
    })
    .await;
    let grown = resident_kib(program.pid()).saturating_sub(before);
    assert!(grown < 64 << 10, "the server grew by {grown} KiB");
    // The verdict is known now.
    let starts = figure(&program, "eka_sandbox_starts_total").await;
    assert_eq!(program.ask("/generate-lite", &body).await.0, 400);
    assert_eq!(figure(&program, "eka_sandbox_starts_total").await, starts);
    let body = json!({ "prompt": "a", "max_new_tokens": 4, "json_schema": ordinary(1) });
    assert_eq!(program.ask("/generate-lite", &body).await.0, 200);
}

/// Whether a process sleeps, as one does that waits for a task.
fn is_idle(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| !rest.starts_with('R'))
}

async fn figure(program: &Program, name: &str) -> String {
    let text = program.metrics().await;
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

#[tokio::test]
async fn eight_exponential_schemas_do_not_block_another_clients_schema() {
    let server = Arc::new(Server::start(ServerOptions::default()));
    let attackers: Vec<_> = (0..8)
        .map(|attacker| {
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let mut refused = BTreeSet::new();
                for round in 0..3 {
                    let schema = exponential_in_disguise(100 * attacker + round);
                    let body = json!({ "prompt": "a", "json_schema": schema });
                    let (status, answer) = server.ask("/generate-lite", &body).await;
                    refused.insert((status, answer["error"]["code"].as_str().unwrap_or_default().to_owned()));
                }
                refused
            })
        })
        .collect();
    let mut answered = 0;
    while attackers.iter().any(|attacker| !attacker.is_finished()) {
        let body = json!({ "prompt": "a", "json_schema": ordinary(answered), "max_new_tokens": 4 });
        let (status, answer) = server.ask("/generate-lite", &body).await;
        assert_eq!(status, 200, "{answer}");
        answered += 1;
    }
    assert!(answered > 1, "no other request was answered meanwhile");
    for attacker in attackers {
        for (status, code) in attacker.await.unwrap() {
            let known = [(400, "invalid_constraint"), (429, "preparation_busy")];
            assert!(known.contains(&(status, code.as_str())), "{status} {code}");
        }
    }
}

#[tokio::test]
async fn too_many_slow_tasks_get_429_preparation_busy() {
    let metrics = Arc::new(Metrics::new());
    // It computes without end: a process that is never given the processor would be replaced instead.
    let command =
        ChildProgram { program: "sh".into(), arguments: vec!["-c".into(), "while :; do :; done".into()] };
    let sandbox = Sandbox::new(command, Arc::clone(&metrics));
    let checks = (0..4).map(|n| {
        let sandbox = sandbox.clone();
        tokio::spawn(async move { sandbox.check(&Constraint::Regex(n.to_string())).await })
    });
    let mut outcomes = Vec::new();
    for check in checks.collect::<Vec<_>>() {
        outcomes.push(check.await.unwrap());
    }
    let is_busy = |outcome: &Result<_, SandboxError>| matches!(outcome, Err(SandboxError::Busy));
    let is_slow = |outcome: &Result<_, _>| matches!(outcome, Ok(Err(ConstraintError::TooSlow { .. })));
    assert_eq!(outcomes.iter().filter(|outcome| is_busy(outcome)).count(), 2, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcome| is_slow(outcome)).count(), 2, "{outcomes:?}");
    let count =
        |outcome| metrics.sandbox_tasks.get_or_create(&SandboxTask { kind: "constraint", outcome }).get();
    assert_eq!((count("busy"), count("time"), count("ok")), (2, 2, 0));
}

#[tokio::test]
async fn a_task_of_a_disconnected_client_is_killed() {
    // Its seconds of sleep identify it.
    let command = ChildProgram { program: "sleep".into(), arguments: vec!["601".into()] };
    let sandbox = Sandbox::new(command, Arc::new(Metrics::new()));
    let constraint = Constraint::Regex("a".into());
    let left = tokio::time::timeout(Duration::from_millis(300), sandbox.check(&constraint)).await;
    assert!(left.is_err(), "{left:?}");
    let this = std::process::id();
    eventually("the process to be gone", || subcommands_of(this, "sleep 601").is_empty()).await;
}

#[tokio::test]
async fn a_sandbox_program_that_does_not_start_is_an_error() {
    for program in ["/nowhere/eka", "/bin/false"] {
        let command = ChildProgram { program: program.into(), arguments: Vec::new() };
        let sandbox = Sandbox::new(command, Arc::new(Metrics::new()));
        let checked = sandbox.check(&Constraint::Regex("a".into())).await;
        assert!(matches!(checked, Err(SandboxError::Unavailable { .. })), "{program}: {checked:?}");
    }
}

#[tokio::test]
async fn a_sandbox_process_is_reused_and_replaced_if_it_died() {
    let dir = tempfile::tempdir().unwrap();
    // A unique name distinguishes its processes from those of other tests.
    let program = dir.path().join("eka-of-this-test");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_eka"), &program).unwrap();
    let metrics = Arc::new(Metrics::new());
    let command = ChildProgram { program, arguments: vec!["sandbox".into()] };
    let sandbox = Sandbox::new(command, Arc::clone(&metrics));
    for n in 0..20 {
        sandbox.check(&json_schema(ordinary(n))).await.unwrap().unwrap();
    }
    assert_eq!(metrics.sandbox_starts.get(), 1);
    let idle = subcommands_of(std::process::id(), "eka-of-this-test");
    assert_eq!(idle.len(), 1);
    send_signal("KILL", idle[0]);
    sandbox.check(&json_schema(ordinary(20))).await.unwrap().unwrap();
    assert_eq!(metrics.sandbox_starts.get(), 2);
}

#[tokio::test]
async fn a_sandbox_process_killed_from_outside_is_not_a_client_error() {
    let command = ChildProgram { program: "sh".into(), arguments: vec!["-c".into(), "kill -9 $$".into()] };
    let sandbox = Sandbox::new(command, Arc::new(Metrics::new()));
    let checked = sandbox.check(&Constraint::Regex("a".into())).await;
    assert!(matches!(checked, Err(SandboxError::Unavailable { .. })), "{checked:?}");
}

/// A grammar with as many chained rules as the size limit allows.
fn short_chain() -> String {
    let name = |i: u32| {
        (0..3)
            .map(|digit| char::from_u32(u32::from('a') + i / 26_u32.pow(digit) % 26).unwrap())
            .collect::<String>()
    };
    let rules = (0..8_000).map(|i| format!("{}:{}\n", name(i), name(i + 1)));
    format!("start:aaa\n{}{}:\"x\"", rules.collect::<String>(), name(8_000))
}

/// Each would take minutes, gigabytes or the whole stack if nothing kept it from that.
#[tokio::test]
async fn expensive_constraints_are_rejected_or_harmless() {
    let deep = |open: &str, n: usize| Constraint::Lark(format!("start: {}\"a\"", open.repeat(n)));
    let many = |n: usize| (0..n).map(|i| format!("r{i}: r{}\n", i + 1)).collect::<String>();
    let nested =
        (0..60).fold(json!({"type": "string"}), |inner, _| json!({"anyOf": [inner, {"type": "null"}]}));
    let all_of: Vec<Value> = (0..2_000).map(|i| json!({"pattern": format!("a{{{i}}}")})).collect();
    let references: serde_json::Map<String, Value> = (0..2_000)
        .map(|i| (format!("a{i}"), json!({"$ref": format!("#/$defs/a{}", (i + 1) % 2_000)})))
        .collect();
    let names: serde_json::Map<String, Value> =
        (0..2_500).map(|i| (format!("a{i}"), json!({"$ref": "#"}))).collect();
    let bombs = [
        ("deep brackets", deep("(", 100_000)),
        ("brackets that are deep enough", deep("(", 5_000)),
        ("not", deep("~", 100_000)),
        ("a chain of rules", Constraint::Lark(format!("start: r0\n{}r4500: \"a\"", many(4_500)))),
        ("a chain of short rules", Constraint::Lark(short_chain())),
        ("a chain of references", json_schema(json!({"$ref": "#/$defs/a0", "$defs": references}))),
        ("a loop of rules", Constraint::Lark("start: a\na: b\nb: a".into())),
        ("counted twice", Constraint::Regex("((a{1,1000}){1,1000}){1,1000}".into())),
        ("counted once", Constraint::Regex("(.*a.{5000}){1,50000}".into())),
        ("or", Constraint::Regex("(a|b|ab|.)*".repeat(3_000))),
        (
            "many items",
            json_schema(json!({"type": "array", "minItems": 100_000_000, "items": {"$ref": "#"}})),
        ),
        ("a long string", json_schema(json!({"type": "string", "minLength": 100_000_000}))),
        ("patterns that are all wanted", json_schema(json!({"type": "string", "allOf": all_of}))),
        ("nested choices", json_schema(nested)),
        ("it refers to itself", json_schema(json!({"$ref": "#"}))),
        ("many properties", json_schema(json!({"type": "object", "properties": names}))),
        ("many digits", json_schema(json!({"type": "integer", "multipleOf": 999_999_937, "minimum": 1}))),
    ];
    let sandbox = fresh();
    for (name, constraint) in bombs {
        let verdict = sandbox.check(&constraint).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        eprintln!("{name}: {}", verdict.map_or_else(|e| e.to_string(), |()| "accepted".into()));
        sandbox.check(&json_schema(ordinary(1))).await.unwrap().unwrap();
    }
}

/// Templates of a hostile model folder.
const HOSTILE: [(&str, &str); 9] = [
    (
        "loops",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    ),
    ("width", "{{ '{:>9999999999}'.format(1) }}"),
    ("repeat", "{{ 'a' * 10**10 }}"),
    (
        "doubling",
        "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    ),
    (
        "list",
        "{% set n = namespace(l=[1]) %}{% for i in range(40) %}{% set n.l = n.l + n.l %}{% endfor %}{{ n.l }}",
    ),
    ("indent", "{{ 'a\nb' | indent(10**10) }}"),
    ("center", "{{ 'a' | center(10**10) }}"),
    ("recursion", "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}"),
    ("does not compile", "{% for %}"),
];

#[tokio::test]
async fn a_template_with_endless_time_or_memory_fails_only_its_request() {
    for (name, template) in HOSTILE {
        let server = Server::start(ServerOptions { template: Some(template), ..ServerOptions::default() });
        let conversation = json!({ "messages": [{ "role": "user", "content": "a" }] });
        for route in ["/apply-template", "/v1/chat/completions"] {
            let (status, answer) = server.ask(route, &conversation).await;
            assert!(status != 200 && status != 500, "{name} at {route}: {status} {answer}");
        }
        let (status, answer) = server.ask("/v1/completions", &json!({ "prompt": "a" })).await;
        assert_eq!(status, 200, "after {name}: {answer}");
    }
}

#[tokio::test]
async fn a_deeply_nested_template_fails_only_its_request() {
    let wrapped = |before: &str, inner: &str, after: &str| {
        format!("{{{{ {}{inner}{} }}}}", before.repeat(100_000), after.repeat(100_000))
    };
    let value =
        "{% set n = namespace(l=[]) %}{% for i in range(90000) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l }}";
    // As many as the largest template that is read has room for.
    let blocks = "{%if 1%}".repeat(60_000) + &"{%endif%}".repeat(60_000);
    for (name, template) in [
        ("parentheses", wrapped("(", "1", ")")),
        ("lists", wrapped("[", "1", "]")),
        ("negations", wrapped("not ", "1", "")),
        ("sums", wrapped("1 + ", "1", "")),
        ("attributes", wrapped("", "a", ".b")),
        ("filters", wrapped("", "1", "|string")),
        ("blocks", blocks),
        ("a value", value.to_owned()),
    ] {
        let server =
            Server::start(ServerOptions { template: Some(template.leak()), ..ServerOptions::default() });
        let conversation = json!({ "messages": [{ "role": "user", "content": "a" }] });
        let (status, answer) = server.ask("/apply-template", &conversation).await;
        assert!(status != 500, "{name}: {answer}");
        let (status, answer) = server.ask("/v1/completions", &json!({ "prompt": "a" })).await;
        assert_eq!(status, 200, "after {name}: {answer}");
    }
}

#[tokio::test]
async fn a_conversation_rendered_in_the_sandbox_is_unchanged() {
    let template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";
    let server = Server::start(ServerOptions { template: Some(template), ..ServerOptions::default() });
    let long = "नमस्ते \u{0}\n".repeat(1_200);
    let conversation = json!({ "messages": [{ "role": "user", "content": long }] });
    let (status, answer) = server.ask("/apply-template", &conversation).await;
    assert_eq!((status, answer["prompt"].as_str().unwrap()), (200, format!("user:{long};").as_str()));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_stopped_idle_sandbox_process_is_replaced() {
    let program = Program::start(&[]).await;
    let idle = subcommands_of(program.pid(), "sandbox");
    assert!(!idle.is_empty());
    idle.into_iter().for_each(|pid| send_signal("STOP", pid));
    let body = json!({ "prompt": "a", "max_new_tokens": 4, "json_schema": ordinary(0) });
    let (status, answer) = program.ask("/generate-lite", &body).await;
    assert_eq!(status, 200, "{answer}");
}
