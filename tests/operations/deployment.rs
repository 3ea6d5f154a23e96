//! The files in scripts/deploy against the program: settings, metrics, and notifications to a service manager.

use std::{collections::BTreeSet, fs};

use crate::support::{
    processes::{send_signal, worker_of},
    program::{Program, argument, cache_setting, cluster_metrics, eka, root, run, text},
};

fn file(name: &str) -> String {
    fs::read_to_string(root().join("scripts/deploy").join(name)).unwrap()
}

/// The words that begin like this, in capitals, digits and underscores or their small forms.
fn words<'a>(text: &'a str, beginning: &str) -> BTreeSet<&'a str> {
    let is_of_a_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_of_a_word(c)).filter(|word| word.starts_with(beginning)).collect()
}

#[test]
fn every_setting_in_deployment_files_exists() {
    for name in ["Dockerfile", "Dockerfile.cuda", "eka.service", "eka@.service"] {
        let deployed = file(name);
        let pairs: Vec<_> = deployed
            .split_whitespace()
            .map(|word| word.strip_prefix("Environment=").unwrap_or(word))
            .filter_map(|word| word.strip_prefix("EKA_")?.split_once('='))
            .collect();
        assert!(!pairs.is_empty(), "{name} sets something");
        let mut command = eka(&["serve", "--print-config"]);
        pairs.iter().for_each(|(setting, value)| {
            command.env(format!("EKA_{setting}"), value);
        });
        let printed = command.output().unwrap();
        assert!(printed.status.success(), "{name}: {}", text(&printed.stderr));
        for (setting, _) in pairs {
            assert!(
                text(&printed.stdout).contains(&format!("environment EKA_{setting}")),
                "{name}: {setting}"
            );
        }
    }
}

#[test]
fn settings_of_kubernetes_are_valid() {
    for (name, expected) in [
        ("kubernetes/config.yaml", "keys_file = \"/etc/eka-keys/keys.toml\""),
        ("kubernetes/cluster/config.yaml", "drain = \"hand-over\""),
    ] {
        let map = file(name);
        let (_, settings) = map.split_once("eka.toml: |\n").unwrap();
        let toml = tempfile::NamedTempFile::new().unwrap();
        let lines = settings.lines().map(|line| line.trim_start().to_owned() + "\n");
        fs::write(toml.path(), lines.collect::<String>()).unwrap();
        let printed = run(&["serve", "--print-config", "--config", argument(toml.path())]);
        assert!(printed.status.success(), "{name}: {}", text(&printed.stderr));
        assert!(text(&printed.stdout).contains(expected), "{name}: {}", text(&printed.stdout));
    }
}

#[test]
fn variables_of_the_compose_file_are_settings() {
    let compose = file("compose-cluster.yaml");
    let variables: BTreeSet<_> = words(&compose, "EKA_");
    assert!(variables.len() >= 5, "{variables:?}");
    let mut command = eka(&["serve", "--print-config"]);
    variables.iter().for_each(|variable| {
        let value = if variable.ends_with("JOIN") { "tls://nats:4222" } else { "name" };
        command.env(variable, value);
    });
    let printed = command.output().unwrap();
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    for variable in variables {
        assert!(text(&printed.stdout).contains(&format!("environment {variable}")), "{variable}");
    }
}

