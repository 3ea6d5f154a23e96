//! Injected faults in the real program: clients must not notice what workers do to themselves.

use std::{fs, sync::LazyLock};

use serde_json::{Value, json};

/// Short enough for a test, long enough for a busy machine.
const PATIENCE: [&str; 4] =
    ["--set", "watchdog.decode_floor_ms=3000", "--set", "watchdog.prefill_base_ms=3000"];

/// What becomes of a job whose worker commits a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It is answered by the same worker.
    Unharmed,
    /// It is answered by the next one.
    Resumed,
    /// The job fails with an error and the worker continues.
    Refused,
}

use Fate::{Refused, Resumed, Unharmed};

use crate::support::{
    processes::{resident_kib, send_signal, worker_of},
    program::{Program, argument, eka, expected, run, text},
    server::{events, eventually},
};

/// Status and code of an error.
fn refusal(kind: &str) -> (u16, &'static Value) {
    static CODES: LazyLock<[Value; 2]> = LazyLock::new(|| [json!("device_error"), json!("out_of_memory")]);
    if kind == "starve" { (413, &CODES[1]) } else { (500, &CODES[0]) }
}

/// Each kind of fault, its effect on the job, and a part of the log line.
const KINDS: [(&str, Fate, &str); 15] = [
    // First, as a step that takes long makes the watchdog patient.
    ("hang", Resumed, "kind=\"hung\""),
    ("flood=67108864", Unharmed, "event=\"worker_stderr_dropped\""),
    ("crash", Resumed, "terminated by signal 11; last line on stderr: injected fault: crash@"),
    ("abort", Resumed, "terminated by signal 6; last line on stderr: injected fault: abort@"),
    ("exit=7", Resumed, "exited with code 7; last line on stderr: injected fault: exit=7@"),
    ("slow=9", Unharmed, "injected fault: slow=9@"),
    ("leak=67108864", Unharmed, "injected fault: leak=67108864@"),
    ("fail", Refused, "injected fault: fail@"),
    ("starve", Refused, "injected fault: starve@"),
    ("poison", Resumed, "injected fault; last line on stderr: error: the device can no longer be used"),
    ("garbage", Resumed, "a frame of 3 B does not decode"),
    ("truncated", Resumed, "the pipe failed: "),
    ("huge", Resumed, "a frame claims 4"),
    (
        "close",
        Resumed,
        "the worker closed its pipe but did not exit; killed; last line on stderr: injected fault: close@",
    ),
    ("chatter", Unharmed, "libchatty: a kernel was tuned"),
];

async fn with_faults(faults: &str, flags: &[&str]) -> Program {
    Program::start(&[&["--faults", faults], flags].concat()).await
}

/// A plan with one fault of each kind at this point, from job 2 on; job 1 lets the watchdog measure this machine.
fn one_of_each(point: &str) -> String {
    let rules = KINDS.iter().zip(2..).map(|((kind, ..), job)| format!("{kind}@{point},job={job}"));
    rules.collect::<Vec<_>>().join(";")
}

/// A chapter of the phrasebook; asked the same way every time.
fn request() -> Value {
    json!({ "messages": [{ "role": "user", "content": expected()[0].prompt }] })
}

async fn ask(program: &Program) -> (u16, Value) {
    program.ask("/generate-lite", &request()).await
}

async fn stream(program: &Program) -> (Vec<Value>, bool) {
    let mut request = request();
    request["stream"] = json!(true);
    let response = program.post("/generate-lite", &request).send().await.unwrap();
    events(&response.text().await.unwrap())
}

#[tokio::test]
async fn every_fault_during_an_answer_leaves_the_answer_unchanged() {
    let program = with_faults(&one_of_each("decode:3"), &PATIENCE).await;
    let right = json!(expected()[0].text);
    let (_, undisturbed) = ask(&program).await;
    for (kind, fate, log) in KINDS {
        let worker = worker_of(program.pid());
        let (status, answer) = ask(&program).await;
        match fate {
            Unharmed | Resumed => {
                assert_eq!((status, &answer["text"]), (200, &right), "{kind}: {}", program.log());
                assert_eq!(answer["usage"]["total_tokens"], undisturbed["usage"]["total_tokens"], "{kind}");
                assert_eq!(answer["timings"]["resumed"], u32::from(fate == Resumed), "{kind}");
            }
            Refused => assert_eq!((status, &answer["error"]["code"]), refusal(kind), "{kind}: {answer}"),
        }
        if matches!(fate, Unharmed | Refused) {
            assert_eq!(worker_of(program.pid()), worker, "{kind}");
        }
        // The number of dropped lines is logged later, or when the worker ends.
        if !kind.starts_with("flood") {
            eventually(log, || program.log().contains(log)).await;
        }
    }
    let (status, answer) = ask(&program).await;
    assert_eq!((status, &answer["text"]), (200, &right), "{}", program.log());
    for (_, _, log) in KINDS {
        eventually(log, || program.log().contains(log)).await;
    }
    assert!(program.log().len() < 1 << 20, "a flood drowned the log");
}

