//! How long a worker may be silent. Pure: it is told what was heard and when, and never looks at a clock.
//!
//! A watchdog that kills healthy work is worse than none, so every budget is many times what this machine has shown to
//! need: prefill by the slowest of the last chunks, decode by the slowest of the last steps. Neither counts what passed
//! before the last frame, so a long prompt or a long answer is never out of time as a whole.
//!
//! A running job is not asked first: a worker looks at a cancellation between steps, and one that hangs is within a step.
//! A worker that has nothing to do says nothing by itself, so it is pinged: [`Pings`].

use std::{collections::VecDeque, mem, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// What is allowed, from the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// To start and load the model.
    pub load: Duration,
    /// To run the model for the first time.
    pub warm_up: Duration,
    /// To read a chunk of a prompt, whatever its length.
    pub prefill_base: Duration,
    /// And this many times what its tokens took lately.
    pub prefill_factor: u32,
    /// To compute a token, whatever the last ones took.
    pub decode_floor: Duration,
    /// Or this many times what the slow ones took lately.
    pub decode_factor: u32,
    /// To take a frame off the pipe.
    pub pipe: Duration,
    /// To answer a ping while there is nothing else to do.
    pub idle: Duration,
}

/// Parts that the budget of an idle worker is counted in, and so the number of pings before it is over.
const IDLE_PARTS: u32 = 4;

impl Budgets {
    /// How often an idle worker is looked at.
    pub(super) fn ping_interval(&self) -> Duration {
        self.idle / IDLE_PARTS
    }
}

/// What is due for an idle worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Idle {
    /// To send it a ping.
    Ping,
    /// Its answer may still come.
    Wait,
    /// It is to be replaced.
    Hung,
}

/// Whether an idle worker answers. The budget is counted in looks at it and not by the clock: when a machine or a container
/// is paused, hours may pass between two looks, and the worker was paused as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pings {
    /// Looks since a ping that has no answer; 0 when there is none.
    unanswered: u32,
}

impl Pings {
    /// Looks at it, a [`ping_interval`](Budgets::ping_interval) after the last look.
    pub(super) const fn look(&mut self) -> Idle {
        self.unanswered += 1;
        match self.unanswered {
            1 => Idle::Ping,
            looks if looks <= IDLE_PARTS => Idle::Wait,
            _ => Idle::Hung,
        }
    }

    /// It has answered.
    pub(super) const fn answered(&mut self) {
        self.unanswered = 0;
    }
}

/// How fast a model was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Learned {
    /// For one token of a prompt, in the slowest of the last chunks.
    prefill_ns: u64,
    /// For one token of an answer, among the slow ones.
    step_ns: u64,
}

impl Learned {
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

/// For each token of a chunk while nothing is known of the machine: slower than any that is of use.
const UNKNOWN_TOKEN: Duration = Duration::from_secs(1);

/// Chunks and steps that are remembered.
const REMEMBERED: usize = 256;

/// The share of steps that are faster than a slow one, in hundredths.
const SLOW: usize = 99;

/// What a worker is waited for, for how long, learned from what was heard.
#[derive(Clone, Debug)]
pub(super) struct Watchdog {
    budgets: Budgets,
    /// Of one token, by chunk.
    prefill: VecDeque<Duration>,
    steps: VecDeque<Duration>,
}

impl Watchdog {
    pub(super) fn new(budgets: Budgets) -> Self {
        Self { budgets, prefill: VecDeque::new(), steps: VecDeque::new() }
    }

    /// One that knows what another run has learned.
    pub(super) fn with(budgets: Budgets, learned: Learned) -> Self {
        Self {
            budgets,
            prefill: VecDeque::from([learned.prefill()]),
            steps: VecDeque::from([learned.step()]),
        }
    }

    /// What the next run should know; `None` before a prompt was read and answered.
    pub(super) fn learned(&self) -> Option<Learned> {
        let prefill = self.prefill.iter().max()?;
        (!self.steps.is_empty()).then(|| Learned::new(*prefill, self.slow_step()))
    }

    pub(super) const fn budgets(&self) -> Budgets {
        self.budgets
    }

    /// For the next frame of a job.
    fn budget(&self, awaited: Awaited) -> Duration {
        let Budgets { prefill_base, prefill_factor, decode_floor, decode_factor, .. } = self.budgets;
        match awaited {
            Awaited::Chunk(tokens) => {
                let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
                let slowest = self.prefill.iter().max();
                let expected = slowest.map_or(UNKNOWN_TOKEN, |token| token.saturating_mul(prefill_factor));
                prefill_base.saturating_add(expected.saturating_mul(tokens))
            }
            Awaited::Step => decode_floor.max(self.slow_step().saturating_mul(decode_factor)),
            Awaited::Piece => self.budgets.warm_up,
        }
    }

