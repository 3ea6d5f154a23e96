//! A JSON schema: prepared here, and compiled as a server does, in a child process that is killed at its limits.
//!
//! `EKA_PROGRAM` names the program whose child compiles; without it, schemas are prepared alone.

#![no_main]

use std::{env, sync::Arc, sync::LazyLock};

use eka::{
    metrics::Metrics,
    sandbox::{ChildProgram, Sandbox},
};

/// The children, and the runtime that they live on.
static COMPILER: LazyLock<Option<(Sandbox, tokio::runtime::Runtime)>> = LazyLock::new(|| {
    let program = env::var_os("EKA_PROGRAM")?;
    let command = ChildProgram { program: program.into(), arguments: vec!["sandbox".into()] };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    Some((Sandbox::new(command, Arc::new(Metrics::new())), runtime))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(constraint) = eka::constraint::fuzzing::schema(bytes) else { return };
    let Some((sandbox, runtime)) = &*COMPILER else { return };
    runtime.block_on(sandbox.check(&constraint)).expect("a verdict").ok();
});
