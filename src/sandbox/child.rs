//! The child process: reads tasks, runs them under limits, writes replies.

use std::{
    any::Any,
    io::{Read, Write},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
};

use super::{
    limits,
    task::{Answer, Reply, Task},
};
use crate::{
    constraint::{self, ConstraintError},
    text::{Renderer, TemplateFault},
    wire::{self, WireError},
};

/// Limits this process, then runs tasks from `input` and writes replies to `output` until `input` ends.
///
/// # Errors
/// [`WireError`] when the pipe fails, or when the thread for tasks cannot be started.
pub fn run(input: impl Read + Send, output: impl Write + Send) -> Result<(), WireError> {
    limits::apply();
    thread::scope(|scope| {
        let stack = usize::try_from(limits::STACK.0).unwrap_or(usize::MAX);
        let builder = thread::Builder::new().name("tasks".into()).stack_size(stack);
        let tasks = builder.spawn_scoped(scope, || serve(input, output))?;
        tasks.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn serve(mut input: impl Read, mut output: impl Write) -> Result<(), WireError> {
    let mut renderer = Renderer::default();
    while let Some(task) = wire::read(&mut input)? {
        limits::allow_cpu_time();
        let answer = answer(&mut renderer, &task);
        wire::write(&Reply { answer, cpu_time: limits::cpu_time() }, &mut output)?;
    }
    Ok(())
}

/// Runs a task. A panic in a library becomes an answer too.
fn answer(renderer: &mut Renderer, task: &Task) -> Answer {
    match task {
        Task::Check(constraint) => Answer::Checked(
            catch(|| constraint::check(constraint))
                .unwrap_or_else(|message| Err(ConstraintError::Invalid { message })),
        ),
        Task::Compile(template) => Answer::Compiled(
            catch(|| renderer.check(template))
                .unwrap_or_else(|message| Err(TemplateFault::Compile { message })),
        ),
        Task::Render(request) => Answer::Rendered(
            catch(|| renderer.render(request))
                .unwrap_or_else(|message| Err(TemplateFault::Failed { message })),
        ),
    }
}

/// The result of `work`, or its panic message.
fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_message(&*panic))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("the library panicked").to_owned()
}
