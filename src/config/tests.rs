//! Settings from all four layers, and mistakes in them.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use clap::Parser;

use crate::{
    device_spec::{DeviceChoice, Verify, WeightFormat},
    trim_policy::TrimPolicy,
    units::{Bytes, Millis, Tokens},
};

use super::{environment::Environment, setting::Kind, settings_table::SETTINGS, *};

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    config: ConfigArgs,
}

fn args(flags: &[&str]) -> ConfigArgs {
    CommandLine::try_parse_from(["eka"].iter().chain(flags)).unwrap().config
}

/// A working directory with an `eka.toml`, unless `file` is empty, and an environment.
struct Given {
    directory: tempfile::TempDir,
    environment: Environment,
}

impl Given {
    fn new(file: &str, variables: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if !file.is_empty() {
            fs::write(directory.path().join("eka.toml"), file).unwrap();
        }
        let home = ("HOME", "/home/asha");
        let variables: BTreeMap<_, _> =
            [&[home], variables].concat().iter().map(|&(name, value)| (name.into(), value.into())).collect();
        let environment = Environment { variables, directory: directory.path().into() };
        Self { directory, environment }
    }

    fn load(&self, flags: &[&str]) -> Result<Settings, ConfigError> {
        Settings::load_in(&args(flags), &self.environment)
    }

    fn problems(&self, flags: &[&str]) -> Vec<String> {
        match self.load(flags) {
            Err(ConfigError::Settings(problems)) => problems.iter().map(Problem::to_string).collect(),
            Err(other) => panic!("{other}"),
            Ok(settings) => panic!("no problem in {}", settings.to_toml()),
        }
    }
}

fn load(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> Settings {
    Given::new(file, variables).load(flags).unwrap_or_else(|e| panic!("{e}"))
}

fn problems(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> Vec<String> {
    Given::new(file, variables).problems(flags)
}

fn comment<'a>(toml: &'a str, setting: &str) -> &'a str {
    toml.lines().find_map(|line| line.strip_prefix(setting)?.split_once("  # ")).unwrap().1
}

#[test]
fn without_anything_set_the_defaults_serve_the_demo() {
    let Config { server, auth, tls, cors, limits, model, models, queue, engine, device, onnxruntime, .. } =
        load("", &[], &[]).config;
    let Config { watchdog, recycle, log, .. } = load("", &[], &[]).config;
    assert_eq!((auth.keys_file, auth.keys, auth.open_metrics, tls.files()), (None, None, false, None));
    assert_eq!((cors.origins, limits.requests_per_minute_per_ip), (Origins::List(vec![]), None));
    assert!(!log.prompts);
    assert_eq!(
        (engine.device, device.memory_limit_bytes, device.host_pool),
        (DeviceChoice::Auto.into(), None, false)
    );
    assert_eq!((device.trim, device.kv_keep_bytes), (TrimPolicy::default(), Bytes(0)));
    assert_eq!((watchdog.decode_floor_ms, watchdog.decode_factor), (Millis(15_000), 50));
    assert_eq!((server.bind, server.port), (IpAddr::from(Ipv4Addr::LOCALHOST), 8110));
    assert_eq!((server.grace_ms, server.heartbeat_ms), (Millis(30_000), Millis(2000)));
    assert_eq!((server.body_limit_bytes, server.max_connections.get()), (Bytes::mib(4), 1024));
    assert_eq!(server.unknown_fields, UnknownFields::Refuse);
    assert_eq!((model.path, model.id.as_str()), ("models/demo".into(), "demo"));
    assert_eq!((model.quantize, model.block_size, model.verify), (WeightFormat::Full, None, Verify::Size));
    assert_eq!((queue.max_jobs.get(), queue.max_prompt_tokens), (32, Tokens(65_536)));
    assert_eq!((queue.timeout_ms, queue.total_timeout_ms), (Millis(60_000), Millis(600_000)));
    assert_eq!((engine.threads, engine.context_length), (None, None));
    assert_eq!((engine.prefill_chunk.get(), engine.default_max_new_tokens), (512, AnswerLimit::Context));
    assert_eq!(
        (engine.prefix_cache_bytes, engine.draft_tokens, engine.draft_model),
        (Bytes::mib(256), 15, None)
    );
    assert_eq!(engine.max_sequences.get(), 8);
    assert_eq!(engine.prefix_cache_dir, model.cache_dir.join("prompts"));
    assert_eq!(
        (models.dir, models.memory_bytes, models.keep_alive_ms, queue.max_switches),
        (None, None, None, None)
    );
    assert_eq!((recycle.after_jobs, recycle.after_ms, recycle.between_requests), (None, None, false));
    assert_eq!(recycle.memory_growth_bytes, Bytes::mib(1024));
    assert_eq!((onnxruntime.dir, log.level.as_str(), log.format), (None, "info", LogFormat::Text));
}

