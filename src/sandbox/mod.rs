//! A child process for programs that clients and model folders bring: JSON schemas, grammars, regular expressions, and chat
//! templates.
//!
//! ```text
//! http ─► Sandbox ─► Pool ─── Task ──► eka sandbox (child::run) ─► constraint::check, text::Renderer
//!                         ◄── Reply ──
//! ```
//!
//! The libraries that compile and run these bound their steps, and neither their memory, their stack nor all of their time. A
//! thread that has gone astray cannot be ended; a process can. So the server hands each `Task` to a child that
//! limits its own memory and processor time, and kills it at a deadline. A child is started ahead of need and serves one
//! task after another, so that a task costs a message each way and no process start. It never loads ONNX Runtime.
//!
//! Constraints and templates have a `Pool` each: schemas that take long must not delay conversations. What the child says
//! about a constraint is kept by its content, as clients send the same schema with every request.
//!
//! Limits of a child, by system: on Linux its address space, processor time and lifetime (it dies with its parent); on other
//! Unix systems its processor time, and its address space where the system enforces that; elsewhere the deadline alone.

mod child;
mod limits;
mod pool;
mod process;
mod task;
mod verdicts;

use std::{ffi::OsString, path::PathBuf, sync::Arc};

pub use self::child::run;
use self::{
    pool::{Limit, Pool, TaskFailure, TaskKind},
    task::{Answer, Task},
    verdicts::Verdicts,
};
use crate::{
    constraint::{self, ConstraintError},
    job::Constraint,
    metrics::Metrics,
    text::{RenderRequest, TemplateFault, Text, TextError},
};

/// At a quantum each, the last that waits does so for some seconds at worst.
const CONSTRAINTS: TaskKind = TaskKind { name: "constraint", most_waiting: 64 };

/// A conversation on each connection that a server has by default, and each is rendered in less than a millisecond.
const TEMPLATES: TaskKind = TaskKind { name: "template", most_waiting: 512 };

/// How a child is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildProgram {
    /// This program's own file.
    pub program: PathBuf,
    /// What makes it call [`run`].
    pub arguments: Vec<OsString>,
}

/// Why a task could not be given to a child. Never the fault of the request's content, so a retry may succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// Too many tasks wait, or too many slow ones run.
    #[error("too many schemas or conversations are being prepared; retry later, or simplify this one")]
    Busy,
    /// No child can be started, or it does not speak the protocol.
    #[error("the process that prepares schemas and conversations cannot be used: {reason}")]
    Unavailable {
        /// What failed.
        reason: String,
    },
}

/// Compiles constraints and renders templates in child processes. Clones share the processes.
#[derive(Clone, Debug)]
pub struct Sandbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    constraints: Pool,
    templates: Pool,
    verdicts: Verdicts,
}

impl Sandbox {
    /// Children started by `command`. None is started yet.
    #[must_use]
    pub fn new(command: ChildProgram, metrics: Arc<Metrics>) -> Self {
        let pool = |kind| Pool::new(kind, command.clone(), Arc::clone(&metrics));
        let (constraints, templates) = (pool(CONSTRAINTS), pool(TEMPLATES));
        Self(Arc::new(Inner { constraints, templates, verdicts: Verdicts::default() }))
    }

    /// Starts children ahead of the first task, for this thread alone. Needs a tokio runtime; the children end with the thread.
    pub fn warm_up(&self) {
        self.0.constraints.warm_up();
        self.0.templates.warm_up();
    }

    /// Checks that a worker can keep `constraint`; the inner result is the verdict.
    ///
    /// # Errors
    /// [`SandboxError`] when no verdict could be had.
    pub async fn check(&self, constraint: &Constraint) -> Result<Result<(), ConstraintError>, SandboxError> {
        if let Err(refused) = constraint::check_size(constraint) {
            return Ok(Err(refused));
        }
        let key = verdicts::ConstraintKey::of(constraint);
        if let Some(known) = self.0.verdicts.get(&key) {
            return Ok(known);
        }
        let verdict = match self.0.constraints.run(Task::Check(constraint.clone())).await {
            Ok(Answer::Checked(verdict)) => verdict,
            Ok(other) => return Err(unexpected(&other)),
            Err(TaskFailure::Limit(Limit::Time(limit))) => Err(ConstraintError::TooSlow { limit }),
            Err(TaskFailure::Limit(Limit::Memory(limit))) => Err(ConstraintError::TooLarge { limit }),
            Err(TaskFailure::Sandbox(error)) => return Err(error),
        };
        self.0.verdicts.keep(key, verdict.clone());
        Ok(verdict)
    }

    /// Renders a conversation of `text`, whose [`Text::render_request`] made `request`; the inner result is the template's.
    ///
    /// # Errors
    /// [`SandboxError`] when it could not be rendered for reasons of neither template nor conversation.
    pub async fn render(
        &self,
        text: &Text,
        request: RenderRequest,
    ) -> Result<Result<String, TextError>, SandboxError> {
        match self.0.templates.run(Task::Render(request)).await {
            Ok(Answer::Rendered(rendered)) => Ok(rendered.map_err(|fault| text.fault(fault))),
            Ok(other) => Err(unexpected(&other)),
            Err(TaskFailure::Limit(limit)) => Ok(Err(template_limit(limit))),
            Err(TaskFailure::Sandbox(error)) => Err(error),
        }
    }

    /// Checks that the chat templates of `text` compile, for a server that starts; a model without one has nothing to check.
    /// The inner result is the verdict: a model whose template is at fault is left out by itself.
    ///
    /// # Errors
    /// [`SandboxError`] when no verdict could be had.
    pub async fn check_templates(&self, text: &Text) -> Result<Result<(), TextError>, SandboxError> {
        for template in text.templates() {
            let compiled = match self.0.templates.run(Task::Compile(template.source().clone())).await {
                Ok(Answer::Compiled(compiled)) => compiled.map_err(|fault| template.fault(fault)),
                Ok(other) => return Err(unexpected(&other)),
                Err(TaskFailure::Limit(limit)) => Err(template.fault(compile_limit(limit))),
                Err(TaskFailure::Sandbox(error)) => return Err(error),
            };
            if compiled.is_err() {
                return Ok(compiled);
            }
        }
        Ok(Ok(()))
    }
}

fn compile_limit(limit: Limit) -> TemplateFault {
    let message = match limit {
        Limit::Time(limit) => format!("it takes more than {} s to compile", limit.as_secs()),
        Limit::Memory(limit) => {
            format!("it needs more than {limit} of memory to compile, or nests too deeply")
        }
    };
    TemplateFault::Compile { message }
}

fn template_limit(limit: Limit) -> TextError {
    let what = match limit {
        Limit::Time(limit) => format!("took more than {} s", limit.as_secs()),
        Limit::Memory(limit) => format!("needed more than {limit} of memory, or nested too deeply,"),
    };
    TextError::TemplateLimit { what }
}

fn unexpected(answer: &Answer) -> SandboxError {
    SandboxError::Unavailable { reason: format!("it answered another task: {}", answer.kind()) }
}
