//! Traces as a collector on a real socket receives them.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value as Attribute,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;
use serde_json::{Value, json};

use crate::support::{
    cluster::Cluster,
    program::{Program, argument},
    server::eventually,
};

const NATIVE: &str = "/generate-lite";
const CHAT: &str = "/v1/chat/completions";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Receives exported spans and answers like a collector.
struct Collector {
    url: String,
    got: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let got = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&got);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let request = take(&stream.unwrap());
                taken.lock().unwrap().push(ExportTraceServiceRequest::decode(&*request).unwrap());
            }
        });
        Self { url, got }
    }

    fn flag(&self) -> String {
        format!("trace.otlp_endpoint={}", self.url)
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().unwrap();
        let scopes = got.iter().flat_map(|request| &request.resource_spans).flat_map(|all| &all.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The spans of a request, once there are as many with these names.
    async fn trace(&self, trace: &str, names: &[&str]) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut found = Vec::new();
        eventually("the spans", || {
            spans = self.spans();
            spans.retain(|span| hex(&span.trace_id) == trace);
            spans.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
            found = spans.iter().map(|span| span.name.clone()).collect();
            found.len() >= names.len() && names.iter().all(|name| found.iter().any(|found| found == name))
        })
        .await;
        assert_eq!(found.len(), names.len(), "{found:?}");
        spans
    }
}

/// The body of one request of HTTP, answered.
fn take(mut stream: &TcpStream) -> Vec<u8> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "POST /v1/traces HTTP/1.1");
    let mut length = 0;
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    body
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute<'a>(span: &'a Span, name: &str) -> Option<&'a Attribute> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.as_ref()?.value.as_ref()
}

fn text(span: &Span, name: &str) -> String {
    match attribute(span, name) {
        Some(Attribute::StringValue(text)) => text.clone(),
        other => panic!("{name} of {} is {other:?}", span.name),
    }
}

fn number(span: &Span, name: &str) -> i64 {
    match attribute(span, name) {
        Some(Attribute::IntValue(number)) => *number,
        other => panic!("{name} of {} is {other:?}", span.name),
    }
}

fn chat() -> Value {
    json!({
        "messages": [{ "role": "user", "content": "Once, in secret" }], "max_tokens": 6, "ignore_eos": true,
        "temperature": 0, "priority": "batch",
    })
}

/// Asks as a client that traces.
async fn ask_traced(program: &Program, path: &str, body: &Value, trace: &str, flags: &str) -> u16 {
    let request = program.post(path, body).header("traceparent", format!("00-{trace}-{PARENT}-{flags}"));
    let response = request.header("tracestate", "vendor=opaque").send().await.unwrap();
    let status = response.status().as_u16();
    response.bytes().await.unwrap();
    status
}

#[tokio::test]
async fn a_request_is_a_span_in_the_clients_trace_with_child_spans() {
    let collector = Collector::start();
    let pool = ["--set", "device.host_pool=true"];
    let program = Program::start(&[&["--set", &*collector.flag()], &pool[..]].concat()).await;
    assert_eq!(ask_traced(&program, CHAT, &chat(), TRACE, "01").await, 200);
    let route = format!("POST {CHAT}");
    let names = [&*route, "queue", "prefill", "decode", "trim", "trim"];
    let spans = collector.trace(TRACE, &names).await;
    let (root, phases): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span.name == route);
    let root = root[0];
    assert_eq!((hex(&root.parent_span_id), root.kind), (PARENT.into(), SpanKind::Server as i32));
    assert!(phases.iter().all(|span| span.parent_span_id == root.span_id), "{phases:?}");
    assert!(spans.iter().all(|span| span.trace_state == "vendor=opaque"), "{spans:?}");
    assert!(spans.iter().all(|span| span.start_time_unix_nano <= span.end_time_unix_nano));
    // The worker measures the device's own trim, by its clock and beside the rest.
    let of_device = Some(Attribute::StringValue("device".into()));
    let (of_device, phases): (Vec<_>, Vec<_>) =
        phases.into_iter().partition(|span| attribute(span, "eka.memory") == of_device.as_ref());
    assert!(matches!(&of_device[..], [span] if span.name == "trim"), "{of_device:?}");
    let order: Vec<_> = phases.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(order, ["queue", "prefill", "decode", "trim"]);
    let touching = phases.windows(2).all(|two| two[0].end_time_unix_nano == two[1].start_time_unix_nano);
    assert!(touching, "{phases:?}");
    assert_eq!(text(phases[3], "eka.memory"), "host");

    for (name, value) in [
        ("http.route", CHAT),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "demo"),
        ("eka.priority", "batch"),
    ] {
        assert_eq!(text(root, name), value);
    }
    assert_eq!(number(root, "http.response.status_code"), 200);
    assert_eq!(number(root, "gen_ai.request.max_tokens"), 6);
    assert_eq!(number(root, "gen_ai.usage.output_tokens"), 6);
    assert_eq!(number(phases[1], "gen_ai.usage.input_tokens"), number(root, "gen_ai.usage.input_tokens"));
    let Some(Attribute::ArrayValue(reasons)) = attribute(root, "gen_ai.response.finish_reasons") else {
        panic!("{root:?}")
    };
    assert_eq!(reasons.values[0].value, Some(Attribute::StringValue("length".into())));
    let resource = collector.got.lock().unwrap()[0].resource_spans[0].resource.clone().unwrap();
    let service = resource.attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
    assert_eq!(service.value.as_ref().unwrap().value, Some(Attribute::StringValue("eka".into())));
    assert!(
        !format!("{:?}", collector.got.lock().unwrap()).contains("secret"),
        "spans have no prompt and no answer"
    );
}