#[test]
fn each_layer_overrides_the_one_below_and_the_origin_is_printed() {
    let file = "[server]\nport = 1\ngrace_ms = 1\nheartbeat_ms = 101\n";
    let variables = [("EKA_SERVER_PORT", "2"), ("EKA_SERVER_GRACE_MS", "2")];
    let settings = load(file, &variables, &["--port", "3"]);
    let server = &settings.config.server;
    assert_eq!((server.port, server.grace_ms, server.heartbeat_ms), (3, Millis(2), Millis(101)));
    let toml = settings.to_toml();
    assert_eq!(comment(&toml, "port"), "--port");
    assert_eq!(comment(&toml, "grace_ms"), "environment EKA_SERVER_GRACE_MS");
    assert_eq!(comment(&toml, "heartbeat_ms"), "eka.toml");
    assert_eq!(comment(&toml, "max_jobs"), "default");
}

#[test]
fn every_setting_has_a_valid_default_or_says_what_happens_without_one() {
    for setting in SETTINGS {
        assert!(setting.default.is_some() != setting.unset.is_some(), "{}", setting.path);
        if let Some(default) = setting.default {
            let value = setting.parse(default);
            assert!(setting.has_kind(&value) && setting.accepts(&value), "{}", setting.path);
        }
    }
}

#[test]
fn the_reference_in_docs_is_up_to_date() {
    let docs = include_str!("../../docs/settings.md");
    assert_eq!(docs, reference(), "run `cargo run -- settings >docs/settings.md`");
}

#[test]
fn every_setting_has_a_variable_and_can_be_set_by_path() {
    // One of the two without the other is an error.
    const PAIRS: [&str; 6] = [
        "tls.cert_file",
        "tls.key_file",
        "cluster.cert_file",
        "cluster.key_file",
        "cluster.user",
        "cluster.password_file",
    ];
    for setting in SETTINGS.iter().filter(|setting| !PAIRS.contains(&setting.path)) {
        let value = match (setting.path, setting.kind) {
            ("model.block_size", _) => "64".to_owned(),
            ("server.body_memory_bytes", _) => "8388608".to_owned(),
            ("queue.total_timeout_ms", _) => "600001".to_owned(),
            ("cluster.replicas" | "cluster.max_losses", _) => "2".to_owned(),
            ("cluster.lost_ms", _) => "3000".to_owned(),
            (_, Kind::Integer | Kind::IntegerOrWord) => {
                setting.range.as_ref().unwrap().start().max(&101).to_string()
            }
            (_, Kind::Boolean) => (setting.default != Some("true")).to_string(),
            (_, Kind::Number) => "0.5".to_owned(),
            ("server.bind", _) => "::1".to_owned(),
            ("trace.otlp_endpoint", _) => "http://[::1]:4318".to_owned(),
            ("cors.origins", _) => "*".to_owned(),
            ("server.unknown_fields", _) => "warn".to_owned(),
            ("server.metric_names", _) => "all".to_owned(),
            ("engine.sampling_defaults", _) => "eka".to_owned(),
            ("model.quantize", _) => "int4".to_owned(),
            ("model.verify", _) => "hash".to_owned(),
            ("log.level", _) => "warn,eka=trace".to_owned(),
            ("engine.device", _) => "cuda:1".to_owned(),
            ("engine.kv_cache", _) => "int8".to_owned(),
            ("engine.packed_file", _) => "never".to_owned(),
            ("device.trim", _) => "idle=500,keep=65536".to_owned(),
            ("log.format", _) => "json".to_owned(),
            ("cluster.storage", _) => "memory".to_owned(),
            ("cluster.drain", _) => "hand-over".to_owned(),
            ("cluster.affinity", _) => "worth".to_owned(),
            ("server.listen", _) => "unix:/run/eka.sock,[::1]:8111".to_owned(),
            ("models.aliases", _) => "gpt-4o=demo".to_owned(),
            ("engine.pooling", _) => "mean".to_owned(),
            _ => "else".to_owned(),
        };
        let variable = load("", &[(&setting.variable(), &value)], &[]);
        let flag = load("", &[], &["--set", &format!("{}={value}", setting.path)]);
        assert_eq!(variable.config, flag.config, "{}", setting.path);
        assert_ne!(variable.config, load("", &[], &[]).config, "{}", setting.path);
        assert_eq!(flag.merged.origin(setting.path), "--set");
    }
}