    /// The 99th percentile of the last steps. Asked for at every token, so nothing is sorted: only few are slower.
    fn slow_step(&self) -> Duration {
        const SLOWER: usize = REMEMBERED - REMEMBERED * SLOW / 100;
        let mut slowest = [Duration::ZERO; SLOWER];
        for step in &self.steps {
            let mut step = *step;
            if step > slowest[SLOWER - 1] {
                for place in &mut slowest {
                    if step > *place {
                        mem::swap(place, &mut step);
                    }
                }
            }
        }
        let place = self.steps.len() - self.steps.len() * SLOW / 100;
        place.checked_sub(1).map_or(Duration::ZERO, |place| slowest[place])
    }

    fn learn(&mut self, awaited: Awaited, took: Duration) {
        let (memory, took) = match awaited {
            Awaited::Chunk(tokens) => {
                (&mut self.prefill, took / u32::try_from(tokens).unwrap_or(u32::MAX).max(1))
            }
            Awaited::Step => (&mut self.steps, took),
            // How fast a disk is says nothing of the model.
            Awaited::Piece => return,
        };
        if memory.len() == REMEMBERED {
            memory.pop_front();
        }
        memory.push_back(took);
    }
}

/// What the next frame of a job tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// A chunk of the prompt, of so many tokens.
    Chunk(usize),
    /// A token.
    Step,
    /// A piece of a file that a prompt is saved in: some megabytes, and their way to the disk.
    Piece,
}

/// What was heard of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// So many tokens of the context are read.
    Progress(usize),
    /// A token.
    Token,
    /// The context is read, and some of it saved.
    Saving,
}

/// One job on one worker, as the watchdog sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    awaited: Awaited,
    since: Instant,
    /// Tokens to read before the first one is written, those that are read, and how many at a time.
    context: usize,
    read: usize,
    chunk: usize,
}

impl Watch {
    /// A job that is sent `now`, with `context` tokens to read, at most `chunk` at a time.
    pub(super) fn start(context: usize, chunk: usize, now: Instant) -> Self {
        Self { awaited: Awaited::Chunk(context.min(chunk)), since: now, context, read: 0, chunk }
    }

    /// When the worker has been silent for too long.
    pub(super) fn deadline(&self, watchdog: &Watchdog) -> Instant {
        let budget = watchdog.budget(self.awaited);
        // A budget beyond the clock's range is none.
        self.since.checked_add(budget).unwrap_or_else(|| self.since + Duration::from_secs(1 << 32))
    }

    /// What it is waited for, and for how long, for people.
    pub(super) fn describe(&self, watchdog: &Watchdog) -> String {
        let seconds = watchdog.budget(self.awaited).as_secs_f64();
        match self.awaited {
            Awaited::Chunk(tokens) => format!("no word for {seconds:.1} s while it read {tokens} tokens"),
            Awaited::Step => format!("no word for {seconds:.1} s while it computed a token"),
            Awaited::Piece => format!("no word for {seconds:.1} s while it saved a prompt"),
        }
    }

