//! Tells a client that sends plain HTTP to the TLS port what is wrong.

use std::{io, time::Duration};

use actix_web::ResponseError;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    http::{
        error::ApiError,
        middleware::{RequestId, access_log},
    },
    metrics::Metrics,
};

/// Time for the client to close after it was told.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The TLS handshake of a connection.
///
/// # Errors
/// When the handshake fails, or the client sends something else; plain HTTP is answered with an error.
pub(super) async fn handshake(
    io: TcpStream,
    acceptor: TlsAcceptor,
    metrics: &Metrics,
) -> io::Result<TlsStream<TcpStream>> {
    // A TLS handshake begins with the byte 0x16, HTTP with a method.
    let mut first = [0];
    if io.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase() {
        refuse(io, metrics).await?;
        return Err(io::ErrorKind::InvalidData.into());
    }
    acceptor.accept(io).await
}

/// Answers plain HTTP, and reads until the client closes: data that is not read would reset the connection before the client
/// has read the answer.
async fn refuse(mut io: TcpStream, metrics: &Metrics) -> io::Result<()> {
    let (error, id) = (ApiError::PlainHttp, RequestId::random());
    access_log::log_unparsed(metrics, io.peer_addr().ok(), &id, &error, true);
    let body = serde_json::to_string(&error.body())?;
    let answer = format!(
        "HTTP/1.1 {} Bad Request\r\ncontent-length: {}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         x-request-id: {}\r\n\r\n{body}",
        error.status_code().as_u16(),
        body.len(),
        id.as_str()
    );
    io.write_all(answer.as_bytes()).await?;
    io.shutdown().await?;
    let mut rest = [0; 4096];
    let drain = async { while io.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
    let _ = timeout(CLOSE_TIMEOUT, drain).await;
    Ok(())
}
