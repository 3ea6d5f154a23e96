//! Accepts connections and runs the server.

pub(super) mod connection;
pub(super) mod listener;
pub(super) mod malformed;
pub(super) mod serve;
