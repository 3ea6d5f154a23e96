//! What crosses the pipe between a server and a child of its sandbox.

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
    /// See whether a constraint can be kept.
    Check(Constraint),
    /// See whether a chat template compiles.
    Compile(TemplateSource),
    /// Render a conversation.
    Render(RenderRequest),
}

impl Task {
    /// Bytes of its text.
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

/// From the child, one for each task.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) answer: Answer,
    /// Processor time of the child since it was started; zero where that is not known.
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
    /// For messages.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Checked(_) => "checked",
            Self::Compiled(_) => "compiled",
            Self::Rendered(_) => "rendered",
        }
    }

    /// Whether the task's content was found to be in order.
    pub(super) const fn is_ok(&self) -> bool {
        matches!(self, Self::Checked(Ok(())) | Self::Compiled(Ok(())) | Self::Rendered(Ok(_)))
    }
}
