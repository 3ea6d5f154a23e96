//! Messages between the server and a sandbox process.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    constraint::ConstraintError,
    job::Constraint,
    text::{RenderRequest, TemplateFault, TemplateSource},
};

/// To the child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Task {
    /// Check whether a constraint can be enforced.
    Check(Constraint),
    /// Check whether a chat template compiles.
    Compile(TemplateSource),
    /// Render a conversation.
    Render(RenderRequest),
}

impl Task {
    /// Length of its text in bytes.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Check(Constraint::Schema(text) | Constraint::Lark(text) | Constraint::Regex(text)) => {
                text.len()
            }
            Self::Compile(template) => template.length(),
            Self::Render(request) => request.length(),
        }
    }
}

/// From the child, one per task.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) answer: Answer,
    /// CPU time of the child since its start; zero if unknown.
    pub(super) cpu_time: Duration,
}

/// The outcome of a task.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Checked(Result<(), ConstraintError>),
    Compiled(Result<(), TemplateFault>),
    Rendered(Result<String, TemplateFault>),
}

impl Answer {
    /// Its name in error messages.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Checked(_) => "checked",
            Self::Compiled(_) => "compiled",
            Self::Rendered(_) => "rendered",
        }
    }

    /// Whether the task's content is valid.
    pub(super) const fn is_ok(&self) -> bool {
        matches!(self, Self::Checked(Ok(())) | Self::Compiled(Ok(())) | Self::Rendered(Ok(_)))
    }
}