#[tokio::test]
async fn sampling_follows_the_client_or_the_settings_and_shutdown_flushes_spans() {
    let collector = Collector::start();
    let flags =
        ["--set", &collector.flag(), "--set", "trace.sample_ratio=0", "--set", "trace.service_name=a"];
    let mut program = Program::start(&flags).await;
    let unasked = TRACE.replace('c', "d");
    let plain = json!({ "prompt": "Once", "max_new_tokens": 2 });
    assert_eq!(ask_traced(&program, NATIVE, &plain, &unasked, "00").await, 200);
    assert_eq!(program.ask(NATIVE, &plain).await.0, 200);
    assert_eq!(ask_traced(&program, NATIVE, &json!({ "prompt": 7 }), TRACE, "01").await, 400);
    assert!(program.end_with("TERM").await.success());
    let spans = collector.spans();
    let [refused] = &*spans else { panic!("{spans:?}") };
    assert_eq!((hex(&refused.trace_id), text(refused, "error.type")), (TRACE.into(), "invalid_type".into()));
    let is_error = refused.status.as_ref().is_some_and(|status| status.code == StatusCode::Error as i32);
    assert!(!is_error, "what a client does wrong is no fault of the server: {refused:?}");
}

#[tokio::test]
async fn loading_a_model_for_a_request_is_a_span() {
    let models = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(Program::start(&[]).await.export(), models.path().join("second")).unwrap();
    let collector = Collector::start();
    let flags = ["--models", argument(models.path()), "--set", &collector.flag()];
    let program = Program::start(&flags).await;
    let request = json!({ "model": "second", "prompt": "Once", "max_new_tokens": 3, "ignore_eos": true });
    assert_eq!(ask_traced(&program, NATIVE, &request, TRACE, "01").await, 200);
    let names = ["POST /generate-lite", "queue", "load", "prefill", "decode", "trim"];
    let spans = collector.trace(TRACE, &names).await;
    let load = spans.iter().find(|span| span.name == "load").unwrap();
    assert_eq!(text(load, "gen_ai.request.model"), "second");
    assert!(load.end_time_unix_nano > load.start_time_unix_nano);
}

#[tokio::test]
async fn a_missing_or_silent_collector_does_not_affect_requests() {
    // One rejects connections, the other accepts them and never answers.
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [refusing, silent.local_addr().unwrap()] {
        let flag = format!("trace.otlp_endpoint=http://{address}");
        let mut program = Program::start(&["--set", &flag]).await;
        for _ in 0..20 {
            assert_eq!(program.ask(CHAT, &chat()).await.0, 200);
        }
        if address == refusing {
            loop {
                let metrics = program.metrics().await;
                let dropped =
                    metrics.lines().find_map(|line| line.strip_prefix("eka_trace_spans_dropped_total "));
                if dropped.unwrap().parse::<u64>().unwrap() >= 100 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(program.logged("trace_export_failed").len(), 1);
        }
        assert!(program.end_with("TERM").await.success(), "{}", program.log());
    }
}

#[tokio::test]
async fn a_trace_has_the_spans_of_the_gateway_and_of_the_node() {
    let collector = Collector::start();
    let endpoint = collector.flag();
    let cluster = Cluster::start_with(1, &["--set", &endpoint]).await;
    let header = format!("00-{TRACE}-{PARENT}-01");
    let sent = cluster.gateway.post(CHAT, &chat()).header("traceparent", header).send().await.unwrap();
    assert_eq!(sent.status(), 200);
    let gateway = ["POST /v1/chat/completions", "queue", "prefill", "decode", "trim"];
    let node = ["queue", "prefill", "decode", "trim"];
    let spans = collector.trace(TRACE, &[&gateway[..], &node[..]].concat()).await;
    let request = spans.iter().find(|span| span.name == gateway[0]).unwrap();
    assert_eq!(hex(&request.parent_span_id), PARENT);
    let children = spans.iter().filter(|span| span.parent_span_id == request.span_id);
    assert_eq!(children.count(), 8, "the phases of both processes are parts of the request");
}
