//! How long a worker may be silent. Pure: callers pass every event with its time.
//!
//! A watchdog that kills healthy workers is worse than none, so each budget is a multiple of what this machine needed before:
//! the slowest of the last chunks for prefill, the slowest of the last steps for decode. A budget is for the next frame only,
//! so a whole prompt or answer may take any time.
//!
//! A running job is not pinged: a healthy worker checks for cancellation between steps, and a hung one is within a step. An
//! idle worker sends nothing on its own, so it is pinged: [`Pings`]. One that stops between its last ping and a job does not
//! accept the job in time.

use std::{collections::VecDeque, mem, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::job::{Job, JobId};

/// Time limits from the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// To start and load a model.
    pub load: Duration,
    /// To run a model for the first time.
    pub warm_up: Duration,
    /// To read a prompt chunk, plus the next value.
    pub prefill_base: Duration,
    /// Multiple of the recent prefill time of the chunk's tokens.
    pub prefill_factor: u32,
    /// To compute a token: at least this, and at least the next value.
    pub decode_floor: Duration,
    /// Multiple of the recent time of a slow decode step.
    pub decode_factor: u32,
    /// To take a frame from the pipe.
    pub pipe: Duration,
    /// To answer a ping when idle, or to accept a job.
    pub idle: Duration,
}

/// The idle budget is divided into this many checks.
const IDLE_CHECKS: u32 = 4;

impl Budgets {
    /// Time between two checks of an idle worker.
    pub(super) fn ping_interval(&self) -> Duration {
        self.idle / IDLE_CHECKS
    }
}

/// What to do about an idle worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdleCheck {
    /// Send a ping.
    Ping,
    /// Wait for the answer to the last ping.
    Wait,
    /// Replace the worker.
    Hung,
}

/// Whether an idle worker answers. The budget is counted in checks and not in time: if a machine or container is paused for
/// hours between two checks, the worker was paused as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pings {
    /// Checks since an unanswered ping; 0 without one.
    unanswered: u32,
}

impl Pings {
    /// Counts a check, which is due every [`ping_interval`](Budgets::ping_interval).
    pub(super) const fn check(&mut self) -> IdleCheck {
        self.unanswered += 1;
        match self.unanswered {
            1 => IdleCheck::Ping,
            checks if checks <= IDLE_CHECKS => IdleCheck::Wait,
            _ => IdleCheck::Hung,
        }
    }

    /// Notes an answer.
    pub(super) const fn answered(&mut self) {
        self.unanswered = 0;
    }
}

/// Measured speed of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LearnedSpeed {
    /// Per prompt token, in the slowest of the last chunks.
    prefill_ns: u64,
    /// Per generated token, in a slow step.
    step_ns: u64,
}

impl LearnedSpeed {
    pub(super) fn new(prefill: Duration, step: Duration) -> Self {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self { prefill_ns: ns(prefill), step_ns: ns(step) }
    }

    pub(super) const fn prefill(self) -> Duration {
        Duration::from_nanos(self.prefill_ns)
    }

    pub(super) const fn step(self) -> Duration {
        Duration::from_nanos(self.step_ns)
    }
}

/// Assumed time per prompt token on an unknown machine: slower than any usable one.
const UNKNOWN_TOKEN_TIME: Duration = Duration::from_secs(1);

/// Chunks and steps that count.
const WINDOW: usize = 256;

/// Percentile of a slow step.
const SLOW_PERCENTILE: usize = 99;

/// Budgets for one model, based on its recent speed.
#[derive(Clone, Debug)]
pub(super) struct Watchdog {
    budgets: Budgets,
    /// Per token, for each chunk.
    prefill: VecDeque<Duration>,
    steps: VecDeque<Duration>,
}

impl Watchdog {
    pub(super) fn new(budgets: Budgets) -> Self {
        Self { budgets, prefill: VecDeque::new(), steps: VecDeque::new() }
    }

    /// Starts with the speed from an earlier run.
    pub(super) fn with(budgets: Budgets, learned: LearnedSpeed) -> Self {
        Self {
            budgets,
            prefill: VecDeque::from([learned.prefill()]),
            steps: VecDeque::from([learned.step()]),
        }
    }

