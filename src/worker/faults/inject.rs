//! Injects the faults of a plan into this worker.

use std::{
    cell::RefCell,
    fmt,
    fs::File,
    io::{self, Write},
    num::NonZeroU32,
    process,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use super::{
    kind::{FaultKind, FaultPoint},
    plan::{Fault, FaultPlan},
};
use crate::{
    device::DeviceError,
    engine::{EngineError, Forward, ForwardBranches},
    job::{CacheScope, Job},
    units::Bytes,
};

/// The pipe for frames. Shared, because a fault can write to it and close it.
#[derive(Clone)]
pub(in crate::worker) struct FrameWriter(Rc<RefCell<Option<Box<dyn Write>>>>);

impl FrameWriter {
    fn new(pipe: impl Write + 'static) -> Self {
        Self(Rc::new(RefCell::new(Some(Box::new(pipe)))))
    }

    fn close(&self) {
        drop(self.0.borrow_mut().take());
    }

    fn write_raw(&mut self, bytes: &[u8]) {
        if let Err(e) = self.write_all(bytes) {
            eprintln!("cannot write the bytes of the injected fault: {e}");
        }
    }
}

impl Write for FrameWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().as_mut().ok_or(io::ErrorKind::BrokenPipe)?.flush()
    }
}

/// Injects the faults of a plan.
pub(in crate::worker) struct FaultInjector {
    plan: FaultPlan,
    output: FrameWriter,
    leaked: Vec<Vec<u8>>,
}

impl fmt::Debug for FaultInjector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultInjector").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl FaultInjector {
    /// An injector, and the writer to use for all frames to `pipe`.
    pub(in crate::worker) fn new(plan: FaultPlan, pipe: impl Write + 'static) -> (Self, FrameWriter) {
        let output = FrameWriter::new(pipe);
        (Self { plan, output: output.clone(), leaked: Vec::new() }, output)
    }

    /// Injects the faults at a point that belongs to no job.
    ///
    /// # Errors
    /// [`EngineError::Device`] when the plan says so.
    pub(in crate::worker) fn at(&mut self, point: FaultPoint) -> Result<(), EngineError> {
        let planned: Vec<_> = self.plan.at(point).collect();
        planned.iter().try_for_each(|fault| self.strike(fault, "no job"))
    }

    /// Calls `run` with a model that has the faults of these jobs, which run together.
    pub(in crate::worker) fn run<M, T>(
        &mut self,
        model: &mut M,
        jobs: &[Job],
        run: impl FnOnce(&mut FaultyModel<'_, M>) -> T,
    ) -> T {
        let planned = jobs.iter().flat_map(|job| self.plan.of_job(job.id, job.lost)).collect();
        let unread = jobs.iter().map(|job| job.prompt.len() + job.answer.len()).sum();
        let job = jobs.first().map_or(0, |job| job.id.0);
        run(&mut FaultyModel { model, faults: self, planned, job, unread, chunks: 0, steps: 0, slowed: None })
    }

    fn strike(&mut self, fault: &Fault, whose: &str) -> Result<(), EngineError> {
        if fault.once.as_ref().is_some_and(|file| File::create_new(file).is_err()) {
            return Ok(());
        }
        eprintln!("injected fault: {fault} of {whose}");
        match fault.kind {
            FaultKind::Hang => hang(),
            FaultKind::Crash => crash(),
            FaultKind::Abort => process::abort(),
            FaultKind::Exit(code) => process::exit(code),
            // Handled by the model.
            FaultKind::Slow(_) => {}
            FaultKind::Leak(bytes) => {
                self.leaked.push(vec![0xa5; usize::try_from(bytes.0).unwrap_or(usize::MAX)])
            }
            FaultKind::Fail => return Err(refused("refused")),
            FaultKind::Starve => return Err(refused("CUDA failure 2: out of memory")),
            FaultKind::Poison => {
                return Err(refused("CUDA failure 700: an illegal memory access was encountered"));
            }
            FaultKind::Garbage => self.output.write_raw(&[3, 0, 0, 0, 250, 250, 250]),
            FaultKind::Truncated => {
                self.output.write_raw(&[16, 0, 0, 0, 1, 2, 3]);
                process::exit(0);
            }
            FaultKind::Huge => self.output.write_raw(&[0xff; 64]),
            FaultKind::Close => {
                self.output.close();
                hang();
            }
            FaultKind::Flood(bytes) => flood(bytes),
            FaultKind::Chatter => println!("libchatty: a kernel was tuned"),
        }
        Ok(())
    }
}