#[test]
fn a_flag_sets_its_setting() {
    let flags = [
        "--model=m",
        "--model-id=n",
        "--quantize=int8",
        "--bind=0.0.0.0",
        "--port=0",
        "--device=cuda:2",
        "--threads=4",
        "--context-length=128",
        "--queue=1",
        "--onnxruntime=o",
        "--log=debug",
    ];
    let Config { server, model, queue, engine, onnxruntime, log, .. } = load("", &[], &flags).config;
    assert_eq!((model.path, model.id.as_str(), model.quantize), ("m".into(), "n", WeightFormat::Int8));
    assert_eq!((server.bind, server.port), (IpAddr::from(Ipv4Addr::UNSPECIFIED), 0));
    assert_eq!(engine.device, DeviceChoice::Cuda(2).into());
    assert_eq!((engine.threads.unwrap().get(), engine.context_length), (4, Some(Tokens(128))));
    assert_eq!((queue.max_jobs.get(), onnxruntime.dir, log.level.as_str()), (1, Some("o".into()), "debug"));
}

#[test]
fn a_file_that_is_named_must_exist() {
    let given = Given::new("", &[]);
    fs::write(given.directory.path().join("other.toml"), "[server]\nport = 5\n").unwrap();
    assert_eq!(given.load(&["--config", "other.toml"]).unwrap().config.server.port, 5);
    let missing = given.load(&["--config", "nowhere.toml"]).err().unwrap();
    assert!(missing.to_string().starts_with("nowhere.toml: "), "{missing}");
    let named = Given::new("", &[("EKA_CONFIG", "absent.toml")]);
    assert!(matches!(named.load(&[]), Err(ConfigError::Read { .. })));
    assert!(matches!(Given::new("[server", &[]).load(&[]), Err(ConfigError::Parse { .. })));
}

#[test]
fn unknown_names_are_reported_with_the_nearest_known_one() {
    let file = "[queue]\nmax_job = 1\n[sever]\nport = 1\n";
    let found = problems(file, &[("EKA_SERVER_PROT", "1")], &["--set", "engine.thread=1"]);
    let expected = [
        "engine.thread (--set) is not a setting: did you mean engine.threads?",
        "queue.max_job (eka.toml) is not a setting: did you mean queue.max_jobs?",
        "sever.port (eka.toml) is not a setting: did you mean server.port?",
        "EKA_SERVER_PROT (environment) is not a setting: did you mean EKA_SERVER_PORT?",
    ];
    for line in expected {
        assert!(found.iter().any(|problem| problem == line), "{line} is not in {found:#?}");
    }
    assert_eq!(found.len(), expected.len());
    assert_eq!(problems("queue = 1\n", &[], &[]).len(), 1);
}

#[test]
fn an_invalid_value_is_reported_with_key_value_origin_and_limit() {
    for setting in SETTINGS {
        let bad: Vec<String> = match setting.kind {
            Kind::Integer | Kind::IntegerOrWord => {
                let range = setting.range.as_ref().unwrap();
                vec![(range.start() - 1).to_string(), (range.end() + 1).to_string(), "abc".into()]
            }
            Kind::Text => vec![String::new()],
            Kind::Number => vec!["2".into(), "-1".into(), "abc".into()],
            // Its value is not shown.
            Kind::Secret => vec![],
            Kind::Boolean => vec!["yes".into()],
        };
        for value in bad {
            let found = problems("", &[(&setting.variable(), &value)], &[]);
            let shown = value.parse::<i64>().map_or_else(|_| format!("{value:?}"), |n| n.to_string());
            let start =
                format!("{} is {shown} (environment {}): expected ", setting.path, setting.variable());
            assert!(found[0].starts_with(&start) && found[0].len() > start.len(), "{found:?}");
        }
    }
}