    /// The speed to keep for the next run; `None` before the first complete answer.
    pub(super) fn learned(&self) -> Option<LearnedSpeed> {
        let prefill = self.prefill.iter().max()?;
        (!self.steps.is_empty()).then(|| LearnedSpeed::new(*prefill, self.slow_step()))
    }

    pub(super) const fn budgets(&self) -> Budgets {
        self.budgets
    }

    /// Budget for the next frame of a job.
    fn budget(&self, awaited: Awaited) -> Duration {
        let Budgets { prefill_base, prefill_factor, decode_floor, decode_factor, .. } = self.budgets;
        match awaited {
            Awaited::Acceptance => self.budgets.idle,
            Awaited::Chunk(tokens) => {
                let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
                let slowest = self.prefill.iter().max();
                let expected =
                    slowest.map_or(UNKNOWN_TOKEN_TIME, |token| token.saturating_mul(prefill_factor));
                prefill_base.saturating_add(expected.saturating_mul(tokens))
            }
            Awaited::Step => decode_floor.max(self.slow_step().saturating_mul(decode_factor)),
            Awaited::Piece => self.budgets.warm_up,
        }
    }

    /// The 99th percentile of the last steps. Needed for every token, so it is found without sorting: few steps are slower.
    fn slow_step(&self) -> Duration {
        const SLOWER: usize = WINDOW - WINDOW * SLOW_PERCENTILE / 100;
        let mut slowest = [Duration::ZERO; SLOWER];
        for step in &self.steps {
            let mut step = *step;
            if step > slowest[SLOWER - 1] {
                for slot in &mut slowest {
                    if step > *slot {
                        mem::swap(slot, &mut step);
                    }
                }
            }
        }
        let rank = self.steps.len() - self.steps.len() * SLOW_PERCENTILE / 100;
        rank.checked_sub(1).map_or(Duration::ZERO, |index| slowest[index])
    }

    fn learn(&mut self, awaited: Awaited, took: Duration) {
        let (memory, took) = match awaited {
            Awaited::Chunk(tokens) => {
                (&mut self.prefill, took / u32::try_from(tokens).unwrap_or(u32::MAX).max(1))
            }
            Awaited::Step => (&mut self.steps, took),
            // Neither a worker's wake-up nor the speed of the disk has to do with the model.
            Awaited::Acceptance | Awaited::Piece => return,
        };
        if memory.len() == WINDOW {
            memory.pop_front();
        }
        memory.push_back(took);
    }
}

/// What the next frame of a job should report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// That the worker has received the jobs. It was idle, and may have stopped since its last ping.
    Acceptance,
    /// A prompt chunk of this many tokens.
    Chunk(usize),
    /// A token.
    Step,
    /// A few megabytes of a saved prompt, written to disk.
    Piece,
}

/// What a frame of a job reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobSignal {
    /// The worker has received the jobs.
    Accepted,
    /// This many tokens of prompt and answer are in the cache.
    Progress(usize),
    /// A token.
    Token,
    /// The prompt is complete, and a part of it is saved.
    Saving,
    /// The job has ended.
    Ended,
}

/// The jobs of a group on one worker, as the watchdog sees them.
#[derive(Clone, Debug)]
pub(super) struct JobWatch {
    awaited: Awaited,
    since: Instant,
    jobs: Vec<Reading>,
    /// The most tokens per chunk.
    chunk: usize,
}

/// How much of a job's prompt and answer was read before its first new token.
#[derive(Clone, Copy, Debug)]
struct Reading {
    job: JobId,
    unread: usize,
    context: usize,
}

impl JobWatch {
    /// Starts with jobs that are sent `now`, whose prompts and answers so far are read in chunks of at most `chunk`.
    pub(super) fn start(jobs: &[Job], chunk: usize, now: Instant) -> Self {
        let reading = |job: &Job| {
            let context = job.prompt.len() + job.answer.len();
            Reading { job: job.id, unread: context, context }
        };
        let jobs = jobs.iter().map(reading).collect();
        Self { awaited: Awaited::Acceptance, since: now, jobs, chunk }
    }

