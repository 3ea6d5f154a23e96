//! What is kept from job to job: hit rates, pass times, and the draft model.

use std::fmt;

use super::{cost_model::CostModel, draft_model::DraftModel};
use crate::{
    engine::{error::EngineError, forward::Forward, timeline::Timeline},
    units::Bytes,
};

/// What earlier jobs of a model taught about drafting, and its draft model; kept from job to job.
pub struct Speculation<D = Timeline> {
    pub(super) cost_model: CostModel,
    pub(super) draft: Option<DraftModel<D>>,
}

impl<D> fmt::Debug for Speculation<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_draft = self.draft.is_some();
        f.debug_struct("Speculation")
            .field("cost_model", &self.cost_model)
            .field("has_draft", &has_draft)
            .finish()
    }
}

impl Default for Speculation {
    fn default() -> Self {
        Self { cost_model: CostModel::default(), draft: None }
    }
}

impl Speculation {
    /// Without any measurement.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Drafts as much as possible whether that pays or not, prompt lookup first. For tests that answers do not change; release
    /// builds lack it.
    #[cfg(any(debug_assertions, feature = "fault-injection"))]
    #[must_use]
    pub fn eager() -> Self {
        Self { cost_model: CostModel::eager(), draft: None }
    }

    /// Size of the draft model's prefix cache.
    #[must_use]
    pub fn kept(&self) -> Bytes {
        self.draft.as_ref().map_or(Bytes(0), |draft| draft.model().kept())
    }

    /// Ends a job; see [`Timeline::settle`].
    pub fn settle(&mut self, may_be_kept: bool) {
        match &mut self.draft {
            Some(draft) if draft.is_broken() => draft.model_mut().clear_to(Bytes(0)),
            Some(draft) if draft.has_begun() => draft.model_mut().settle(may_be_kept),
            _ => {}
        }
    }

    /// Frees the draft model's caches; see [`Timeline::clear_to`].
    pub fn clear_to(&mut self, keep: Bytes) {
        if let Some(draft) = &mut self.draft {
            draft.model_mut().clear_to(keep);
        }
    }

    /// See [`Timeline::release_captured`].
    pub fn release_captured(&mut self) {
        if let Some(draft) = &mut self.draft {
            draft.model_mut().release_captured();
        }
    }
}

impl<D> Speculation<D> {
    /// Adds a draft model, which must have the same tokens. Runs a few passes to measure it.
    ///
    /// # Errors
    /// As [`Forward::forward`].
    pub fn with_draft<M: Forward>(self, draft: M) -> Result<Speculation<M>, EngineError> {
        Ok(Speculation { cost_model: self.cost_model, draft: Some(DraftModel::new(draft)?) })
    }
}