#[test]
fn a_collector_is_a_url_without_tls_and_has_a_default_path() {
    let endpoint = |typed: &str| {
        let typed = format!("trace.otlp_endpoint={typed}");
        load("", &[], &["--set", &typed]).config.trace.collector_url().unwrap()
    };
    assert_eq!(endpoint("http://127.0.0.1:4318"), "http://127.0.0.1:4318/v1/traces");
    assert_eq!(endpoint("http://127.0.0.1:4318/"), "http://127.0.0.1:4318/v1/traces");
    assert_eq!(endpoint("http://collector/otlp/traces"), "http://collector/otlp/traces");
    for bad in ["https://collector:4318", "collector:4318", "http://", "http:///v1", "http://a b"] {
        let found = problems("", &[("EKA_TRACE_OTLP_ENDPOINT", bad)], &[]);
        assert!(
            found[0].contains("expected the URL of an OTLP collector over HTTP without TLS"),
            "{found:?}"
        );
    }
}

#[test]
fn messages_describe_valid_values() {
    let one = |flags: &[&str]| problems("", &[], flags).join("\n");
    let port =
        "server.port is \"abc\" (environment EKA_SERVER_PORT): expected a whole number from 0 to 65535";
    assert_eq!(problems("", &[("EKA_SERVER_PORT", "abc")], &[]), [port]);
    assert_eq!(
        one(&["--quantize=int2"]),
        "model.quantize is \"int2\" (--quantize): expected none, int8 or int4"
    );
    assert_eq!(
        one(&["--set", "model.block_size=48"]),
        "model.block_size is 48 (--set): expected 32, 64 or 128"
    );
    assert_eq!(
        one(&["--set", "queue.total_timeout_ms=5"]),
        "queue.total_timeout_ms is 5 (--set): expected at least queue.timeout_ms, which is 60000 (default)"
    );
    assert_eq!(
        one(&["--device=gpu"]),
        "engine.device is \"gpu\" (--device): expected auto, cpu, cuda, cuda:N with the number of a GPU, or several such as cuda:0,cuda:1"
    );
    assert_eq!(
        one(&["--device=auto,cuda:1"]),
        "engine.device is \"auto,cuda:1\" (--device): expected a list of devices: auto cannot be combined with other \
         devices; name each device, as in cuda:0,cuda:1"
    );
    assert!(one(&["--set", "device.trim=often"]).contains("expected always, above=<bytes>"));
    assert!(one(&["--set", "device.trim=always,keep=1GB"]).contains("with KiB, MiB or GiB"));
    assert!(one(&["--bind=localhost"]).contains("expected an IP address"));
    assert!(one(&["--log=inof"]).starts_with("log.level is \"inof\" (--log): expected error, warn"));
    assert!(one(&["--model=/"]).contains("model.id"));
}

#[test]
fn values_of_another_type_are_not_converted() {
    let file = "[server]\nport = \"80\"\nbind = 1\n[engine]\nthreads = 1.5\n[model]\nid = true\n";
    let found = problems(file, &[], &[]);
    assert_eq!(found.len(), 4);
    assert!(found.iter().any(|problem| problem.starts_with("server.port is \"80\" (eka.toml)")), "{found:?}");
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let found =
        problems("[log]\nformat = \"xml\"\n", &[("EKA_QUEUE_MAX_JOBS", "0")], &["--port=-1", "--set=a.b=c"]);
    assert_eq!(found.len(), 4, "{found:#?}");
}

