//! Running jobs: together where the model can compute several sequences in a pass, else one after another.

use std::{
    io::Write,
    ops::ControlFlow,
    slice, thread,
    time::{Duration, Instant},
};

use super::{
    error::WorkerError,
    loaded_model::LoadedModel,
    saved_prompts::{self, SaveError},
    server::{Server, not_loaded},
};
use crate::{
    device::{DeviceErrorKind, process_memory},
    engine::{self, EngineError, GenerationSummary, SequenceEvent},
    job::{EndReason, Failure, Finish, Job, JobId, MemoryReport, SaveAs},
    wire::{self, FromWorker, WireError},
};

impl<W: Write> Server<W> {
    /// Runs the jobs of a group.
    pub(super) fn generate(&mut self, jobs: &[Job]) -> Result<(), WorkerError> {
        let Some(first) = jobs.first() else { return Ok(()) };
        wire::write(&FromWorker::Accepted { job: first.id }, &mut self.output)?;
        if let Some(loaded) = self.models.get_mut(&first.model)
            && let Err(failure) = self.adapters.activate(&first.model, loaded, &first.adapters)
        {
            return self.refuse(jobs, &failure);
        }
        if self.can_run_together(jobs) && self.generate_together(jobs)? {
            return Ok(());
        }
        let last = jobs.len().saturating_sub(1);
        jobs.iter().enumerate().try_for_each(|(number, job)| self.generate_one(job, number == last))
    }

    /// Fails all jobs of a group before they begin.
    fn refuse(&mut self, jobs: &[Job], failure: &Failure) -> Result<(), WorkerError> {
        for job in jobs {
            let (job, failure) = (job.id, failure.clone());
            wire::write(&FromWorker::Failed { job, failure, poisoned: false }, &mut self.output)?;
        }
        self.signals.forget_cancelled();
        Ok(())
    }

    /// Whether one pass can compute a step of all these jobs.
    fn can_run_together(&self, jobs: &[Job]) -> bool {
        let is_plain = |job: &Job| {
            job.save.is_none() && job.embedding.is_none() && job.logprobs.is_none_or(|asked| !asked.prompt)
        };
        let loaded = jobs.first().and_then(|job| self.models.get(&job.model));
        jobs.len() > 1
            && loaded.is_some_and(|loaded| loaded.timeline.takes_sequences())
            && jobs.iter().all(is_plain)
    }

