//! Gateways and nodes with a real NATS server between them.

mod answers;
mod credentials;
mod losses;
mod queue;
