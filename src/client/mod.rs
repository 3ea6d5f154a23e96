//! A minimal HTTP client for servers with OpenAI's API: requests, and answers as server-sent events.
//!
//! `eka smoke` and `eka bench --url` use only this client and no part of the server, so they measure what any client sees.
//! TLS is not supported.

mod connection;
mod error;
mod events;

pub use self::{
    connection::{Client, PATIENCE},
    error::ClientError,
    events::Events,
};
