//! A real `eka serve`, for as long as a bench needs it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

type BenchResult<T> = Result<T, Box<dyn std::error::Error>>;

/// To load a model; longer is a server that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server's process. Dropping it kills it.
pub(crate) struct Server {
    pub(crate) child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts `serve`, an `eka serve` on a free port, and waits until it has loaded its model.
    pub(crate) fn start(serve: &mut Command) -> BenchResult<Self> {
        let directory = tempfile::tempdir()?;
        let ready_file = directory.path().join("ready.json");
        let child = serve.arg("--ready-file").arg(&ready_file).stderr(Stdio::null()).spawn()?;
        let mut server = Self { child, address: String::new() };
        let began = Instant::now();
        loop {
            if let Some(address) = ready_address(&ready_file) {
                server.address = address;
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("the server did not start: {status}").into());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("the server is not ready after {PATIENCE:?}").into());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Posts a document; the lines of the answer as they come.
    pub(crate) fn post(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> BenchResult<impl Iterator<Item = std::io::Result<String>> + use<>> {
        let body = body.to_string();
        let head = "host: bench\r\nconnection: close\r\ncontent-type: application/json";
        let request =
            format!("POST {path} HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        Ok(BufReader::new(self.send(&request)?).lines())
    }

    /// Sends a request in one piece: `write!` to a socket would send every part of the format by itself.
    fn send(&self, request: &str) -> BenchResult<TcpStream> {
        let mut connection = TcpStream::connect(&self.address)?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(request.as_bytes())?;
        Ok(connection)
    }
}

/// The address in the ready file of a server that has loaded its model.
fn ready_address(ready_file: &Path) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(&fs::read(ready_file).ok()?).ok()?;
    document["ready"].as_bool()?.then(|| document["address"].as_str().map(str::to_owned))?
}
