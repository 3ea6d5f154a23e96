//! Reads request bodies, with limits on size, time and total memory.
//!
//! Everything that the headers reveal is refused before the body is read: a content type other than JSON, an unsupported
//! encoding, a `Content-Length` above the limit. A client with `Expect: 100-continue` is then not asked for the body
//! ([`check_length`]).
//!
//! The content type has to be JSON, because a web page may send forms and plain text to any other site, but JSON only to sites
//! that allow it (CORS). For the same reason, a body without a content type is refused. Ollama has no such rule, and its documentation
//! and clients send JSON as forms or without a type: on Ollama's routes any type is taken, unless a browser sent it.
//!
//! [`Body::parse`] decodes and parses; for large bodies [`offload`](crate::http::offload) runs it on another thread.

use std::{
    future::{Ready, ready},
    io::Read,
    sync::Arc,
    time::Duration,
};

use actix_web::{
    Error, FromRequest, HttpRequest,
    dev::Payload,
    error::{ErrorInternalServerError, PayloadError},
    http::header::{self, HeaderMap},
    web,
};
use flate2::read::MultiGzDecoder;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::timeout;

use super::schema::{Fields, Ignored, ReadObject};
use crate::{
    http::{
        adapter_registry::ServedAdapter,
        body_memory::Share,
        connections::ConnectionHandle,
        error::ApiError,
        error_shape::ErrorShape,
        middleware::{RequestRecord, auth},
        offload::Cost,
        state::AppState,
    },
    text::Text,
    units,
};

/// Time for a body to arrive; actix-web limits the time of the head only.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Expected compression ratio of text, to estimate the cost. The size limit applies to any ratio.
const DEFLATED: usize = 16;

/// The content encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
}

/// A body that has arrived.
#[derive(Debug)]
pub(crate) struct Body {
    bytes: Vec<u8>,
    encoding: Encoding,
    limit: units::Bytes,
    share: Share,
}

/// A request, its model, and the memory of its body, which stays counted until `share` is dropped.
pub(crate) struct Taken<T> {
    pub(crate) text: Arc<Text>,
    /// The adapter in the model's name.
    pub(crate) adapter: Option<Arc<ServedAdapter>>,
    pub(crate) value: T,
    pub(crate) share: Share,
    /// Fields that were ignored.
    pub(crate) ignored: Ignored,
}

/// A request as handlers take it; its body is not read yet.
pub(crate) struct ApiRequest {
    pub(crate) http: HttpRequest,
    pub(crate) state: web::Data<AppState>,
    payload: Payload,
}

impl FromRequest for ApiRequest {
    type Error = Error;
    type Future = Ready<Result<Self, Error>>;

    fn from_request(http: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let state = http.app_data().cloned().ok_or_else(|| ErrorInternalServerError("no state"));
        ready(state.map(|state| Self { http: http.clone(), state, payload: payload.take() }))
    }
}

impl ApiRequest {
    /// Reads a body that is a JSON object.
    pub(crate) async fn read<R: ReadObject>(&mut self) -> Result<R, ApiError> {
        let body = self.receive().await?;
        self.parse(body).await
    }

    /// As [`Self::read`]; a missing body is read as an empty object.
    pub(crate) async fn read_optional<R: ReadObject>(&mut self) -> Result<R, ApiError> {
        let body = self.bytes().await?;
        if body.bytes.is_empty() {
            return Ok(R::read(Fields::default())?);
        }
        self.check_head()?;
        self.parse(body).await
    }

    async fn parse<R: ReadObject>(&self, body: Body) -> Result<R, ApiError> {
        self.state.offload.run(body.cost(), move || Ok::<_, ApiError>(R::read(body.parse()?.0)?)).await
    }

    /// Reads a body, finds its model and checks the request with `resolve`; on another thread if the body is large.
    pub(crate) async fn take<R: ReadObject, T: Send + 'static>(
        &mut self,
        resolve: impl FnOnce(R, &Text) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<Taken<T>, ApiError> {
        let body = self.receive().await?;
        let cost = body.cost();
        let (key, models) = (auth::key(&self.http), self.state.models.clone());
        let unknown = self.state.settings.unknown_fields;
        let work = move || {
            let (fields, share) = body.parse()?;
            let fields = fields.with_unknown(unknown);
            let ignored = fields.ignored();
            let model = fields.get("model").and_then(Value::as_str).map(str::to_owned);
            let request = R::read(fields)?;
            let text = Arc::clone(auth::model_for(key.as_deref(), &models, model.as_deref())?);
            let adapter = models.adapter(model.as_deref())?;
            let value = resolve(request, &text)?;
            Ok::<_, ApiError>(Taken { text, adapter, value, share, ignored })
        };
        self.state.offload.run(cost, work).await
    }