#[tokio::test]
async fn every_metric_and_code_in_alerts_and_autoscalers_exists() {
    let program = Program::start(&["--device", "cpu"]).await;
    let (status, _) = program.ask("/generate-lite", &serde_json::json!({"prompt": "Once"})).await;
    assert_eq!(status, 200, "families have no members before the first request");
    // So has the end of a worker.
    send_signal("KILL", program.worker_pid());
    let has = program.metrics_with("eka_worker_exits_total{").await + &cluster_metrics();
    let kinds = |name: &str| {
        ["_bucket", "_total"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    let read = [
        "alerts.yaml",
        "kubernetes/keda.yaml",
        "kubernetes/cluster/keda.yaml",
        "kubernetes/metrics-adapter.yaml",
        "kubernetes/inference-extension/endpoint-picker-values.yaml",
    ]
    .map(file)
    .concat();
    let metrics: BTreeSet<_> = words(&read, "eka_").into_iter().map(kinds).collect();
    assert!(metrics.len() >= 6, "{metrics:?}");
    for metric in metrics {
        // Prometheus' text format names a counter with its suffix.
        let types = ["", "_total"].map(|end| format!("# TYPE {metric}{end} "));
        assert!(types.iter().any(|line| has.contains(line)), "{metric} is not in:\n{has}");
    }
    let table = fs::read_to_string(root().join("src/http/error.rs")).unwrap();
    let alerts = file("alerts.yaml");
    let codes: Vec<_> = alerts
        .split("code=")
        .skip(1)
        .flat_map(|rest| rest.trim_start_matches('~').split('"').nth(1).unwrap().split('|'))
        .collect();
    assert!(codes.len() >= 5, "{codes:?}");
    for code in codes {
        assert!(table.contains(&format!("\"{code}\"")), "{code} is none of http/error.rs");
    }
}

#[cfg(unix)]
mod the_service_manager {
    use std::{
        collections::BTreeMap, os::unix::net::UnixDatagram, path::Path, process::Stdio, time::Duration,
    };

    use super::*;

    /// Starts the program with a notification socket.
    fn started(at: &Path) -> (std::process::Child, UnixDatagram) {
        let socket = UnixDatagram::bind(at).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let cache = cache_setting();
        let mut command = eka(&["serve", "--port", "0", "--set", &cache]);
        command.env("NOTIFY_SOCKET", at).env("WATCHDOG_USEC", "100000").env_remove("WATCHDOG_PID");
        (command.stderr(Stdio::null()).spawn().unwrap(), socket)
    }

    /// The next notification.
    fn notification(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).expect("a notification within a minute");
        text(&buffer[..length]).trim().to_owned()
    }

    fn wait_for(socket: &UnixDatagram, wanted: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let received = notification(socket);
            if received == wanted {
                return before;
            }
            before.push(received);
        }
    }

    #[test]
    fn is_notified_of_ready_watchdog_and_stopping() {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, socket) = started(&dir.path().join("notify"));
        let before = wait_for(&socket, "READY=1");
        assert!(before.contains(&"STATUS=starting".to_owned()), "{before:?}");
        wait_for(&socket, "STATUS=ready");
        (0..3).for_each(|_| drop(wait_for(&socket, "WATCHDOG=1")));
        // A lost worker changes the status and does not notify READY again.
        send_signal("KILL", worker_of(child.id()).unwrap());
        let mut seen = wait_for(&socket, "STATUS=restarting");
        seen.extend(wait_for(&socket, "STATUS=ready"));
        send_signal("TERM", child.id());
        seen.extend(wait_for(&socket, "STOPPING=1"));
        let mut times = BTreeMap::new();
        seen.iter().for_each(|received| *times.entry(received.as_str()).or_insert(0) += 1);
        assert!(!times.contains_key("READY=1"), "{times:?}");
        assert!(child.wait().unwrap().success());
    }
}

#[tokio::test]
async fn eka_health_reports_by_exit_code() {
    let program = Program::start(&[]).await;
    for (state, status) in [("alive", "alive"), ("ready", "ready"), ("started", "started")] {
        let checked = run(&["health", state, "--url", &program.url]);
        assert_eq!((checked.status.code(), text(&checked.stdout)), (Some(0), format!("{status}\n")));
    }
    // The address from the settings.
    let port = program.url.rsplit(':').next().unwrap();
    let checked = run(&["health", "--bind", "0.0.0.0", "--port", port, "--json"]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    assert!(text(&checked.stdout).contains("alive"));
    for (code, arguments, message) in [
        (1, &["--url", "http://127.0.0.1:1"][..], "refused"),
        (2, &["--port", "0"], "--url"),
        (2, &["--set", "tls.cert_file=a", "--set", "tls.key_file=b"], "TLS"),
        (2, &["dead"], "alive"),
    ] {
        let checked = run(&[&["health"], arguments].concat());
        assert_eq!(checked.status.code(), Some(code), "{arguments:?}: {}", text(&checked.stderr));
        assert!(text(&checked.stderr).contains(message), "{arguments:?}: {}", text(&checked.stderr));
    }
}

#[tokio::test]
async fn a_second_server_leaves_the_ready_file_of_a_running_one() {
    let program = Program::start(&[]).await;
    let file = program.ready_file();
    let second = run(&["serve", "--port", "0", "--ready-file", argument(&file)]);
    let (message, expected) = (text(&second.stderr), format!("process id {}; stop it", program.pid()));
    assert!(second.status.code() == Some(2) && message.contains(&expected), "{message}");
    let document: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(document["pid"], program.pid());
}
