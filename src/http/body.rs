//! Reading a request's body: bounded in size and in time.
//!
//! The content type is not looked at. What parses as JSON is JSON: half of the world's examples post it with `curl -d`,
//! which calls it a form.

use std::time::Duration;

use actix_web::{
    Error,
    error::PayloadError,
    web::{Bytes, Payload},
};
use tokio::time::timeout;

use super::{error::ApiError, fields::Fields};
use crate::units;

/// For a whole body to arrive. actix-web bounds the time of the head alone.
const PATIENCE: Duration = Duration::from_secs(30);

/// As [`read`], for routes that need no body: none is an empty object.
pub(super) async fn read_optional(payload: Payload, limit: units::Bytes) -> Result<Fields, ApiError> {
    let body = bytes(payload, limit).await?;
    parse(if body.is_empty() { b"{}" } else { &body })
}

/// Reads a body that is a JSON object.
pub(super) async fn read(payload: Payload, limit: units::Bytes) -> Result<Fields, ApiError> {
    parse(&bytes(payload, limit).await?)
}

fn parse(body: &[u8]) -> Result<Fields, ApiError> {
    Fields::parse(body).map_err(|error| ApiError::NotJson { message: error.to_string() })
}

async fn bytes(payload: Payload, limit: units::Bytes) -> Result<Bytes, ApiError> {
    let most = usize::try_from(limit.0).unwrap_or(usize::MAX);
    let read = timeout(PATIENCE, payload.to_bytes_limited(most)).await;
    read.map_err(|_| ApiError::BodyTooSlow { limit: PATIENCE })?
        .map_err(|_| ApiError::BodyTooLarge { limit })?
        .map_err(|error| ApiError::BodyBroken { why: why(&error) })
}

/// What became of a body that did not come as it was announced.
fn why(error: &Error) -> &'static str {
    match error.as_error::<PayloadError>() {
        Some(PayloadError::EncodingCorrupted) => "its chunks are not those of HTTP/1.1",
        _ => "it is shorter than it was said to be, or its chunks are not those of HTTP/1.1",
    }
}
