//! Accepts connections and runs the server.

pub(super) mod connection;
mod http2;
pub(super) mod listener;
pub(super) mod malformed;
mod plain_http;
mod read_turns;
pub(super) mod serve;
