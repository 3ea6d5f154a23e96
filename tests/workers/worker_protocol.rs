//! `eka worker` by itself: the frames on its pipes, and how it ends.

use std::{
    io::Write,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use eka::{
    job::{EndReason, Failure, Job, JobId, ModelId, Step},
    units::Bytes,
    wire::{self, FromWorker, PROTOCOL, ToWorker, WorkerSpec},
};

use crate::support::{models::exported, program::eka, worker::worker_spec};

/// Sends a worker these frames and returns its frames and exit code.
fn converse(frames: &[ToWorker], then: &[u8]) -> (Vec<FromWorker>, Option<i32>) {
    let mut child =
        eka(&["worker"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for frame in frames {
        wire::write(frame, &mut stdin).unwrap();
    }
    stdin.write_all(then).unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = wire::read::<FromWorker>(&mut stdout).unwrap() {
        frames.push(frame);
    }
    (frames, child.wait().unwrap().code())
}

fn start() -> ToWorker {
    ToWorker::Start(worker_spec(4, Some(64)))
}

fn load(model_dir: &str) -> ToWorker {
    ToWorker::Load { model: ModelId::default(), dir: model_dir.into(), draft: None }
}

fn generate(id: u64, prompt: usize, max_new_tokens: usize) -> ToWorker {
    ToWorker::Generate(vec![Job::new(JobId(id), vec![1; prompt], max_new_tokens)])
}

#[test]
fn a_worker_sends_a_frame_for_every_chunk_and_step() {
    let model = exported("llama");
    let (frames, code) = converse(&[start(), load(&model), generate(7, 10, 5), ToWorker::Shutdown], &[]);
    assert_eq!(code, Some(0));
    assert_eq!(frames[0], FromWorker::Hello { protocol: PROTOCOL });
    assert!(
        matches!(&frames[1..4], [FromWorker::Started(_), FromWorker::Loaded(_), FromWorker::Ready { report, .. }] if report.capacity == 64),
        "{:?}",
        &frames[1..4]
    );
    // A worker that is shut down while it works may stop after any step, but not skip one.
    let progress: Vec<_> = frames
        .iter()
        .filter_map(|up| {
            if let FromWorker::Step { step: Step::Progress { done, .. }, .. } = up {
                Some(*done)
            } else {
                None
            }
        })
        .collect();
    assert!([4, 8].starts_with(&progress), "{progress:?}");
    assert!(matches!(frames.last(), Some(FromWorker::Done { job: JobId(7), .. })), "{frames:?}");
}

#[test]
fn a_job_longer_than_the_context_fails_and_the_next_runs() {
    let model = exported("llama");
    let jobs = [start(), load(&model), generate(1, 60, 5), generate(2, 3, 2)];
    let mut child =
        eka(&["worker"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    jobs.iter().for_each(|frame| wire::write(frame, &mut stdin).unwrap());
    let mut ends = Vec::new();
    while ends.len() < 2 {
        let frame = wire::read::<FromWorker>(&mut stdout).unwrap().unwrap();
        if matches!(frame, FromWorker::Failed { .. } | FromWorker::Done { .. }) {
            ends.push(frame);
        }
    }
    assert!(matches!(
        &ends[0],
        FromWorker::Failed { job: JobId(1), failure: Failure::Context { .. }, poisoned: false }
    ));
    assert!(
        matches!(&ends[1], FromWorker::Done { job: JobId(2), finish } if finish.reason == EndReason::Length)
    );
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0), "the end of its input is the end of the worker");
}

#[test]
fn a_trim_frame_returns_memory() {
    let model = exported("llama");
    let mut child =
        eka(&["worker"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for frame in [start(), load(&model), ToWorker::Trim, generate(1, 3, 2)] {
        wire::write(&frame, &mut stdin).unwrap();
    }
    let mut frames = Vec::new();
    while !matches!(frames.last(), Some(FromWorker::Done { .. })) {
        frames.push(wire::read::<FromWorker>(&mut stdout).unwrap().unwrap());
    }
    assert!(matches!(&frames[4], FromWorker::Trimmed { memory } if memory.resident.is_some()), "{frames:?}");
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A worker that was sent these frames, and its pipes.
fn worker_after(spec: WorkerSpec, frames: &[ToWorker]) -> (Child, ChildStdin, ChildStdout) {
    let mut child =
        eka(&["worker"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for frame in [ToWorker::Start(spec)].iter().chain(frames) {
        wire::write(frame, &mut stdin).unwrap();
    }
    (child, stdin, stdout)
}

/// The frames of a worker up to the one that `is_last` accepts.
fn frames_until(stdout: &mut ChildStdout, is_last: impl Fn(&FromWorker) -> bool) -> Vec<FromWorker> {
    let mut frames = Vec::new();
    while !frames.last().is_some_and(&is_last) {
        frames.push(wire::read::<FromWorker>(stdout).unwrap().unwrap());
    }
    frames
}

#[test]
fn a_worker_answers_pings_between_jobs() {
    let frames =
        [load(&exported("llama")), ToWorker::Ping, generate(1, 3, 2), ToWorker::Ping, ToWorker::Ping];
    let (mut child, stdin, mut stdout) = worker_after(worker_spec(4, Some(64)), &frames);
    for _ in 0..3 {
        frames_until(&mut stdout, |up| *up == FromWorker::Pong);
    }
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Pings are more frequent than the idle time after which a worker gives memory back, and must not reset it.
#[test]
fn pings_do_not_delay_the_idle_trim() {
    let spec = WorkerSpec {
        host_pool: true,
        trim: "idle=1000".parse().unwrap(),
        kv_keep: Bytes::mib(64),
        ..worker_spec(4, Some(64))
    };
    let frames = [load(&exported("llama")), generate(1, 3, 2)];
    let (mut child, mut stdin, mut stdout) = worker_after(spec, &frames);
    frames_until(&mut stdout, |up| matches!(up, FromWorker::Done { .. }));
    let began = Instant::now();
    let mut is_held = false;
    while !is_held {
        assert!(began.elapsed() < Duration::from_secs(120), "pinged for ever");
        wire::write(&ToWorker::Ping, &mut stdin).unwrap();
        let frames = frames_until(&mut stdout, |up| *up == FromWorker::Pong);
        is_held = frames.iter().any(|up| matches!(up, FromWorker::AutoTrimmed { .. }));
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn invalid_frames_end_a_worker_with_an_error() {
    for garbage in [&[0xff; 64][..], &[3, 0, 0, 0, 250, 250, 250], b"GET / HTTP/1.1\r\n\r\n"] {
        let (frames, code) = converse(&[], garbage);
        assert_eq!(frames, [FromWorker::Hello { protocol: PROTOCOL }]);
        assert_eq!(code, Some(1), "{garbage:?}");
    }
}

#[test]
fn a_load_failure_is_reported_with_the_reason_and_not_retried() {
    let (frames, code) = converse(&[start(), load("tests/fixtures"), ToWorker::Shutdown], &[]);
    assert_eq!(code, Some(0));
    let Some(FromWorker::LoadFailed { message, .. }) = frames.last() else { panic!("{frames:?}") };
    assert!(message.contains("eka.json"), "{message}");
}