#[test]
fn the_output_of_print_config_gives_the_same_settings_again() {
    let odd = "C:\\models\\\"नमस्ते\"\n\u{7f}";
    let flags = [
        "--set",
        &format!("model.cache_dir={odd}"),
        "--threads=3",
        "--log=info,eka=debug",
        "--model-id=हिन्दी",
    ];
    for settings in [load("", &[], &[]), load("[server]\nport = 1_000\n", &[], &flags)] {
        let again = load(&settings.to_toml(), &[], &[]);
        assert_eq!(again.config, settings.config);
        assert_eq!(comment(&again.to_toml(), "port"), "eka.toml");
    }
}

#[test]
fn unset_settings_are_printed_as_comments() {
    let toml = load("", &[], &[]).to_toml();
    assert!(
        toml.contains("[engine]\ndevice = \"auto\"  # default\n# threads is not set: physical cores\nprefill_chunk = 512  # default\n"),
        "{toml}"
    );
}

#[test]
fn the_models_default_name_is_that_of_its_directory() {
    let named = |path: &str| load("", &[], &["--model", path]).config.model.id;
    assert_eq!(named("models/hindi/"), "hindi");
    assert_eq!(named("/srv/tamil"), "tamil");
    let given = Given::new("", &[]);
    let own = given.directory.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(given.load(&["--model", "."]).unwrap().config.model.id, own);
}

#[test]
#[cfg(target_os = "linux")]
fn the_cache_is_where_the_platform_keeps_caches() {
    let dir = |variables: &[(&str, &str)]| load("", variables, &[]).config.model.cache_dir.to_path_buf();
    assert_eq!(dir(&[]), PathBuf::from("/home/asha/.cache/eka"));
    assert_eq!(dir(&[("XDG_CACHE_HOME", "/var/cache")]), PathBuf::from("/var/cache/eka"));
    assert_eq!(dir(&[("EKA_MODEL_CACHE_DIR", "here")]), PathBuf::from("here"));
    assert_eq!(dir(&[("XDG_CACHE_HOME", "relative")]), PathBuf::from("/home/asha/.cache/eka"));
    let own = std::env::temp_dir().join(format!("eka-{}", rustix::process::geteuid().as_raw()));
    for no_home in ["", "relative"] {
        assert_eq!(dir(&[("HOME", no_home)]), own, "no other user's");
    }
}

#[test]
fn a_secret_is_neither_printed_nor_part_of_an_error() {
    const SECRET: &str = "hush-0123456789abcdef";
    let settings = load("", &[("EKA_AUTH_KEYS", SECRET)], &[]);
    let toml = settings.to_toml();
    assert!(toml.contains("# keys is set, and not shown  # environment EKA_AUTH_KEYS\n"), "{toml}");
    assert!(!format!("{toml}{:?}", settings.config).contains(SECRET));
    let number = problems("[auth]\nkeys = 20260101\n", &[], &[]);
    assert!(!number.concat().contains("20260101"), "{number:?}");
}

#[test]
fn tls_takes_both_files_or_none() {
    let both = ["--set", "tls.cert_file=a.pem", "--set", "tls.key_file=b.pem"];
    assert_eq!(load("", &[], &both).config.tls.files().unwrap().1, PathBuf::from("b.pem"));
    let one = problems("", &[], &both[2..]);
    assert!(one[0].contains("tls.key_file") && one[0].contains("tls.cert_file to be set as well"), "{one:?}");
}

#[test]
fn origins_are_schemes_with_hosts_or_a_star() {
    let origins = |typed: &str| load("", &[("EKA_CORS_ORIGINS", typed)], &[]).config.cors.origins;
    assert_eq!(origins("*"), Origins::Any);
    let two = ["https://chat.example.org", "http://[::1]:3000"].map(String::from).to_vec();
    assert_eq!(origins("https://Chat.example.org, http://[::1]:3000"), Origins::List(two));
    for wrong in ["chat.example.org", "https://a/", "https://a b", "*, https://a", "null", "://x"] {
        assert_eq!(problems("", &[("EKA_CORS_ORIGINS", wrong)], &[]).len(), 1, "{wrong}");
    }
}

#[test]
fn changed_settings_are_listed_by_path() {
    let before = load("", &[], &[]);
    let after = load("[log]\nlevel = \"debug\"\n", &[], &["--port=1"]);
    assert_eq!(before.changed(&after), ["server.port", "log.level"]);
    assert!(before.changed(&before).is_empty());
}
