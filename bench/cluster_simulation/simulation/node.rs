//! A node: one slot, its own queue, and the prefixes that it keeps.

use std::collections::VecDeque;

/// A node that computes one request at a time.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// The request in the slot.
    pub(super) running: Option<usize>,
    /// Requests that wait for this node and no other.
    pub(super) queue: VecDeque<usize>,
    /// Conversations whose prefix is kept, the most recent one last.
    kept: VecDeque<usize>,
}

impl Node {
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// Requests that run or wait here.
    pub(super) fn requests(&self) -> usize {
        usize::from(self.running.is_some()) + self.queue.len()
    }

    pub(super) fn keeps(&self, conversation: usize) -> bool {
        self.kept.contains(&conversation)
    }

    /// Keeps a conversation as the most recent one of at most `limit`.
    pub(super) fn keep(&mut self, conversation: usize, limit: usize) {
        self.kept.retain(|kept| *kept != conversation);
        self.kept.push_back(conversation);
        while self.kept.len() > limit {
            self.kept.pop_front();
        }
    }
}
