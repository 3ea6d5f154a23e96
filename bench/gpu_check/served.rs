//! A server whose worker is killed in an answer: the answer goes on, and the device's memory comes back.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{Ground, soak::Outcome, table::Table};

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How soon the driver has to have the memory of a worker that was killed.
const SOON: Duration = Duration::from_secs(1);

struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(ground: &Ground, model: &std::path::Path) -> Outcome<Self> {
        let mut command = ground.command(&["serve", "--port", "0", "--device", &ground.choice.to_string()]);
        command.arg("--model").arg(model);
        if let Some(libraries) = &ground.libraries {
            command.arg("--set").arg(format!("onnxruntime.dir={}", libraries.display()));
        }
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let mut log = BufReader::new(child.stderr.take().ok_or("no log")?).lines();
        let mut server = Self { child, address: String::new() };
        for line in log.by_ref() {
            if let Some((_, address)) = line?.split_once("on http://") {
                server.address = address.trim().to_owned();
                break;
            }
        }
        // It must not wait for a reader of its log.
        thread::spawn(move || log.for_each(drop));
        let began = Instant::now();
        while !server.get("/readyz")?.starts_with("HTTP/1.1 200") {
            if began.elapsed() > PATIENCE {
                return Err(format!("not ready in {PATIENCE:?}").into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn get(&self, path: &str) -> Outcome<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    }

    /// Asks for a stream; its lines as they come.
    fn stream(&self, tokens: usize) -> Outcome<impl Iterator<Item = std::io::Result<String>> + use<>> {
        let body = json!({
            "prompt": "Translate to Hindi: Good morning, friend.", "max_new_tokens": tokens, "stream": true,
            "ignore_eos": true, "temperature": 0, "cache_prompt": false
        })
        .to_string();
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "POST /generate-lite HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )?;
        Ok(BufReader::new(stream).lines())
    }

    fn worker(&self) -> Outcome<u32> {
        let parent = self.child.id();
        for task in fs::read_dir(format!("/proc/{parent}/task"))? {
            let children = fs::read_to_string(task?.path().join("children"))?;
            if let Some(worker) = children.split_whitespace().next() {
                return Ok(worker.parse()?);
            }
        }
        Err("the server has no worker".into())
    }
}

pub(crate) fn killed(ground: &Ground, table: &mut Table) -> Outcome<()> {
    let free = || ground.device.pool().and_then(|pool| pool.figures().device_free).map(|free| free.0);
    let before = free();
    let model = ground.demo(ground.dtype())?;
    let server = Server::start(ground, &model)?;
    let tokens = 400;
    let whole: Vec<String> = texts(server.stream(tokens)?)?;
    let serving = free();
    let mut lines = server.stream(tokens)?;
    let mut said = Vec::new();
    while said.len() < 20 {
        said.extend(text(&lines.next().ok_or("the stream ended")??));
    }
    let worker = server.worker()?;
    let killed = Instant::now();
    let status = Command::new("kill").args(["-9", &worker.to_string()]).status()?;
    if !status.success() {
        return Err("the worker cannot be killed".into());
    }
    let returned = match (before, serving) {
        (Some(before), Some(serving)) => Some(watch(&free, serving + (before - serving) / 2)),
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
    table.held(
        "an answer whose worker is killed",
        "goes on, the same text",
        &found,
        said.concat() == whole.concat(),
    );
    if let (Some(returned), Some(serving)) = (returned, serving) {
        let found = returned
            .map_or("never seen".into(), |after| format!("{:.0} ms after", after.as_secs_f64() * 1e3));
        let is_soon = returned.is_some_and(|after| after <= SOON);
        table.held("its memory is the driver's again", "within a second", &found, is_soon);
        // The next worker holds what the first one did.
        let moved = free().unwrap_or_default().abs_diff(serving);
        let found = eka::units::Bytes(moved).to_string();
        table.held(
            "free memory with the next worker against the first",
            "within 64 MiB",
            &found,
            moved <= 64 << 20,
        );
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

fn texts(lines: impl Iterator<Item = std::io::Result<String>>) -> Outcome<Vec<String>> {
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