/// An error in the words of the device, so that the code that classifies them is tested too.
fn refused(message: &str) -> EngineError {
    DeviceError::Runtime { what: "a step", message: format!("{message} by an injected fault") }.into()
}

fn hang() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3_600));
    }
}

fn crash() -> ! {
    #[cfg(unix)]
    {
        use rustix::process::{Signal, getpid, kill_process};
        // The first signal only removes the standard library's handler, which checks for a stack overflow.
        for _ in 0..2 {
            let _ = kill_process(getpid(), Signal::SEGV);
        }
    }
    process::abort()
}

/// Half of it in short lines, half in one long line, in large blocks to be fast.
fn flood(bytes: Bytes) {
    const LINES: usize = 128;
    let line = b"libnoisy: assertion failed, assertion failed, assertion failed\n\n";
    let (lines, endless) = (line.repeat(LINES), line[..line.len() - 2].repeat(LINES));
    let mut stderr = io::stderr().lock();
    for block in [lines, endless] {
        for _ in 0..bytes.0 / 2 / block.len() as u64 {
            let _ = stderr.write_all(&block);
        }
    }
    let _ = stderr.write_all(b"\n");
}

/// A model with injected faults.
pub(in crate::worker) struct FaultyModel<'a, M> {
    model: &'a mut M,
    faults: &'a mut FaultInjector,
    planned: Vec<Fault>,
    job: u64,
    /// Tokens of prompt and answer that have not been fed.
    unread: usize,
    chunks: u32,
    steps: u32,
    slowed: Option<NonZeroU32>,
}

impl<M> FaultyModel<'_, M> {
    /// The point that a job reaches by feeding this many tokens.
    fn advance(&mut self, tokens: usize) -> Option<FaultPoint> {
        if self.unread > 0 {
            self.unread = self.unread.saturating_sub(tokens);
            self.chunks += 1;
            NonZeroU32::new(self.chunks).map(FaultPoint::Prefill)
        } else {
            self.steps += 1;
            NonZeroU32::new(self.steps).map(FaultPoint::Decode)
        }
    }

    /// Strikes with the faults of the point that is reached by feeding this many tokens.
    fn reach(&mut self, tokens: usize) -> Result<(), EngineError> {
        if self.planned.is_empty() {
            return Ok(());
        }
        self.advance(tokens).map_or(Ok(()), |point| self.strike(point))
    }

    fn strike(&mut self, point: FaultPoint) -> Result<(), EngineError> {
        for fault in self.planned.iter().filter(|fault| fault.point == point) {
            if let FaultKind::Slow(times) = fault.kind {
                self.slowed = Some(times);
            }
            self.faults.strike(fault, &format!("job {}", self.job))?;
        }
        Ok(())
    }
}

impl<M: Forward> Forward for FaultyModel<'_, M> {
    fn rewind(&mut self, length: usize) {
        self.model.rewind(length);
    }

    fn begin(&mut self, tokens: &[u32], max: usize, scope: CacheScope) -> usize {
        let kept = self.model.begin(tokens, max, scope);
        self.unread -= kept.min(self.unread);
        kept
    }

    fn reserve(&mut self, more: usize) -> Result<(), EngineError> {
        self.model.reserve(more)
    }

    fn forward_rows(&mut self, tokens: &[u32], rows: usize) -> Result<&mut [f32], EngineError> {
        self.reach(tokens.len())?;
        let (began, slowed) = (Instant::now(), self.slowed);
        let logits = self.model.forward_rows(tokens, rows)?;
        slow_down(slowed, began);
        Ok(logits)
    }

    fn forward_hidden(&mut self, tokens: &[u32], rows: usize) -> Result<&[f32], EngineError> {
        self.reach(tokens.len())?;
        let (began, slowed) = (Instant::now(), self.slowed);
        let hidden = self.model.forward_hidden(tokens, rows)?;
        slow_down(slowed, began);
        Ok(hidden)
    }

    /// Faults strike at single steps, so a job with faults has one step per token.
    fn rows(&self) -> usize {
        if self.planned.is_empty() { self.model.rows() } else { 1 }
    }

    fn chunk(&self) -> usize {
        self.model.chunk()
    }

    fn capacity(&self) -> usize {
        self.model.capacity()
    }

    fn vocabulary(&self) -> usize {
        self.model.vocabulary()
    }
}