#[tokio::test]
async fn every_fault_before_an_answer_leaves_the_stream_unchanged() {
    let program = with_faults(&one_of_each("prefill:1"), &PATIENCE).await;
    let right = &expected()[0].text;
    stream(&program).await;
    for (kind, fate, _) in KINDS {
        let (documents, is_done) = stream(&program).await;
        let (last, pieces) = documents.split_last().unwrap();
        let spoken: String = pieces.iter().filter_map(|piece| piece["text"].as_str()).collect();
        assert_eq!(is_done, matches!(fate, Unharmed | Resumed), "{kind}: {last}");
        if is_done {
            assert_eq!((&spoken, &last["text"]), (right, &json!(right)), "{kind}");
            assert_eq!(last["timings"]["resumed"], u32::from(fate == Resumed), "{kind}");
        } else {
            assert_eq!((spoken.as_str(), &last["error"]["code"]), ("", refusal(kind).1), "{kind}");
        }
    }
    assert_eq!(ask(&program).await.1["text"], json!(right), "{}", program.log());
}

#[tokio::test]
async fn a_fault_in_every_attempt_fails_only_its_job() {
    let program = with_faults("crash@decode:3,job=2,always", &[]).await;
    let right = json!(expected()[0].text);
    assert_eq!(ask(&program).await.1["text"], right);
    let (status, answer) = ask(&program).await;
    assert_eq!((status, &answer["error"]["code"]), (502, &json!("worker_lost")));
    assert_eq!(ask(&program).await.1["text"], right);
}

#[tokio::test]
async fn workers_that_fail_to_load_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let [crash, garbage, hang] = ["crash", "garbage", "hang"].map(|name| folder.path().join(name));
    fs::write(&hang, "").unwrap();
    let plan = format!(
        "crash@load,once={};garbage@warm-up,once={};hang@warm-up,once={}",
        argument(&crash),
        argument(&garbage),
        argument(&hang)
    );
    let program = with_faults(&plan, &["--set", "watchdog.warm_up_ms=3000"]).await;
    assert!(crash.exists() && garbage.exists());
    let log = program.log();
    assert!(log.contains("signal 11; last line on stderr: injected fault: crash@load of no job"), "{log}");
    assert!(log.contains("a frame of 3 B does not decode"), "{log}");

    // Now that it has worked, the next one hangs, and the one after that answers.
    assert_eq!(ask(&program).await.0, 200);
    fs::remove_file(&hang).unwrap();
    send_signal("KILL", program.worker_pid());
    let (status, answer) = ask(&program).await;
    assert_eq!((status, &answer["text"]), (200, &json!(expected()[0].text)), "{}", program.log());
    eventually("a hung worker", || {
        program.logged("worker_lost").iter().any(|line| line.contains("kind=\"hung\""))
    })
    .await;
}

#[tokio::test]
async fn worker_output_does_not_grow_the_parent() {
    let kinds = ["garbage", "truncated", "huge", "flood=67108864"];
    let rules = (11..=50).zip(kinds.iter().cycle()).map(|(job, kind)| format!("{kind}@decode:2,job={job}"));
    let program = with_faults(&rules.collect::<Vec<_>>().join(";"), &[]).await;
    let right = json!(expected()[0].text);
    let mut before = 0;
    for job in 1..=50 {
        assert_eq!(ask(&program).await.1["text"], right, "{}", program.log());
        // The first of each kind may touch code and buffers for the first time.
        if job == 14 {
            before = resident_kib(program.pid());
        }
    }
    let after = resident_kib(program.pid());
    println!("resident before {before} KiB, after 36 broken pipes and floods of 64 MiB {after} KiB");
    assert!(after <= before + 2_048, "{before} KiB grew to {after} KiB");
}

#[tokio::test]
async fn faults_cannot_be_enabled_by_requests_settings_or_environment() {
    let help = run(&["serve", "--help"]);
    assert!(!text(&help.stdout).contains("--faults"), "the option is hidden");
    let refused = run(&["serve", "--set", "faults=crash@load"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    let refused = eka(&["serve", "--print-config"]).env("EKA_FAULTS", "crash@load").output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));

    let program = Program::start(&[]).await;
    let mut asked = request();
    asked["faults"] = json!("crash@decode:1");
    let (status, answer) = program.ask("/generate-lite", &asked).await;
    assert_eq!((status, &answer["error"]["type"]), (400, &json!("invalid_request_error")));
    assert!(program.logged("faults_enabled").is_empty());
}

#[test]
fn an_invalid_fault_plan_is_rejected_with_the_fix() {
    let refused = run(&["serve", "--faults", "crahs@decode:1"]);
    assert_eq!(refused.status.code(), Some(2));
    let message = text(&refused.stderr);
    assert!(message.contains("unknown fault \"crahs\"; expected one of hang, crash"), "{message}");
}

#[tokio::test]
async fn a_leak_is_visible_and_ends_with_the_worker() {
    let program = with_faults("leak=67108864@decode:1,every=2;exit=0@decode:1,job=5", &[]).await;
    ask(&program).await;
    let before = resident_kib(program.worker_pid());
    ask(&program).await;
    ask(&program).await;
    let leaked = resident_kib(program.worker_pid());
    assert!(leaked >= before + 65_000, "{before} KiB, {leaked} KiB");
    ask(&program).await;
    ask(&program).await;
    assert!(resident_kib(program.worker_pid()) < leaked, "the one that answered last is another one");
}
