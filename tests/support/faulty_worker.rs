//! Workers that hang on purpose, and the signals that end them then.

use serde_json::{Value, json};

use super::{
    processes::send_signal,
    program::Program,
    server::{events, eventually},
};

/// A plan of faults: each of these jobs hangs at a decode step of its own, in its first attempt. A signal that comes then
/// comes in an answer, however fast or busy this machine is.
pub(crate) fn hanging<const N: usize>(jobs_and_steps: [(u64, u32); N]) -> String {
    jobs_and_steps.map(|(job, step)| format!("hang@decode:{step},job={job}")).join(";")
}

/// Streams an answer whose worker hangs so many times, and sends it a signal each time.
pub(crate) async fn stream_and(
    program: &Program,
    request: &Value,
    signal: &str,
    times: usize,
) -> (Vec<Value>, bool) {
    let mut request = request.clone();
    request["stream"] = json!(true);
    let stream =
        async { program.post("/generate-lite", &request).send().await.unwrap().text().await.unwrap() };
    let (received, ()) = tokio::join!(stream, signal_when_hung(program, signal, times));
    events(&received)
}

/// Sends the worker a signal each of the next so many times that it hangs.
pub(crate) async fn signal_when_hung(program: &Program, signal: &str, times: usize) {
    // Not in the last words of a worker that is gone, which say it again.
    let hung = || program.log().lines().filter(|line| line.starts_with("injected fault: hang@")).count();
    let before = hung();
    for time in 1..=times {
        eventually("the worker to hang", || hung() >= before + time).await;
        send_signal(signal, program.worker_pid());
    }
}
