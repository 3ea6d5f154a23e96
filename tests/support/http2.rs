//! A client that speaks HTTP/2 from the first byte.

use std::{future::poll_fn, pin::Pin};

use hyper::{
    Request, Response,
    body::{Body, Incoming},
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use super::server::Server;

/// A client on a connection to the server.
pub(crate) async fn client<T>(connection: T) -> SendRequest<String>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(connection)).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) fn request(server: &Server, path: &str, body: Option<&Value>) -> Request<String> {
    let request = Request::builder().uri(format!("{}{path}", server.url));
    match body {
        Some(body) => {
            request.method("POST").header("content-type", "application/json").body(body.to_string())
        }
        None => request.body(String::new()),
    }
    .unwrap()
}

/// The next bytes of an answer; `None` at its end.
async fn next(answer: &mut Response<Incoming>) -> Option<Vec<u8>> {
    let frame = poll_fn(|cx| Pin::new(answer.body_mut()).poll_frame(cx)).await?;
    Some(frame.unwrap().into_data().unwrap().to_vec())
}

pub(crate) async fn text(mut answer: Response<Incoming>) -> String {
    let mut all = Vec::new();
    while let Some(bytes) = next(&mut answer).await {
        all.extend(bytes);
    }
    String::from_utf8(all).unwrap()
}
