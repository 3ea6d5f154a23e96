//! What every request passes before its handler, and every answer after it.

pub(super) mod access_log;
pub(super) mod auth;
mod cors;
mod headers;
mod host;
pub(super) mod pipeline;
mod request_id;

pub(super) use self::{
    access_log::RequestRecord,
    request_id::{REQUEST_ID, RequestId},
};