    /// While a job has unread tokens, the next frame may be about them, even if another job has a token before.
    fn await_next(&mut self) {
        let unread = self.jobs.iter().map(|reading| reading.unread).find(|unread| *unread > 0);
        self.awaited = unread.map_or(Awaited::Step, |unread| Awaited::Chunk(unread.min(self.chunk)));
    }

    /// When the worker counts as hung.
    pub(super) fn deadline(&self, watchdog: &Watchdog) -> Instant {
        let budget = watchdog.budget(self.awaited);
        // A budget beyond the clock's range means no limit.
        self.since.checked_add(budget).unwrap_or_else(|| self.since + Duration::from_secs(1 << 32))
    }

    /// The limit that was exceeded, as a sentence.
    pub(super) fn describe(&self, watchdog: &Watchdog) -> String {
        let seconds = watchdog.budget(self.awaited).as_secs_f64();
        match self.awaited {
            Awaited::Chunk(tokens) => {
                format!("no answer for {seconds:.1} s while the worker read {tokens} tokens")
            }
            Awaited::Acceptance => format!("the worker did not accept a job within {seconds:.1} s"),
            Awaited::Step => format!("no answer for {seconds:.1} s while the worker computed a token"),
            Awaited::Piece => format!("no answer for {seconds:.1} s while the worker saved a prompt"),
        }
    }

