//! Which saved prompts were restored, and which of them a worker still has to be told of. Pure.
//!
//! What a worker has of them is lost with it, and with its model when that leaves. Whoever restored a prompt counts on it, so
//! the parent remembers which they were, and the next worker reads their files again when it has nothing more urgent to do.

use std::path::PathBuf;

use crate::job::{CacheSalt, ModelId};

/// A saved prompt that was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prompt {
    pub(super) model: ModelId,
    pub(super) name: String,
    pub(super) file: PathBuf,
    /// Which jobs may begin with it; `None` is all of them.
    pub(super) salt: Option<CacheSalt>,
}

/// All of them, in the order in which they were restored.
#[derive(Debug, Default)]
pub(super) struct Restored(Vec<(Prompt, bool)>);

impl Restored {
    /// The worker has it now.
    pub(super) fn note(&mut self, prompt: Prompt) {
        match self.0.iter_mut().find(|(known, _)| known.is_same(&prompt)) {
            Some((known, is_there)) => (*known, *is_there) = (prompt, true),
            None => self.0.push((prompt, true)),
        }
    }

    /// It cannot be had any more.
    pub(super) fn give_up(&mut self, prompt: &Prompt) {
        self.0.retain(|(known, _)| !known.is_same(prompt));
    }

    /// Nobody wants it any more, whichever model it is of; without a name, none of them.
    pub(super) fn forget(&mut self, name: Option<&str>) {
        self.0.retain(|(known, _)| name.is_some_and(|name| known.name != name));
    }

    /// The worker is gone, or the model has left it: what it had has to be read again.
    pub(super) fn lost(&mut self, model: Option<&ModelId>) {
        for (known, is_there) in &mut self.0 {
            *is_there &= model.is_some_and(|model| known.model != *model);
        }
    }

    /// The next one that the worker does not have, of a model that it has.
    pub(super) fn due(&self, is_loaded: impl Fn(&ModelId) -> bool) -> Option<Prompt> {
        let due = self.0.iter().find(|(known, is_there)| !is_there && is_loaded(&known.model));
        due.map(|(known, _)| known.clone())
    }
}

impl Prompt {
    fn is_same(&self, other: &Self) -> bool {
        (&self.model, &self.name) == (&other.model, &other.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(model: &str, name: &str) -> Prompt {
        Prompt { model: model.into(), name: name.into(), file: name.into(), salt: None }
    }

    fn restored() -> Restored {
        let mut restored = Restored::default();
        for (model, name) in [("a", "x"), ("b", "y"), ("a", "z")] {
            restored.note(prompt(model, name));
        }
        restored
    }

    /// Names of what is due for these models, each of which is then there.
    fn due(restored: &mut Restored, loaded: &[&str]) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(prompt) = restored.due(|model| loaded.contains(&model.0.as_str())) {
            names.push(prompt.name.clone());
            restored.note(prompt);
        }
        names
    }

    #[test]
    fn what_is_lost_is_due_once_when_its_model_is_there() {
        let mut restored = restored();
        assert_eq!(due(&mut restored, &["a", "b"]), [""; 0]);
        restored.lost(None);
        assert_eq!(due(&mut restored, &["a"]), ["x", "z"]);
        assert_eq!(due(&mut restored, &["a", "b"]), ["y"]);
        restored.lost(Some(&"b".into()));
        assert_eq!(due(&mut restored, &["a"]), [""; 0]);
        assert_eq!(due(&mut restored, &["a", "b"]), ["y"]);
    }

    #[test]
    fn what_nobody_wants_or_nobody_can_read_is_never_due_again() {
        let mut restored = restored();
        restored.note(prompt("b", "x"));
        restored.lost(None);
        restored.give_up(&prompt("a", "x"));
        restored.forget(Some("y"));
        assert_eq!(due(&mut restored, &["a", "b"]), ["z", "x"]);
        restored.forget(None);
        restored.lost(None);
        assert_eq!(due(&mut restored, &["a", "b"]), [""; 0]);
    }
}
