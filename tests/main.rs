//! Everything that is tested from outside, in one binary.

mod http_api;
mod http_errors;
mod overload;
mod serving;
