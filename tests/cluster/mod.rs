//! Gateways and nodes with a real NATS server between them.

mod affinity;
mod answers;
mod credentials;
mod losses;
mod models;
mod operators;
mod queue;
mod rolling_restart;
