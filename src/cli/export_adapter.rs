//! `eka export-adapter`: converts a LoRA adapter to one that is served beside its base.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    output::{self, OutputFlags},
    progress::Bars,
};
use crate::{
    export::{self, AdapterOptions, AdapterReport, Existing},
    units::Bytes,
};

/// Convert a LoRA adapter to one that is served beside its base, as MODEL:NAME
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model directory of the base, written by `eka export`
    #[arg(long, value_name = "MODEL_DIR")]
    base: PathBuf,

    /// PEFT adapter directory, or a GGUF file with a LoRA adapter
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,

    /// Name of the adapter in requests; by default the name of its directory or GGUF file
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Replace an adapter of this name
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    pub(super) output: OutputFlags,
}

/// Exports and prints a summary.
///
/// # Errors
/// When the export fails.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let options = AdapterOptions {
        base: args.base.clone(),
        adapter: args.adapter.clone(),
        name: args.name.clone(),
        output: None,
        existing: if args.force { Existing::Replace } else { Existing::Keep },
    };
    let started = Instant::now();
    let report = export::export_adapter(&options, &Bars::new())?;
    let summary = Summary::new(&report, started.elapsed());
    if args.output.json {
        return output::document(&summary);
    }
    output::result(|out| summary.print(out))
}

/// Summary of an export.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    output: &'a Path,
    name: &'a str,
    rank: usize,
    bytes: u64,
    /// Nodes of the graph that the adapter changes.
    nodes: usize,
    seconds: f64,
    /// Tensors of the adapter that are not used.
    skipped: &'a [String],
}

impl<'a> Summary<'a> {
    fn new(report: &'a AdapterReport, time: Duration) -> Self {
        Self {
            output: &report.output,
            name: &report.name,
            rank: report.rank,
            bytes: report.bytes.0,
            nodes: report.products,
            seconds: time.as_secs_f64(),
            skipped: &report.skipped,
        }
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.output.display())?;
        let (rank, bytes) = (self.rank, Bytes(self.bytes));
        writeln!(out, "  rank {rank}, {bytes}, {} nodes, in {:.1} s", self.nodes, self.seconds)?;
        if !self.skipped.is_empty() {
            writeln!(out, "  not used: {}", self.skipped.join(", "))?;
        }
        Ok(())
    }
}
