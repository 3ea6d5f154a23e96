//! Which saved prompts were restored, and which of them the current worker does not have. Pure.
//!
//! A worker loses its restored prompts when it ends, and those of a model when that is unloaded. The supervisor therefore
//! remembers them, and has the next worker restore them again when it is idle.

use crate::job::{ModelId, PromptToRestore};

/// All restored prompts in the order of their commands, each with whether the current worker has it.
#[derive(Debug, Default)]
pub(super) struct RestoredPrompts(Vec<(PromptToRestore, bool)>);

impl RestoredPrompts {
    /// Notes that the worker has `prompt`.
    pub(super) fn add(&mut self, prompt: PromptToRestore) {
        match self.0.iter_mut().find(|(known, _)| is_same(known, &prompt)) {
            Some((known, is_present)) => (*known, *is_present) = (prompt, true),
            None => self.0.push((prompt, true)),
        }
    }

    /// Removes one prompt.
    pub(super) fn remove(&mut self, prompt: &PromptToRestore) {
        self.0.retain(|(known, _)| !is_same(known, prompt));
    }

    /// Removes the prompts with this name, of all models; every prompt if there is no name.
    pub(super) fn forget(&mut self, name: Option<&str>) {
        self.0.retain(|(known, _)| name.is_some_and(|name| known.name != name));
    }

    /// Notes that the worker has lost the prompts of `model`, or all prompts.
    pub(super) fn mark_lost(&mut self, model: Option<&ModelId>) {
        for (known, is_present) in &mut self.0 {
            *is_present &= model.is_some_and(|model| known.model != *model);
        }
    }

    /// The first prompt that the worker does not have and whose model is loaded.
    pub(super) fn next_lost(&self, is_loaded: impl Fn(&ModelId) -> bool) -> Option<PromptToRestore> {
        let lost = self.0.iter().find(|(known, is_present)| !is_present && is_loaded(&known.model));
        lost.map(|(known, _)| known.clone())
    }
}

fn is_same(one: &PromptToRestore, other: &PromptToRestore) -> bool {
    (&one.model, &one.name) == (&other.model, &other.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(model: &str, name: &str) -> PromptToRestore {
        PromptToRestore {
            model: model.into(),
            name: name.into(),
            file: name.into(),
            salt: None,
            adapters: Vec::new(),
        }
    }

    fn restored() -> RestoredPrompts {
        let mut restored = RestoredPrompts::default();
        for (model, name) in [("a", "x"), ("b", "y"), ("a", "z")] {
            restored.add(prompt(model, name));
        }
        restored
    }

    /// Names of the lost prompts of these models, each of which is then marked as restored.
    fn restore_all(restored: &mut RestoredPrompts, loaded: &[&str]) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(prompt) = restored.next_lost(|model| loaded.contains(&model.0.as_str())) {
            names.push(prompt.name.clone());
            restored.add(prompt);
        }
        names
    }

    #[test]
    fn a_lost_prompt_is_restored_once_when_its_model_is_loaded() {
        let mut restored = restored();
        assert_eq!(restore_all(&mut restored, &["a", "b"]), [""; 0]);
        restored.mark_lost(None);
        assert_eq!(restore_all(&mut restored, &["a"]), ["x", "z"]);
        assert_eq!(restore_all(&mut restored, &["a", "b"]), ["y"]);
        restored.mark_lost(Some(&"b".into()));
        assert_eq!(restore_all(&mut restored, &["a"]), [""; 0]);
        assert_eq!(restore_all(&mut restored, &["a", "b"]), ["y"]);
    }

    #[test]
    fn a_prompt_that_was_removed_or_forgotten_is_not_restored_again() {
        let mut restored = restored();
        restored.add(prompt("b", "x"));
        restored.mark_lost(None);
        restored.remove(&prompt("a", "x"));
        restored.forget(Some("y"));
        assert_eq!(restore_all(&mut restored, &["a", "b"]), ["z", "x"]);
        restored.forget(None);
        restored.mark_lost(None);
        assert_eq!(restore_all(&mut restored, &["a", "b"]), [""; 0]);
    }
}
