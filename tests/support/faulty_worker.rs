//! Workers that hang on purpose, and signals sent while they hang.

use serde_json::{Value, json};

use super::{
    processes::send_signal,
    program::Program,
    server::{events, eventually},
};

/// A fault plan: each job hangs at the given decode step on its first attempt. A signal sent while it hangs arrives during an
/// answer, however fast or busy this machine is.
pub(crate) fn hanging<const N: usize>(jobs_and_steps: [(u64, u32); N]) -> String {
    jobs_and_steps.map(|(job, step)| format!("hang@decode:{step},job={job}")).join(";")
}

/// Streams an answer whose worker hangs `times` times, and sends the worker a signal each time.
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

/// Sends the worker a signal at each of the next `times` hangs.
pub(crate) async fn signal_when_hung(program: &Program, signal: &str, times: usize) {
    // Lines that repeat a lost worker's output do not start with this text.
    let hung = || program.log().lines().filter(|line| line.starts_with("injected fault: hang@")).count();
    let before = hung();
    for time in 1..=times {
        eventually("the worker to hang", || hung() >= before + time).await;
        send_signal(signal, program.worker_pid());
    }
}
