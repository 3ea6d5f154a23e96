//! A worker's own hand against itself.

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

use super::{Fault, Kind, Plan, Point};
use crate::{
    device::DeviceError,
    engine::{EngineError, Forward},
    job::{CacheSalt, Job},
    units::Bytes,
};

/// Where frames go. A fault may write to it and close it, hence shared.
#[derive(Clone)]
pub(in crate::worker) struct Outlet(Rc<RefCell<Option<Box<dyn Write>>>>);

impl Outlet {
    pub(in crate::worker) fn new(pipe: impl Write + 'static) -> Self {
        Self(Rc::new(RefCell::new(Some(Box::new(pipe)))))
    }

    fn close(&self) {
        drop(self.0.borrow_mut().take());
    }

    fn write_raw(&mut self, bytes: &[u8]) {
        if let Err(e) = self.write_all(bytes) {
            eprintln!("the fault's bytes cannot be written: {e}");
        }
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().as_mut().ok_or(io::ErrorKind::BrokenPipe)?.flush()
    }
}

/// A plan, and what it takes to carry it out.
pub(in crate::worker) struct Faults {
    plan: Plan,
    outlet: Outlet,
    leaked: Vec<Vec<u8>>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Faults {
    pub(in crate::worker) fn new(plan: Plan, outlet: Outlet) -> Self {
        Self { plan, outlet, leaked: Vec::new() }
    }

    /// Lets happen what is planned for a point of no job.
    ///
    /// # Errors
    /// [`EngineError::Device`] when that is what is planned.
    pub(in crate::worker) fn at(&mut self, point: Point) -> Result<(), EngineError> {
        let planned: Vec<_> = self.plan.at(point).collect();
        planned.iter().try_for_each(|fault| self.strike(fault, "no job"))
    }

    /// The model, for this job, with what is planned for it.
    pub(in crate::worker) fn around<'a, M>(&'a mut self, model: &'a mut M, job: &Job) -> Faulty<'a, M> {
        let planned = self.plan.of_job(job.id, job.lost).collect();
        let unread = job.prompt.len() + job.answer.len();
        let job = job.id.0;
        Faulty { model, faults: self, planned, job, unread, chunks: 0, steps: 0, slowed: None }
    }

    fn strike(&mut self, fault: &Fault, whose: &str) -> Result<(), EngineError> {
        if fault.once.as_ref().is_some_and(|file| File::create_new(file).is_err()) {
            return Ok(());
        }
        eprintln!("injected fault: {fault} of {whose}");
        match fault.kind {
            Kind::Hang => hang(),
            Kind::Crash => crash(),
            Kind::Abort => process::abort(),
            Kind::Exit(code) => process::exit(code),
            // Whoever computes sees to it.
            Kind::Slow(_) => {}
            Kind::Leak(bytes) => self.leaked.push(vec![0xa5; usize::try_from(bytes.0).unwrap_or(usize::MAX)]),
            Kind::Fail => return Err(refused("refused")),
            Kind::Starve => return Err(refused("CUDA failure 2: out of memory")),
            Kind::Poison => {
                return Err(refused("CUDA failure 700: an illegal memory access was encountered"));
            }
            Kind::Garbage => self.outlet.write_raw(&[3, 0, 0, 0, 250, 250, 250]),
            Kind::Truncated => {
                self.outlet.write_raw(&[16, 0, 0, 0, 1, 2, 3]);
                process::exit(0);
            }
            Kind::Huge => self.outlet.write_raw(&[0xff; 64]),
            Kind::Close => {
                self.outlet.close();
                hang();
            }
            Kind::Flood(bytes) => flood(bytes),
            Kind::Chatter => println!("libchatty: a kernel was tuned"),
        }
        Ok(())
    }
}

/// The device's error, in its own words: whoever reads them is tested as well.
fn refused(said: &str) -> EngineError {
    DeviceError::Runtime { what: "a step", message: format!("{said} by an injected fault") }.into()
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
        // The standard library's handler takes the first for a full stack's, finds it is not, and steps aside.
        for _ in 0..2 {
            let _ = kill_process(getpid(), Signal::SEGV);
        }
    }
    process::abort()
}

/// Half of it in short lines, half in one that never seems to end. Many at a time: how fast it comes is the test.
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

