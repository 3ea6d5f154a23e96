//! A real `eka serve`, for as long as a bench needs it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

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
    pub(crate) fn start(serve: &mut Command) -> Outcome<Self> {
        let mut child = serve.stderr(Stdio::piped()).spawn()?;
        let mut log = BufReader::new(child.stderr.take().ok_or("no log")?).lines();
        let mut server = Self { child, address: String::new() };
        let mut said = String::new();
        for line in log.by_ref() {
            let line = line?;
            if let Some((_, address)) = line.split_once("on http://") {
                server.address = address.trim().to_owned();
                break;
            }
            said.push_str(&line);
        }
        if server.address.is_empty() {
            return Err(format!("the server did not start: {said}").into());
        }
        // It must not wait for a reader of its log.
        thread::spawn(move || log.for_each(drop));
        let began = Instant::now();
        while !server.is_ready()? {
            if began.elapsed() > PATIENCE {
                return Err(format!("the server is not ready after {PATIENCE:?}").into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn is_ready(&self) -> Outcome<bool> {
        let mut connection = self.send("GET /readyz HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let mut said = String::new();
        connection.read_to_string(&mut said)?;
        Ok(said.starts_with("HTTP/1.1 200"))
    }

    /// Posts a document; the lines of the answer as they come.
    pub(crate) fn post(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Outcome<impl Iterator<Item = std::io::Result<String>> + use<>> {
        let body = body.to_string();
        let head = "host: bench\r\nconnection: close\r\ncontent-type: application/json";
        let request =
            format!("POST {path} HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        Ok(BufReader::new(self.send(&request)?).lines())
    }

    /// Sends a request in one piece: `write!` to a socket would send every part of the format by itself.
    fn send(&self, request: &str) -> Outcome<TcpStream> {
        let mut connection = TcpStream::connect(&self.address)?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(request.as_bytes())?;
        Ok(connection)
    }
}
