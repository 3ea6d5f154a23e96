//! Device memory that remains after requests, and the cost of trimming it.

use std::{ops::ControlFlow, time::Instant};

use eka::{
    device::Pool,
    engine::{self, Speculation, Timeline},
    export::Options,
    job::{Job, JobId},
    units::Bytes,
};

use crate::{
    Setup,
    soak::{self, BenchResult, SoakOptions},
    speed::Shape,
    table::Table,
};

/// Maximum change of the driver's figure.
const STILL: u64 = 2 << 20;

/// Cache bytes kept in the soak: one page on the CPU; none on a GPU, whose driver counts in larger units.
const KEPT: Bytes = Bytes::mib(1);

pub(crate) fn soak(setup: &Setup, table: &mut Table) -> BenchResult<()> {
    let pool = pool(setup)?;
    // A GPU allocates in units of tens of megabytes; a request must need more than one unit.
    let dir = if setup.is_gpu() && !setup.is_quick {
        Shape::all()[0].export(setup, "int4")?
    } else {
        let dir = setup.path("soak");
        soak::model(&dir, |options| Options { dtype: setup.dtype(), ..options })?;
        dir
    };
    let requests = if setup.is_quick { 10 } else { 500 };
    let kv_keep = if setup.is_gpu() { Bytes(0) } else { KEPT };
    let report = soak::run(pool, &dir, SoakOptions { requests, seed: 1, kv_keep, captures: true })?;
    let name = format!("{requests} requests of 1 to {} prompt tokens", soak::MAX_PROMPT);
    let wrong = report.wrong();
    let found = if wrong.is_empty() { "nothing wrong".into() } else { wrong.join("; ") };
    table.check(&name, "nothing stays, spilled or written late", &found, wrong.is_empty());
    let bar = Bytes(report.weights) + kv_keep;
    let max = Bytes(report.max_after_trim);
    table.check(
        "reserved after a trim, at most",
        &format!("{bar}: weights and keep"),
        &max.to_string(),
        max <= bar,
    );
    table.info("reserved in a request, at most", &Bytes(report.peak).to_string());
    if let (Some(min), Some(free)) = (report.min_free, report.max_free) {
        let found = format!("{} to {}", Bytes(min), Bytes(free));
        table.check("driver's free memory after a trim", "within 2 MiB", &found, free - min <= STILL);
    }
    let median = report.trim_median_us;
    let found =
        format!("{median} µs, {} at the 99th percentile, {} at most", report.trim_p99_us, report.trim_max_us);
    // In the tests' profile, on the host, every free block is read to check that it was not written to.
    if setup.is_gpu() {
        table.check("a trim, at the median", "2 ms", &found, median <= 2000);
    } else {
        table.info("a trim, at the median", &found);
    }
    Ok(())
}

/// Cost of a trim for the first token of the next request, for several shapes and prompt lengths.
pub(crate) fn trim(setup: &Setup, table: &mut Table) -> BenchResult<()> {
    let pool = pool(setup)?;
    let [small, middle, _] = Shape::all();
    let cases = if setup.is_quick {
        vec![(Shape::small(), 64)]
    } else {
        vec![(small, 256), (small, 1024), (middle, 512)]
    };
    for (shape, prompt) in cases {
        cost(setup, table, shape, prompt)?;
    }
    if let Some(other) = pool.stats().device_other() {
        table.info("memory beside the pool: context, modules, workspaces", &other.to_string());
    }
    Ok(())
}

/// Turns of requests, each with its memory trimmed before or not.
fn cost(setup: &Setup, table: &mut Table, shape: Shape, prompt: usize) -> BenchResult<()> {
    let dir = shape.export(setup, "int4")?;
    let mut timeline = setup.open(&dir, Bytes(0))?;
    let rounds = if setup.is_quick { 3 } else { 100 };
    let (mut trimmed, mut kept, mut trims) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        // Each has its turn first.
        for is_trimmed in if round % 2 == 0 { [true, false] } else { [false, true] } {
            request(&mut timeline, shape.vocabulary(), prompt)?;
            timeline.clear();
            if is_trimmed {
                let began = Instant::now();
                timeline.trim(Bytes(0));
                trims.push(began.elapsed().as_secs_f64());
            }
            let ttft = request(&mut timeline, shape.vocabulary(), prompt)?;
            if is_trimmed { trimmed.push(ttft) } else { kept.push(ttft) }
        }
    }
    let (with, without) = (median(&mut trimmed), median(&mut kept));
    let ratio = with / without;
    let found = format!("{ratio:.3} ({:.2} ms with, {:.2} without)", with * 1e3, without * 1e3);
    let name = format!("first token of {prompt} after a trim, {}, over one without", shape.name());
    if setup.is_gpu() {
        table.check(&name, "1.03 at most", &found, ratio <= 1.03);
    } else {
        table.info(&name, &found);
    }
    table.info(
        &format!("a trim of {}", shape.name()),
        &format!("{:.2} ms at the median", median(&mut trims) * 1e3),
    );
    Ok(())
}

fn pool(setup: &Setup) -> BenchResult<&Pool> {
    Ok(setup.device.pool().ok_or("the device has no pool")?)
}

/// Runs a prompt of this many tokens and 8 more; returns the time to the first token.
fn request(timeline: &mut Timeline, vocabulary: usize, prompt: usize) -> BenchResult<f64> {
    let id = |i: usize| u32::try_from((i * 7919 + 13) % vocabulary).unwrap_or(0);
    let job = Job::new(JobId(0), (0..prompt).map(id).collect(), 8);
    let done =
        engine::generate(timeline, &job, None, &mut Speculation::new(), |_| ControlFlow::Continue(()))?;
    Ok(done.timings.prefill.as_secs_f64())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