    /// The error of a route that this server does not have.
    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::NotFound { path: self.http.path().to_owned() }
    }

    /// Checks the headers and reads the body.
    async fn receive(&mut self) -> Result<Body, ApiError> {
        self.check_head()?;
        self.bytes().await
    }

    fn check_head(&self) -> Result<(), ApiError> {
        let record = RequestRecord::of(&self.http);
        let is_ollama = record.is_some_and(|record| matches!(record.route().errors, ErrorShape::Ollama));
        check_head(self.http.headers(), self.state.settings.body_limit, is_ollama)
    }

    async fn bytes(&mut self) -> Result<Body, ApiError> {
        let (headers, limit) = (self.http.headers(), self.state.settings.body_limit);
        check_length(headers, limit)?;
        let encoding = encoding(headers)?;
        // At the connection limit, a connection that is still sending its body may be closed.
        let _reading = ConnectionHandle::of(&self.http).map(|connection| connection.body());
        let body = Body { bytes: Vec::new(), encoding, limit, share: self.state.body_memory.share() };
        let read = timeout(TIMEOUT, body.filled(&mut self.payload, announced(headers))).await;
        read.map_err(|_| ApiError::BodyTooSlow { limit: TIMEOUT })?
    }
}

/// Checks the headers that describe the body, of a route of Ollama's API if it `is_ollama`.
///
/// # Errors
/// When any such body would be refused.
fn check_head(headers: &HeaderMap, limit: units::Bytes, is_ollama: bool) -> Result<(), ApiError> {
    check_length(headers, limit)?;
    encoding(headers)?;
    // Browsers say with every POST which page it comes from.
    let is_from_page = headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site");
    if is_ollama && !is_from_page {
        return Ok(());
    }
    let kind = headers.get(header::CONTENT_TYPE);
    match kind {
        Some(kind) if is_json(kind.as_bytes()) => Ok(()),
        kind => {
            let found = kind.map(|kind| kind.as_bytes().escape_ascii().take(64).map(char::from).collect());
            Err(ApiError::NotJsonType { found })
        }
    }
}

/// Checks `Content-Length`.
///
/// # Errors
/// [`ApiError::BodyTooLarge`] when it is above the limit.
pub(crate) fn check_length(headers: &HeaderMap, limit: units::Bytes) -> Result<(), ApiError> {
    match announced(headers) {
        Some(length) if length > limit.0 => Err(ApiError::BodyTooLarge { limit }),
        _ => Ok(()),
    }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Whether this is `application/json` or a type that ends in `+json`; parameters are ignored.
fn is_json(kind: &[u8]) -> bool {
    let essence = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let essence = essence.to_ascii_lowercase();
    essence == b"application/json" || (essence.starts_with(b"application/") && essence.ends_with(b"+json"))
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, ApiError> {
    let mut named = headers.get_all(header::CONTENT_ENCODING);
    let (Some(name), None) = (named.next(), named.next()) else {
        return if headers.contains_key(header::CONTENT_ENCODING) {
            Err(ApiError::EncodingUnsupported { found: "several encodings".into() })
        } else {
            Ok(Encoding::Identity)
        };
    };
    match name.as_bytes().trim_ascii().to_ascii_lowercase().as_slice() {
        b"" | b"identity" => Ok(Encoding::Identity),
        b"gzip" | b"x-gzip" => Ok(Encoding::Gzip),
        other => {
            let found = other.escape_ascii().take(64).map(char::from).collect();
            Err(ApiError::EncodingUnsupported { found })
        }
    }
}

impl Body {
    async fn filled(mut self, payload: &mut Payload, announced: Option<u64>) -> Result<Self, ApiError> {
        let max = announced.map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(usize::MAX));
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|error| ApiError::BodyBroken { why: why(&error) })?;
            append(&mut self.bytes, &chunk, Room { share: &mut self.share, limit: self.limit, max })?;
        }
        Ok(self)
    }

    /// The cost of parsing it; of a gzip stream, an estimate.
    pub(crate) fn cost(&self) -> Cost {
        match self.encoding {
            Encoding::Identity => Cost::of_json(self.bytes.len()),
            Encoding::Gzip => Cost::of_json(self.bytes.len().saturating_mul(DEFLATED)).max(Cost::Light),
        }
    }

    /// Decodes and parses it.
    ///
    /// # Errors
    /// When it is not valid gzip despite its encoding, decodes to more than the limit, or is not a JSON object.
    pub(crate) fn parse(mut self) -> Result<(Fields, Share), ApiError> {
        if self.encoding == Encoding::Gzip {
            self.bytes = gunzip(&self.bytes, self.limit, &mut self.share)?;
        }
        let fields =
            Fields::parse(&self.bytes).map_err(|error| ApiError::NotJson { message: error.to_string() })?;
        Ok((fields, self.share))
    }
}

/// Limits on the growth of a buffer.
struct Room<'a> {
    share: &'a mut Share,
    limit: units::Bytes,
    /// The announced length.
    max: usize,
}