    /// Runs jobs together; false if there is not enough memory for all sequences at once, before anything was sent.
    fn generate_together(&mut self, jobs: &[Job]) -> Result<bool, WorkerError> {
        let before = self.memory.idle();
        let Some(Job { model, cache_prompt, .. }) = jobs.first() else { return Ok(true) };
        self.clear_others(Some(model));
        self.memory.begin();
        let Self { models, signals, output, faults, .. } = self;
        let Some(loaded) = models.get_mut(model) else { return Ok(false) };
        let LoadedModel { timeline, guides, .. } = loaded;
        let guided = jobs.iter().map(|job| (job, guides.begin(job))).collect();
        let mut sender = GroupSender {
            output,
            running: jobs.iter().map(|job| job.id).collect(),
            broken: None,
            is_silent: true,
            last: None,
        };
        let memory = MemoryReport { before, after: before, ..MemoryReport::default() };
        let outcome = faults.run(timeline, jobs, |timeline| {
            engine::generate_together(timeline, guided, |number, event| {
                let job = &jobs[number];
                sender.send(job.id, event, memory);
                let goes_on = sender.broken.is_none() && !signals.stops(job);
                if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
        });
        let GroupSender { broken, is_silent, last, running, .. } = sender;
        if let Some(e) = broken {
            return Err(e.into());
        }
        let fault = outcome.as_ref().map_or_else(EngineError::fault, |()| DeviceErrorKind::Other);
        match &outcome {
            Ok(()) => loaded.settle(*cache_prompt),
            Err(_) => loaded.clear(),
        }
        if let (Err(e), true, DeviceErrorKind::OutOfMemory) = (&outcome, is_silent, fault) {
            tracing::warn!("not enough memory to compute {} sequences together: {e}", jobs.len());
            return Ok(false);
        }
        self.end_group(&running, memory, outcome.map(|()| last))?;
        Ok(true)
    }

    /// Sends the end of the last job, or fails those that are `running`.
    fn end_group(
        &mut self,
        running: &[JobId],
        memory: MemoryReport,
        outcome: Result<Option<LastEnd>, EngineError>,
    ) -> Result<(), WorkerError> {
        let peak_resident = process_memory::memory().peak_resident;
        let device_peak = self.memory.peak();
        self.update_cache_size();
        let memory = MemoryReport { peak_resident, device_peak, after: self.memory.settle(), ..memory };
        self.signals.forget_cancelled();
        match outcome {
            Ok(Some((job, end))) => wire::write(&ended(job, end, memory), &mut self.output)?,
            Ok(None) => {}
            Err(e) => {
                let poisoned = e.fault() == DeviceErrorKind::Poisoned;
                let failure = Failure::from(e);
                for &job in running {
                    let failure = failure.clone();
                    wire::write(&FromWorker::Failed { job, failure, poisoned }, &mut self.output)?;
                }
                if poisoned {
                    return Err(WorkerError::Poisoned);
                }
            }
        }
        self.trim_if_due(Duration::ZERO)
    }

    /// Saves a job's prompt to its file, unless the job was cancelled.
    fn save(
        &mut self,
        job: &Job,
        to: &SaveAs,
        read: Result<GenerationSummary, EngineError>,
    ) -> Result<Result<GenerationSummary, EngineError>, WorkerError> {
        let Self { models, signals, output, .. } = self;
        let (Some(loaded), Ok(outcome)) = (models.get(&job.model), &read) else { return Ok(read) };
        if outcome.reason == EndReason::Cancelled {
            return Ok(read);
        }
        let (mut outcome, began) = (*outcome, Instant::now());
        let written = saved_prompts::save(loaded, job, to, |written| {
            wire::write(&FromWorker::Saving { job: job.id, written }, output).map_err(SaveError::Pipe)?;
            if signals.stops(job) { Err(SaveError::Cancelled) } else { Ok(()) }
        });
        outcome.timings.saving = began.elapsed();
        match written {
            Ok(_) => Ok(Ok(outcome)),
            Err(e) => Ok(match e.into_failure(&to.name)? {
                None => Ok(GenerationSummary { reason: EndReason::Cancelled, ..outcome }),
                Some(failure) => Err(failure),
            }),
        }
    }

    /// Runs one job; `is_last` of its group.
    fn generate_one(&mut self, job: &Job, is_last: bool) -> Result<(), WorkerError> {
        let before = self.memory.idle();
        self.clear_others(Some(&job.model));
        self.memory.begin();
        let mut broken = None;
        let Self { models, signals, output, faults, .. } = self;
        let Some(loaded) = models.get_mut(&job.model) else {
            let failure = not_loaded(&job.model);
            return Ok(wire::write(&FromWorker::Failed { job: job.id, failure, poisoned: false }, output)?);
        };
        let LoadedModel { timeline, speculation, guides, .. } = loaded;
        let guide = guides.begin(job);
        let emit = |step| match wire::write(&FromWorker::Step { job: job.id, step }, output) {
            Ok(()) if signals.stops(job) => ControlFlow::Break(()),
            Ok(()) => {
                // The process that reads the frame may need this core.
                thread::yield_now();
                ControlFlow::Continue(())
            }
            Err(e) => {
                broken = Some(e);
                ControlFlow::Break(())
            }
        };
        let outcome = guide.map_err(EngineError::Job).and_then(|guide| {
            faults.run(timeline, slice::from_ref(job), |model| {
                engine::generate(model, job, guide, speculation, emit)
            })
        });
        if let Some(e) = broken {
            return Err(e.into());
        }
        let outcome = match &job.save {
            Some(to) => self.save(job, to, outcome)?,
            None => outcome,
        };
        let peak_resident = process_memory::memory().peak_resident;
        let device_peak = self.memory.peak();
        let Some(loaded) = self.models.get_mut(&job.model) else { return Ok(()) };
        match &outcome {
            Ok(_) => loaded.settle(job.cache_prompt),
            // The device did not fail, so the cache is valid.
            Err(EngineError::Job(_)) => loaded.settle(false),
            Err(_) => loaded.clear(),
        }
        self.update_cache_size();
        let memory = MemoryReport { before, peak_resident, after: self.memory.settle(), device_peak };
        let fault = outcome.as_ref().map_or_else(EngineError::fault, |_| DeviceErrorKind::Other);
        let poisoned = fault == DeviceErrorKind::Poisoned;
        let last = match outcome {
            Ok(summary) => ended(job.id, Ok(summary), memory),
            Err(e) => FromWorker::Failed { job: job.id, failure: Failure::from(e), poisoned },
        };
        if is_last {
            self.signals.forget_cancelled();
        }
        wire::write(&last, &mut self.output)?;
        if poisoned {
            return Err(WorkerError::Poisoned);
        }
        self.trim_if_due(Duration::ZERO)
    }
}

/// The job of a group that ended last, and how.
type LastEnd = (JobId, Result<GenerationSummary, Failure>);

/// Sends the events of a group. The last end waits until the group's memory was freed.
struct GroupSender<'a, W> {
    output: &'a mut W,
    /// Jobs that have not ended.
    running: Vec<JobId>,
    /// Why a frame could not be written.
    broken: Option<WireError>,
    /// Nothing was sent yet, so the jobs can start again one by one.
    is_silent: bool,
    /// The end of the last job, which is sent later.
    last: Option<LastEnd>,
}

impl<W: Write> GroupSender<'_, W> {
    fn send(&mut self, job: JobId, event: SequenceEvent, memory: MemoryReport) {
        self.is_silent = false;
        let frame = match event {
            SequenceEvent::Step(step) => FromWorker::Step { job, step },
            SequenceEvent::Ended(end) => {
                self.running.retain(|running| *running != job);
                if self.running.is_empty() {
                    self.last = Some((job, end));
                    return;
                }
                ended(job, end, memory)
            }
        };
        match wire::write(&frame, self.output) {
            // The process that reads the frame may need this core.
            Ok(()) => thread::yield_now(),
            Err(e) => self.broken = Some(e),
        }
    }
}

/// The last frame of a job.
fn ended(job: JobId, end: Result<GenerationSummary, Failure>, memory: MemoryReport) -> FromWorker {
    match end {
        Ok(GenerationSummary { reason, usage, timings }) => {
            FromWorker::Done { job, finish: Finish { reason, usage, timings, memory } }
        }
        Err(failure) => FromWorker::Failed { job, failure, poisoned: false },
    }
}