/// A model whose steps may go wrong.
pub(in crate::worker) struct Faulty<'a, M> {
    model: &'a mut M,
    faults: &'a mut Faults,
    planned: Vec<Fault>,
    job: u64,
    /// Tokens of the context that have not been fed.
    unread: usize,
    chunks: u32,
    steps: u32,
    slowed: Option<NonZeroU32>,
}

impl<M> Faulty<'_, M> {
    /// Where a job comes by feeding so many tokens.
    fn advance(&mut self, tokens: usize) -> Option<Point> {
        if self.unread > 0 {
            self.unread = self.unread.saturating_sub(tokens);
            self.chunks += 1;
            NonZeroU32::new(self.chunks).map(Point::Prefill)
        } else {
            self.steps += 1;
            NonZeroU32::new(self.steps).map(Point::Decode)
        }
    }

    fn strike(&mut self, point: Point) -> Result<(), EngineError> {
        for fault in self.planned.iter().filter(|fault| fault.point == point) {
            if let Kind::Slow(times) = fault.kind {
                self.slowed = Some(times);
            }
            self.faults.strike(fault, &format!("job {}", self.job))?;
        }
        Ok(())
    }
}

impl<M: Forward> Forward for Faulty<'_, M> {
    fn rewind(&mut self, length: usize) {
        self.model.rewind(length);
    }

    fn begin(&mut self, tokens: &[u32], most: usize, salt: CacheSalt) -> usize {
        let kept = self.model.begin(tokens, most, salt);
        self.unread -= kept.min(self.unread);
        kept
    }

    fn reserve(&mut self, more: usize) -> Result<(), EngineError> {
        self.model.reserve(more)
    }

    fn forward_rows(&mut self, tokens: &[u32], rows: usize) -> Result<&mut [f32], EngineError> {
        if self.planned.is_empty() {
            return self.model.forward_rows(tokens, rows);
        }
        if let Some(point) = self.advance(tokens.len()) {
            self.strike(point)?;
        }
        let began = Instant::now();
        let logits = self.model.forward_rows(tokens, rows)?;
        if let Some(times) = self.slowed {
            thread::sleep(began.elapsed().saturating_mul(times.get() - 1));
        }
        Ok(logits)
    }

    /// A fault strikes at a step: with one planned there is a step for each token.
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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::{
        device,
        engine::{self, Speculation, Step},
        job::JobId,
    };

    /// Always says token 1.
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

    /// What a job of ten prompt tokens says before its plan's fault strikes, and how it ends.
    fn said(plan: &str, lost: u32) -> (Vec<Step>, Option<device::DeviceErrorKind>) {
        let mut faults = Faults::new(plan.parse().unwrap(), Outlet::new(io::sink()));
        let job = Job { lost, ..Job::new(JobId(1), vec![1; 10], 3) };
        let mut said = Vec::new();
        let mut model = Script([0.0, 1.0]);
        let ended = engine::generate(
            &mut faults.around(&mut model, &job),
            &job,
            None,
            &mut Speculation::new(),
            |step| {
                said.push(step);
                ControlFlow::Continue(())
            },
        );
        (said, ended.err().map(|e| e.fault()))
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
            assert_eq!(said(plan, 0), (before, Some(fault)), "{plan}");
        }
    }

    #[test]
    fn a_job_without_a_fault_is_left_alone() {
        for (plan, lost) in [("fail@decode:3", 0), ("fail@decode:1,job=2", 0), ("fail@decode:1", 1)] {
            let (said, failed) = said(plan, lost);
            assert!(failed.is_none() && said.len() == 5, "{plan}: {said:?}");
        }
    }

    #[test]
    fn a_fault_that_strikes_once_leaves_a_mark_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let plan = format!("fail@load,once={}", folder.path().join("mark").display());
        let mut faults = Faults::new(plan.parse().unwrap(), Outlet::new(io::sink()));
        faults.at(Point::WarmUp).unwrap();
        faults.at(Point::Load).unwrap_err();
        faults.at(Point::Load).unwrap();
    }

    #[test]
    fn a_closed_outlet_takes_nothing() {
        let mut outlet = Outlet::new(io::sink());
        outlet.write_all(b"frame").unwrap();
        outlet.clone().close();
        assert_eq!(outlet.write_all(b"frame").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