/// Appends to a body and counts the growth of the allocation. Doubles the capacity like `Vec`, but not beyond the announced
/// length.
fn append(bytes: &mut Vec<u8>, chunk: &[u8], room: Room<'_>) -> Result<(), ApiError> {
    let length = bytes.len() + chunk.len();
    let limit = usize::try_from(room.limit.0).unwrap_or(usize::MAX);
    if length > limit {
        return Err(ApiError::BodyTooLarge { limit: room.limit });
    }
    if length > bytes.capacity() {
        let capacity = length.max(bytes.capacity().saturating_mul(2).min(room.max).min(limit));
        room.share.grow(capacity - bytes.capacity())?;
        bytes.reserve_exact(capacity - bytes.len());
    }
    bytes.extend_from_slice(chunk);
    Ok(())
}

/// Decodes in pieces, so that a decompression bomb is refused at the limit.
fn gunzip(encoded: &[u8], limit: units::Bytes, share: &mut Share) -> Result<Vec<u8>, ApiError> {
    let mut decoder = MultiGzDecoder::new(encoded);
    let mut piece = [0; 8 << 10];
    let mut decoded = Vec::new();
    loop {
        let read = decoder.read(&mut piece);
        match read.map_err(|error| ApiError::NotGzip { message: error.to_string() })? {
            0 => return Ok(decoded),
            read => append(&mut decoded, &piece[..read], Room { share, limit, max: usize::MAX })?,
        }
    }
}

/// Why a body is incomplete.
const fn why(error: &PayloadError) -> &'static str {
    match error {
        PayloadError::EncodingCorrupted => "invalid chunked encoding",
        _ => "it is shorter than announced, or its chunked encoding is invalid",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
    use flate2::{Compression, write::GzEncoder};

    use super::*;
    use crate::{
        http::{body_memory::BodyMemory, request::schema::string},
        units::Bytes,
    };

    fn head(pairs: &[(HeaderName, &'static str)]) -> Result<(), ApiError> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.clone(), HeaderValue::from_static(value));
        }
        check_head(&headers, Bytes::mib(1), false)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn parse(bytes: Vec<u8>, memory: &BodyMemory) -> Result<(Fields, Share), ApiError> {
        Body { bytes, encoding: Encoding::Gzip, limit: Bytes::mib(1), share: memory.share() }.parse()
    }

    #[test]
    fn a_body_has_to_be_json_and_the_error_shows_how_to_send_it() {
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"] {
            head(&[(CONTENT_TYPE, kind)]).unwrap();
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "+json", ""] {
            let refused = head(&[(CONTENT_TYPE, kind)]).unwrap_err();
            assert_eq!(refused.code(), "unsupported_media_type");
            assert!(refused.to_string().contains("-H 'Content-Type: application/json'"), "{refused}");
        }
        assert_eq!(head(&[]).unwrap_err().code(), "unsupported_media_type");
    }

    #[test]
    fn an_announced_length_above_the_limit_is_refused_unread() {
        let json = (CONTENT_TYPE, "application/json");
        head(&[json.clone(), (CONTENT_LENGTH, "1048576")]).unwrap();
        let refused = head(&[json, (CONTENT_LENGTH, "1048577")]).unwrap_err();
        assert_eq!(refused.code(), "body_too_large");
    }

    #[test]
    fn encodings_other_than_gzip_are_refused_with_those_that_are_accepted() {
        let with = |encoding| head(&[(CONTENT_TYPE, "application/json"), (CONTENT_ENCODING, encoding)]);
        for accepted in ["gzip", "GZIP", "identity", "x-gzip"] {
            with(accepted).unwrap();
        }
        for other in ["br", "deflate", "zstd", "gzip, gzip"] {
            let refused = with(other).unwrap_err();
            assert_eq!(refused.code(), "unsupported_content_encoding");
            assert!(refused.to_string().contains("gzip or identity"), "{refused}");
        }
    }

    #[test]
    fn a_gzip_body_is_decoded_and_refused_at_the_limit() {
        let memory = BodyMemory::new(Bytes::mib(8));
        let (mut fields, _share) = parse(gzip(br#"{"prompt": "a"}"#), &memory).unwrap();
        assert_eq!(fields.take("prompt", string()).unwrap(), "a");
        let bomb = gzip(&vec![b' '; 64 << 20]);
        assert!(bomb.len() < 128 << 10, "{}", bomb.len());
        assert_eq!(parse(bomb, &memory).unwrap_err().code(), "body_too_large");
        assert_eq!(parse(b"{}".to_vec(), &memory).unwrap_err().code(), "invalid_gzip");
        let mut cut = gzip(br#"{"prompt": "a"}"#);
        cut.truncate(cut.len() - 9);
        assert_eq!(parse(cut, &memory).unwrap_err().code(), "invalid_gzip");
    }
}
