//! Child processes that handle untrusted input from clients and model folders: JSON schemas, grammars, regular expressions and
//! chat templates.
//!
//! ```text
//! http ─► Sandbox ─► Pool ─── Task ──► eka sandbox (child::run) ─► constraint::check, text::Renderer
//!                         ◄── Reply ──
//! ```
//!
//! The libraries that compile and run these limit their steps, but neither their memory, nor their stack, nor all of their time. A
//! runaway thread cannot be stopped, a process can. So the server sends each `Task` to a child that limits its own memory and CPU
//! time, and kills it at a deadline. Children are started in advance and reused, so a task costs a message each way and no process
//! start. A child never loads ONNX Runtime.
//!
//! Constraints and templates each have a `Pool`, so that slow schemas do not delay chats. Verdicts on constraints are cached by
//! content, because clients send the same schema with every request.
//!
//! Limits of a child: on Linux its address space, its CPU time and its lifetime (it ends with its parent); on other Unix systems
//! its CPU time, and its address space if the system enforces that; elsewhere only the deadline.

mod child;
mod error;
mod limits;
mod pool;
mod process;
mod task;
mod verdicts;

use std::sync::Arc;

pub use self::{child::run, error::SandboxError, process::ChildProgram};
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

/// The queue is short: each task may run for one quantum (see `pool`) before the next, so the last one waits a few seconds.
const CONSTRAINTS: TaskKind = TaskKind { name: "constraint", max_waiting: 64 };

/// One per connection of a default server. Each is rendered in less than a millisecond.
const TEMPLATES: TaskKind = TaskKind { name: "template", max_waiting: 512 };

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
    /// Makes the pools of child processes, which `command` starts. The first child starts with the first task.
    #[must_use]
    pub fn new(command: ChildProgram, metrics: Arc<Metrics>) -> Self {
        let pool = |kind| Pool::new(kind, command.clone(), Arc::clone(&metrics));
        let (constraints, templates) = (pool(CONSTRAINTS), pool(TEMPLATES));
        Self(Arc::new(Inner { constraints, templates, verdicts: Verdicts::default() }))
    }

    /// Starts children for this thread before the first task. Needs a tokio runtime. The children end with the thread.
    pub fn warm_up(&self) {
        self.0.constraints.warm_up();
        self.0.templates.warm_up();
    }

    /// Checks that a worker can enforce `constraint`. The inner result is the verdict.
    ///
    /// # Errors
    /// [`SandboxError`] when the check could not be run.
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

    /// Renders a conversation with the chat template of `text`. `request` comes from [`Text::render_request`]. The inner result is the
    /// template's.
    ///
    /// # Errors
    /// [`SandboxError`] when rendering could not be run.
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

    /// Checks at startup that the chat templates of `text` compile, if it has any. The inner result is the verdict. A model with an
    /// invalid template is not served, but the others are.
    ///
    /// # Errors
    /// [`SandboxError`] when the check could not be run.
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
    SandboxError::Unavailable {
        reason: format!(
            "unexpected answer from the sandbox process: {}; restart the server, and report this if it happens again",
            answer.kind()
        ),
    }
}