    /// Notes a frame, and what it says about the machine.
    pub(super) fn hear(&mut self, heard: Heard, now: Instant, watchdog: &mut Watchdog) {
        let read = match heard {
            Heard::Progress(done) => done.clamp(self.read, self.context),
            Heard::Token | Heard::Saving => self.context,
        };
        let done = match self.awaited {
            // A worker may read fewer at a time than it was told to.
            Awaited::Chunk(_) => Awaited::Chunk(read - self.read),
            Awaited::Step => Awaited::Step,
            Awaited::Piece => Awaited::Piece,
        };
        watchdog.learn(done, now.saturating_duration_since(self.since));
        (self.since, self.read) = (now, read);
        self.awaited = match self.context - read {
            0 if heard == Heard::Saving => Awaited::Piece,
            0 => Awaited::Step,
            rest => Awaited::Chunk(rest.min(self.chunk)),
        };
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

    /// Looks at an idle worker until it is found to hang; it takes so long to answer each ping.
    async fn found_hung(answer_after: Duration, most: Duration) -> Option<Duration> {
        let (began, mut pings, mut answer_at) = (Instant::now(), Pings::default(), None);
        while began.elapsed() < most {
            tokio::time::sleep(BUDGETS.ping_interval()).await;
            if answer_at.is_some_and(|at| at <= Instant::now()) {
                (pings, answer_at) = (Pings::default(), None);
            }
            match pings.look() {
                Idle::Ping => answer_at = Some(Instant::now() + answer_after),
                Idle::Wait => {}
                Idle::Hung => return Some(began.elapsed()),
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
    async fn an_idle_worker_that_is_slow_to_answer_because_the_machine_swaps_is_left_alone() {
        let hour = Duration::from_secs(3600);
        for seconds in [0, 5, 15, 19] {
            assert_eq!(found_hung(Duration::from_secs(seconds), hour).await, None, "{seconds} s");
        }
    }

    #[test]
    fn a_machine_that_was_paused_for_hours_counts_as_one_look() {
        let mut pings = Pings::default();
        assert_eq!(pings.look(), Idle::Ping);
        assert_eq!(pings.look(), Idle::Wait, "whatever the clock says");
        pings.answered();
        assert_eq!(pings.look(), Idle::Ping);
    }

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Runs a job of `context` tokens whose chunks and steps take so long, and gives the budget of each frame.
    fn run(
        watchdog: &mut Watchdog,
        context: usize,
        chunk_takes: Duration,
        steps: &[Duration],
    ) -> Vec<Duration> {
        let mut now = Instant::now();
        let mut watch = Watch::start(context, 512, now);
        let mut budgets = Vec::new();
        let mut done = 0;
        while done < context {
            budgets.push(watch.deadline(watchdog) - now);
            now += chunk_takes;
            done = context.min(done + 512);
            let last = done == context;
            watch.hear(if last { Heard::Token } else { Heard::Progress(done) }, now, watchdog);
        }
        for step in steps {
            budgets.push(watch.deadline(watchdog) - now);
            now += *step;
            watch.hear(Heard::Token, now, watchdog);
        }
        budgets
    }

    #[test]
    fn a_slow_step_is_the_one_that_sorting_would_find() {
        let mut watchdog = Watchdog::new(BUDGETS);
        assert_eq!(watchdog.slow_step(), Duration::ZERO);
        for n in 0..1_000u64 {
            watchdog.learn(Awaited::Step, Duration::from_micros(n * 7_919 % 1_009 / 3));
            let mut steps: Vec<_> = watchdog.steps.iter().copied().collect();
            steps.sort_unstable();
            assert_eq!(watchdog.slow_step(), steps[steps.len() * SLOW / 100], "after {n}");
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
        // 10 ms a token at worst, ten times that.
        let budgets = run(&mut watchdog, 612, ms(1), &[]);
        assert_eq!(budgets[0], Duration::from_secs(30) + ms(100 * 512));
        assert_eq!(budgets[1], Duration::from_secs(30) + ms(100 * 100));
    }

    #[test]
    fn a_worker_that_reads_fewer_tokens_at_a_time_is_judged_by_those() {
        let mut watchdog = Watchdog::new(BUDGETS);
        let mut now = Instant::now();
        let mut watch = Watch::start(512, 512, now);
        for done in [128, 256] {
            now += ms(1_280);
            watch.hear(Heard::Progress(done), now, &mut watchdog);
        }
        // 10 ms a token, ten times that, for the 256 that are left.
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
    fn one_slow_step_among_hundreds_does_not_make_the_watchdog_blind() {
        let mut watchdog = Watchdog::new(BUDGETS);
        let mut steps = vec![ms(50); 250];
        steps[100] = Duration::from_secs(60);
        run(&mut watchdog, 1, ms(1), &steps);
        let after = run(&mut watchdog, 1, ms(1), &[ms(50)]);
        assert_eq!(after.last(), Some(&BUDGETS.decode_floor));
    }

    #[test]
    fn what_another_run_has_learned_is_known_from_the_start() {
        let mut first = Watchdog::new(BUDGETS);
        assert_eq!(first.learned(), None);
        run(&mut first, 512, ms(5_120), &[ms(2_000); 20]);
        let mut next = Watchdog::with(BUDGETS, first.learned().unwrap());
        let budgets = run(&mut next, 512, ms(1), &[ms(1)]);
        assert_eq!(budgets, [Duration::from_secs(30) + ms(100 * 512), Duration::from_secs(100)]);
    }

    #[test]
    fn a_prompt_that_is_saved_has_time_for_each_piece_and_teaches_nothing_of_steps() {
        let mut watchdog = Watchdog::new(BUDGETS);
        let mut now = Instant::now();
        let mut watch = Watch::start(512, 512, now);
        for _ in 0..3 {
            now += ms(5_120);
            watch.hear(Heard::Saving, now, &mut watchdog);
            assert_eq!(watch.deadline(&watchdog) - now, BUDGETS.warm_up);
        }
        // What was learned is the chunk: 10 ms a token, ten times that.
        let budgets = run(&mut watchdog, 512, ms(1), &[ms(1)]);
        assert_eq!(budgets, [Duration::from_secs(30) + ms(100 * 512), BUDGETS.decode_floor]);
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let mut watchdog = Watchdog::new(BUDGETS);
        run(&mut watchdog, 1, ms(1), &[Duration::from_secs(5); 100]);
        run(&mut watchdog, 1, ms(1), &[ms(50); REMEMBERED]);
        let after = run(&mut watchdog, 1, ms(1), &[ms(50)]);
        assert_eq!(after.last(), Some(&BUDGETS.decode_floor));
    }

    #[test]
    fn the_time_of_a_job_as_a_whole_does_not_matter() {
        let mut watchdog = Watchdog::new(BUDGETS);
        let steps = vec![BUDGETS.decode_floor - ms(1); 1_000];
        let budgets = run(&mut watchdog, 20_000, Duration::from_secs(29), &steps);
        assert!(budgets.iter().all(|budget| *budget >= BUDGETS.decode_floor));
    }
}
