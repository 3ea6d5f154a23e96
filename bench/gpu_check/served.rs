//! A worker is killed during an answer: the answer continues and the device memory is freed.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use eka::units::Bytes;
use serde_json::json;

use crate::{Setup, server::Server, soak::BenchResult, table::Table};

/// Time limit for the driver to free the memory of a killed worker.
const SOON: Duration = Duration::from_secs(1);
/// Tolerance: two workers may differ by a few pages.
const LITTLE: u64 = 64 << 20;

fn start(setup: &Setup, model: &Path) -> BenchResult<Server> {
    let mut serve = setup.command(&["serve", "--port", "0", "--device", &setup.choice.to_string()]);
    serve.arg("--model").arg(model);
    if let Some(libraries) = &setup.libraries {
        serve.arg("--set").arg(format!("onnxruntime.dir={}", libraries.display()));
    }
    Server::start(&mut serve)
}

/// Asks for a stream; its lines as they come.
fn stream(
    server: &Server,
    tokens: usize,
) -> BenchResult<impl Iterator<Item = std::io::Result<String>> + use<>> {
    let body = json!({
        "prompt": "Translate to Hindi: Good morning, friend.", "max_new_tokens": tokens, "stream": true,
        "ignore_eos": true, "temperature": 0, "cache_prompt": false
    });
    server.post("/generate-lite", &body)
}

fn worker(server: &Server) -> BenchResult<u32> {
    for task in fs::read_dir(format!("/proc/{}/task", server.child.id()))? {
        let children = fs::read_to_string(task?.path().join("children"))?;
        if let Some(worker) = children.split_whitespace().next() {
            return Ok(worker.parse()?);
        }
    }
    Err("the server has no worker".into())
}

pub(crate) fn killed(setup: &Setup, table: &mut Table) -> BenchResult<()> {
    let free = || setup.device.pool().and_then(|pool| pool.stats().device_free).map(|free| free.0);
    let before = free();
    let model = setup.demo(setup.dtype())?;
    let server = start(setup, &model)?;
    let tokens = 400;
    let whole: Vec<String> = texts(stream(&server, tokens)?)?;
    let serving = free();
    let mut lines = stream(&server, tokens)?;
    let mut said = Vec::new();
    while said.len() < 20 {
        said.extend(text(&lines.next().ok_or("the stream ended")??));
    }
    let worker = worker(&server)?;
    let killed = Instant::now();
    let status = Command::new("kill").args(["-9", &worker.to_string()]).status()?;
    if !status.success() {
        return Err("the worker cannot be killed".into());
    }
    let half = match (before, serving) {
        (Some(before), Some(serving)) => Some(watch(&free, serving + before.saturating_sub(serving) / 2)),
        _ => None,
    };
    said.extend(texts(lines)?);
    let resumed = killed.elapsed();
    let found = format!(
        "{} pieces of {}, the end {:.2} s after the kill",
        said.len(),
        whole.len(),
        resumed.as_secs_f64()
    );
    table.check(
        "an answer whose worker is killed",
        "goes on, the same text",
        &found,
        said.concat() == whole.concat(),
    );
    if let (Some(half), Some(serving)) = (half, serving) {
        let found =
            half.map_or("never seen".into(), |after| format!("{:.0} ms after", after.as_secs_f64() * 1e3));
        table.info("half of its memory is free again", &found);
        // The next worker holds what the first one did: as much is free only when all of the first one's is.
        let moved = free().unwrap_or_default().abs_diff(serving);
        let found = format!("{} away, {:.2} s after", Bytes(moved), killed.elapsed().as_secs_f64());
        let is_back = moved <= LITTLE && killed.elapsed() <= SOON;
        table.check("with the next worker as much is free as with it", "within a second", &found, is_back);
    }
    Ok(())
}

/// When as much is free as `wanted`, while the kill is being noticed.
fn watch(free: &impl Fn() -> Option<u64>, wanted: u64) -> Option<Duration> {
    let began = Instant::now();
    while began.elapsed() < SOON * 3 {
        if free()? >= wanted {
            return Some(began.elapsed());
        }
        thread::sleep(Duration::from_millis(1));
    }
    None
}

fn texts(lines: impl Iterator<Item = std::io::Result<String>>) -> BenchResult<Vec<String>> {
    let mut all = Vec::new();
    for line in lines {
        all.extend(text(&line?));
    }
    Ok(all)
}

/// The text in an event of the stream.
fn text(line: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
    Some(document["text"].as_str()?.to_owned())
}