    /// Notes a frame of a job and learns from its time.
    pub(super) fn note(&mut self, job: JobId, signal: JobSignal, now: Instant, watchdog: &mut Watchdog) {
        let took = now.saturating_duration_since(self.since);
        self.since = now;
        if signal == JobSignal::Accepted {
            return self.await_next();
        }
        let Some(at) = self.jobs.iter().position(|reading| reading.job == job) else { return };
        if signal == JobSignal::Ended {
            self.jobs.remove(at);
            self.await_next();
            return;
        }
        let Reading { unread, context, .. } = &mut self.jobs[at];
        let left = match signal {
            JobSignal::Progress(done) => context.saturating_sub(done).min(*unread),
            JobSignal::Accepted | JobSignal::Token | JobSignal::Saving | JobSignal::Ended => 0,
        };
        let done = match (self.awaited, *unread - left) {
            (Awaited::Piece, _) => Awaited::Piece,
            (_, 0) if signal == JobSignal::Token => Awaited::Step,
            // A worker may use smaller chunks than configured.
            (_, read) => Awaited::Chunk(read),
        };
        *unread = left;
        watchdog.learn(done, took);
        self.await_next();
        if signal == JobSignal::Saving {
            self.awaited = Awaited::Piece;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGETS: Budgets = Budgets {
        load: Duration::from_secs(600),
        warm_up: Duration::from_secs(120),
        prefill_base: Duration::from_secs(30),
        prefill_factor: 10,
        decode_floor: Duration::from_secs(15),
        decode_factor: 50,
        pipe: Duration::from_secs(10),
        idle: Duration::from_secs(20),
    };

    /// Checks an idle worker that takes `answer_after` for each ping, until it counts as hung.
    async fn found_hung(answer_after: Duration, max: Duration) -> Option<Duration> {
        let (began, mut pings, mut answer_at) = (Instant::now(), Pings::default(), None);
        while began.elapsed() < max {
            tokio::time::sleep(BUDGETS.ping_interval()).await;
            if answer_at.is_some_and(|at| at <= Instant::now()) {
                (pings, answer_at) = (Pings::default(), None);
            }
            match pings.check() {
                IdleCheck::Ping => answer_at = Some(Instant::now() + answer_after),
                IdleCheck::Wait => {}
                IdleCheck::Hung => return Some(began.elapsed()),
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_worker_that_never_answers_is_found_within_its_budget_and_one_ping() {
        let hour = Duration::from_secs(3600);
        let found = found_hung(Duration::MAX / 4, hour).await.unwrap();
        assert!(found >= BUDGETS.idle && found <= BUDGETS.idle + BUDGETS.ping_interval(), "{found:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_worker_that_answers_slowly_is_not_hung() {
        let hour = Duration::from_secs(3600);
        for seconds in [0, 5, 15, 19] {
            assert_eq!(found_hung(Duration::from_secs(seconds), hour).await, None, "{seconds} s");
        }
    }

    #[test]
    fn a_machine_that_was_paused_for_hours_counts_as_one_check() {
        let mut pings = Pings::default();
        assert_eq!(pings.check(), IdleCheck::Ping);
        assert_eq!(pings.check(), IdleCheck::Wait, "whatever the clock shows");
        pings.answered();
        assert_eq!(pings.check(), IdleCheck::Ping);
    }

    fn job(id: u64, prompt: usize) -> Job {
        Job::new(JobId(id), vec![1; prompt], 1)
    }

    #[test]
    fn a_prompt_of_a_group_has_the_budget_of_a_chunk_also_after_a_token_of_another_job() {
        let mut watchdog = Watchdog::new(BUDGETS);
        let mut now = Instant::now();
        let mut watch = JobWatch::start(&[job(1, 10), job(2, 512)], 512, now);
        assert_eq!(watch.deadline(&watchdog) - now, BUDGETS.idle, "not accepted yet");
        watch.note(JobId(1), JobSignal::Accepted, now, &mut watchdog);
        // 10 ms per token, times ten.
        let chunk = Duration::from_secs(30) + ms(512 * 100);
        for (id, signal, budget) in [
            (1, JobSignal::Token, chunk),
            (1, JobSignal::Token, chunk),
            (1, JobSignal::Ended, chunk),
            (2, JobSignal::Token, BUDGETS.decode_floor),
        ] {
            now += ms(100);
            watch.note(JobId(id), signal, now, &mut watchdog);
            assert_eq!(watch.deadline(&watchdog) - now, budget, "{id}: {signal:?}");
        }
    }

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Runs a job of `context` tokens with these times and returns the budget of each frame.
    fn run(
        watchdog: &mut Watchdog,
        context: usize,
        chunk_takes: Duration,
        steps: &[Duration],
    ) -> Vec<Duration> {
        let mut now = Instant::now();
        let mut watch = JobWatch::start(&[job(1, context)], 512, now);
        watch.note(JobId(1), JobSignal::Accepted, now, watchdog);
        let mut budgets = Vec::new();
        let mut done = 0;
        while done < context {
            budgets.push(watch.deadline(watchdog) - now);
            now += chunk_takes;
            done = context.min(done + 512);
            let last = done == context;
            watch.note(
                JobId(1),
                if last { JobSignal::Token } else { JobSignal::Progress(done) },
                now,
                watchdog,
            );
        }
        for step in steps {
            budgets.push(watch.deadline(watchdog) - now);
            now += *step;
            watch.note(JobId(1), JobSignal::Token, now, watchdog);
        }
        budgets
    }

    #[test]
    fn the_slow_step_is_the_percentile_that_sorting_finds() {
        let mut watchdog = Watchdog::new(BUDGETS);
        assert_eq!(watchdog.slow_step(), Duration::ZERO);
        for n in 0..1_000u64 {
            watchdog.learn(Awaited::Step, Duration::from_micros(n * 7_919 % 1_009 / 3));
            let mut steps: Vec<_> = watchdog.steps.iter().copied().collect();
            steps.sort_unstable();
            assert_eq!(watchdog.slow_step(), steps[steps.len() * SLOW_PERCENTILE / 100], "after {n}");
        }
    }

    #[test]
    fn an_unknown_machine_gets_a_second_for_each_token_of_a_prompt() {
        let budgets = run(&mut Watchdog::new(BUDGETS), 600, ms(1), &[]);
        assert_eq!(budgets[0], Duration::from_secs(30 + 512));
    }

    #[test]
    fn prefill_budgets_scale_with_tokens_and_with_the_slowest_chunk_seen() {
        let mut watchdog = Watchdog::new(BUDGETS);
        run(&mut watchdog, 512, ms(512), &[]);
        run(&mut watchdog, 512, ms(5_120), &[]);
        run(&mut watchdog, 512, ms(512), &[]);
        // 10 ms per token at worst, times ten.
        let budgets = run(&mut watchdog, 612, ms(1), &[]);
        assert_eq!(budgets[0], Duration::from_secs(30) + ms(100 * 512));
        assert_eq!(budgets[1], Duration::from_secs(30) + ms(100 * 100));
    }

    #[test]
    fn a_worker_with_smaller_chunks_is_judged_by_those() {
        let mut watchdog = Watchdog::new(BUDGETS);
        let mut now = Instant::now();
        let mut watch = JobWatch::start(&[job(1, 512)], 512, now);
        watch.note(JobId(1), JobSignal::Accepted, now, &mut watchdog);
        for done in [128, 256] {
            now += ms(1_280);
            watch.note(JobId(1), JobSignal::Progress(done), now, &mut watchdog);
        }
        // 10 ms per token, times ten, for the 256 that are left.
        assert_eq!(watch.deadline(&watchdog) - now, Duration::from_secs(30) + ms(100 * 256));
    }

    #[test]
    fn decode_budgets_are_the_floor_or_many_times_a_slow_step() {
        let mut watchdog = Watchdog::new(BUDGETS);
        let fast = run(&mut watchdog, 1, ms(1), &[ms(50); 200]);
        assert_eq!(fast.last(), Some(&BUDGETS.decode_floor));
        let slow = run(&mut watchdog, 1, ms(1), &[ms(2_000); 20]);
        assert_eq!(slow.last(), Some(&Duration::from_secs(100)));
    }

    #[test]
    fn one_slow_step_among_hundreds_does_not_raise_the_budget() {
        let mut watchdog = Watchdog::new(BUDGETS);
        let mut steps = vec![ms(50); 250];
        steps[100] = Duration::from_secs(60);
        run(&mut watchdog, 1, ms(1), &steps);
        let after = run(&mut watchdog, 1, ms(1), &[ms(50)]);
        assert_eq!(after.last(), Some(&BUDGETS.decode_floor));
    }

    #[test]
    fn the_speed_of_an_earlier_run_is_used_from_the_start() {
        let mut first = Watchdog::new(BUDGETS);
        assert_eq!(first.learned(), None);
        run(&mut first, 512, ms(5_120), &[ms(2_000); 20]);
        let mut next = Watchdog::with(BUDGETS, first.learned().unwrap());
        let budgets = run(&mut next, 512, ms(1), &[ms(1)]);
        assert_eq!(budgets, [Duration::from_secs(30) + ms(100 * 512), Duration::from_secs(100)]);
    }

    #[test]
    fn each_piece_of_a_saved_prompt_has_its_own_budget_and_does_not_change_the_step_time() {
        let mut watchdog = Watchdog::new(BUDGETS);
        let mut now = Instant::now();
        let mut watch = JobWatch::start(&[job(1, 512)], 512, now);
        for _ in 0..3 {
            now += ms(5_120);
            watch.note(JobId(1), JobSignal::Saving, now, &mut watchdog);
            assert_eq!(watch.deadline(&watchdog) - now, BUDGETS.warm_up);
        }
        // Only the chunk was measured: 10 ms per token, times ten.
        let budgets = run(&mut watchdog, 512, ms(1), &[ms(1)]);
        assert_eq!(budgets, [Duration::from_secs(30) + ms(100 * 512), BUDGETS.decode_floor]);
    }

    #[test]
    fn old_steps_are_forgotten() {
        let mut watchdog = Watchdog::new(BUDGETS);
        run(&mut watchdog, 1, ms(1), &[Duration::from_secs(5); 100]);
        run(&mut watchdog, 1, ms(1), &[ms(50); WINDOW]);
        let after = run(&mut watchdog, 1, ms(1), &[ms(50)]);
        assert_eq!(after.last(), Some(&BUDGETS.decode_floor));
    }

    #[test]
    fn there_is_no_limit_for_a_whole_job() {
        let mut watchdog = Watchdog::new(BUDGETS);
        let steps = vec![BUDGETS.decode_floor - ms(1); 1_000];
        let budgets = run(&mut watchdog, 20_000, Duration::from_secs(29), &steps);
        assert!(budgets.iter().all(|budget| *budget >= BUDGETS.decode_floor));
    }
}
