//! The tickets of a gateway that are in the stream.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Tickets in the stream: groups and the tickets' numbers.
#[derive(Debug, Default)]
pub(super) struct Tickets(Mutex<BTreeMap<u64, u64>>);

impl Tickets {
    pub(super) fn add(&self, group: u64, ticket: u64) {
        self.lock().insert(group, ticket);
    }

    pub(super) fn remove(&self, group: u64) -> Option<u64> {
        self.lock().remove(&group)
    }

    pub(super) fn all(&self) -> Vec<(u64, u64)> {
        self.lock().iter().map(|(group, ticket)| (*group, *ticket)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// The number of a group's ticket.
    pub(super) fn of(&self, group: u64) -> Option<u64> {
        self.lock().get(&group).copied()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