impl<M: ForwardBranches> ForwardBranches for FaultyModel<'_, M> {
    fn reserve_branches(&mut self, rows: usize) -> Result<(), EngineError> {
        self.model.reserve_branches(rows)
    }

    fn branch(&mut self, sequences: usize) -> Result<(), EngineError> {
        self.model.branch(sequences)
    }

    fn fork(&mut self, from: Option<usize>, more: usize) -> usize {
        self.model.fork(from, more)
    }

    fn forward_branches(&mut self, fed: &[(usize, &[u32])]) -> Result<&mut [f32], EngineError> {
        if fed.len() > 1 {
            // Contexts are read one after another, so this is a decode step.
            self.unread = 0;
        }
        self.reach(fed.iter().map(|(_, tokens)| tokens.len()).sum())?;
        let (began, slowed) = (Instant::now(), self.slowed);
        let logits = self.model.forward_branches(fed)?;
        slow_down(slowed, began);
        Ok(logits)
    }
}

/// Waits until the time since `began` is this many times as long.
fn slow_down(times: Option<NonZeroU32>, began: Instant) {
    if let Some(times) = times {
        thread::sleep(began.elapsed().saturating_mul(times.get() - 1));
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::{
        device,
        engine::{self, Speculation, Step},
        job::JobId,
    };

    /// Always generates token 1.
    struct Script([f32; 2]);

    impl Forward for Script {
        fn rewind(&mut self, _: usize) {}
        fn reserve(&mut self, _: usize) -> Result<(), EngineError> {
            Ok(())
        }
        fn forward_rows(&mut self, _: &[u32], _: usize) -> Result<&mut [f32], EngineError> {
            Ok(&mut self.0)
        }
        fn chunk(&self) -> usize {
            4
        }
        fn capacity(&self) -> usize {
            64
        }
        fn vocabulary(&self) -> usize {
            2
        }
    }

    /// The steps of a job with ten prompt tokens before its fault strikes, and the error.
    fn steps(plan: &str, lost: u32) -> (Vec<Step>, Option<device::DeviceErrorKind>) {
        let (mut faults, _) = FaultInjector::new(plan.parse().unwrap(), io::sink());
        let job = Job { lost, ..Job::new(JobId(1), vec![1; 10], 3) };
        let mut steps = Vec::new();
        let mut model = Script([0.0, 1.0]);
        let ended = faults.run(&mut model, std::slice::from_ref(&job), |model| {
            engine::generate(model, &job, None, &mut Speculation::new(), |step| {
                steps.push(step);
                ControlFlow::Continue(())
            })
        });
        (steps, ended.err().map(|e| e.fault()))
    }

    #[test]
    fn a_fault_strikes_before_its_chunk_or_step() {
        let (read, token) = (|done| Step::Progress { done, total: 10, cached: 0 }, || Step::Token(1));
        for (plan, before, fault) in [
            ("fail@prefill:1", vec![], device::DeviceErrorKind::Other),
            ("poison@prefill:3", vec![read(4), read(8)], device::DeviceErrorKind::Poisoned),
            ("starve@decode:1", vec![read(4), read(8), token()], device::DeviceErrorKind::OutOfMemory),
            ("poison@decode:2", vec![read(4), read(8), token(), token()], device::DeviceErrorKind::Poisoned),
        ] {
            assert_eq!(steps(plan, 0), (before, Some(fault)), "{plan}");
        }
    }

    #[test]
    fn a_job_without_a_fault_is_not_affected() {
        for (plan, lost) in [("fail@decode:3", 0), ("fail@decode:1,job=2", 0), ("fail@decode:1", 1)] {
            let (steps, failed) = steps(plan, lost);
            assert!(failed.is_none() && steps.len() == 5, "{plan}: {steps:?}");
        }
    }

    #[test]
    fn a_fault_with_the_option_once_strikes_once() {
        let folder = tempfile::tempdir().unwrap();
        let plan = format!("fail@load,once={}", folder.path().join("mark").display());
        let (mut faults, _) = FaultInjector::new(plan.parse().unwrap(), io::sink());
        faults.at(FaultPoint::WarmUp).unwrap();
        faults.at(FaultPoint::Load).unwrap_err();
        faults.at(FaultPoint::Load).unwrap();
    }

    #[test]
    fn a_closed_writer_reports_a_broken_pipe() {
        let mut writer = FrameWriter::new(io::sink());
        writer.write_all(b"frame").unwrap();
        writer.clone().close();
        assert_eq!(writer.write_all(b"frame").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
