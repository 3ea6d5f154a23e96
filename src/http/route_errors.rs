//! The errors of groups of routes in the OpenAPI document: each a status, and its reason.

/// Errors of every route except the probes: authentication, origin and host checks, rate limits.
pub(super) const KEY_ERRORS: &[(u16, &str)] = &[
    (401, "The API key is missing or unknown."),
    (403, "The key, the page's origin or the address is not allowed to do this."),
    (
        429,
        "The rate limit of the address or the key is exceeded, or the server compiles too many schemas or templates; see `Retry-After`.",
    ),
];

pub(super) const NO_RESPONSE: (u16, &str) = (404, "The response is not stored, or no longer.");

pub(super) const NO_STREAM: (u16, &str) = (404, "The stream is not kept, or no longer.");

pub(super) const NO_MODEL: (u16, &str) = (404, "The model was not found.");

const INTERNAL: (u16, &str) = (500, "Internal error; the log of the server has the details.");

/// Errors of every route with a body.
pub(super) const BODY_ERRORS: &[(u16, &str)] = &[
    (400, "The request is invalid; `error.param` names the field."),
    NO_MODEL,
    (408, "The body did not arrive in time."),
    (415, "`Content-Type` is not `application/json`, or `Content-Encoding` is neither gzip nor identity."),
    (
        413,
        "The body is larger than `server.body_limit_bytes`, or the device has too little memory for the request.",
    ),
    INTERNAL,
    (501, "The model's chat template uses an unsupported feature."),
];

/// Errors of every route that needs a worker.
pub(super) const WORKER_ERRORS: &[(u16, &str)] = &[
    (429, "The queue is full, or a rate limit is exceeded; see `Retry-After`."),
    (502, "Two workers were lost during this request."),
    (503, "No worker is ready; see `Retry-After`."),
    (504, "The request waited or ran for longer than its time limit."),
    INTERNAL,
];

/// Errors of embeddings only.
pub(super) const EMBEDDING_ERRORS: &[(u16, &str)] = &[(501, "The model gives no embeddings here.")];

/// Errors of `POST /admin/cache` only.
pub(super) const CACHE_ERRORS: &[(u16, &str)] =
    &[(409, "The file is damaged, or was saved for another model or cache type, or memory is too short.")];
