//! Access control: API keys, rate limits, and allowed origins and hosts. Independent of HTTP.

mod access_control;
mod api_keys;
mod per_ip_limiter;
mod rules;
mod token_bucket;

pub use self::{
    access_control::AccessControl,
    api_keys::{ExhaustedLimit, Key, Keys, KeysError},
    rules::Rules,
    token_bucket::{RateLimitStatus, TokenBucket},
};
