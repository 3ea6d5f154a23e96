//! Untrusted clients and machines: access, TLS, browsers, hostile input, isolation, the sandbox.

mod access_control;
mod client_isolation;
mod dns_rebinding;
mod hostile_clients;
mod sandbox;
mod tls;
#[cfg(unix)]
mod untrusted_directories;
