//! Whether drafts of a draft model pay. Pure, like the [`CostModel`](super::cost_model::CostModel).
//!
//! Prompt lookup learns its hit rate from every token. A draft model has to run to be judged, and before its first draft it has to
//! read the whole sequence. So there is a budget of time: a share of the main model's time is paid in; the time of the draft
//! model and of verifying its drafts is paid out; each accepted token pays in the step that it saved. It follows:
//!
//! - Drafts that are expected to pay are made while the budget is not negative. Once a prompt was read for them, they continue to
//!   the end of the answer.
//! - Other drafts are trials, made when the budget covers their whole cost. This is how a draft model begins, and how a model
//!   that was given up can return.
//!
//! So drafts that do not pay cost at most that share over time. Drafts that were expected to pay but did not can make the budget
//! negative, which has to be earned back first. Reading a long prompt pays only for an answer that is long enough. Its length is
//! not known, so it is assumed to continue for as long as it has lasted so far. Then a prompt that was read in vain costs no more
//! than the wait has saved.

use std::time::Duration;

use super::cost_model::{DraftPlan, HitRate, PassTimes, number};

/// Share of the main model's time that is paid in.
const INCOME_SHARE: f64 = 0.02;

/// Upper bound of the budget, in decode steps. A trial delays an answer by no more than this.
const MAX_BUDGET: f64 = 32.0;

/// A pass counts for at most this multiple of its expected time, in case it was interrupted.
const MAX_OVERRUN: f64 = 4.0;

/// Tokens of a trial. The first one tells most.
const TRIAL_TOKENS: usize = 4;

/// Hit rate before the first draft.
const INITIAL_RATE: f64 = 0.5;

/// Upper bound on catch-up prefill by the draft model before the next token, in decode steps, so that neither the client nor the
/// watchdog waits for a whole prompt.
const MAX_PAUSE: f64 = 8.0;

/// Tokens of catch-up prefill that are always read at once.
const MIN_CATCH_UP: usize = 16;

/// Time budget and hit rate of a draft model.
#[derive(Clone, Copy, Debug)]
pub(super) struct DraftBudget {
    passes: PassTimes,
    hit_rate: HitRate,
    is_tried: bool,
    /// Seconds that may be spent; negative after a loss.
    budget: f64,
    /// The draft model has caught up with this sequence because drafts were expected to pay.
    is_invested: bool,
}

/// The situation before a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct DraftRequest {
    /// Tokens that are fed to the main model in any case.
    pub(super) due: usize,
    /// Tokens that the draft model has not read, those included.
    pub(super) unread: usize,
    /// Most tokens to draft.
    pub(super) max: usize,
    /// Tokens of the answer so far, and the most that may follow.
    pub(super) said: usize,
    pub(super) rest: usize,
}

impl DraftRequest {
    /// Tokens that are unread even without a backlog: those due, and the last drafted one.
    fn usual(self) -> usize {
        self.unread.min(self.due + 1)
    }
}

/// What the draft model does next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DraftStep {
    /// Tokens to read. It drafts only if no more are unread.
    pub(super) reads: usize,
    /// The draft. A trial has speed 0, because it is not expected to gain anything.
    pub(super) plan: DraftPlan,
}

impl DraftBudget {
    /// Starts with measured pass times and an empty budget.
    pub(super) const fn new(passes: PassTimes) -> Self {
        Self {
            passes,
            hit_rate: HitRate::new(INITIAL_RATE),
            is_tried: false,
            budget: 0.0,
            is_invested: false,
        }
    }

    /// Begins a new sequence.
    pub(super) const fn begin(&mut self) {
        self.is_invested = false;
    }

    /// What to do next, given the main model's pass times; `None` if drafting does not pay.
    pub(super) fn next(&mut self, model: &PassTimes, ask: DraftRequest) -> Option<DraftStep> {
        let step = model.step()?;
        let paying = self.paying(model, ask);
        self.is_invested |= paying.is_some() && ask.unread > ask.usual();
        let plan = paying.or_else(|| self.trial(model, ask))?;
        Some(DraftStep { reads: self.reads(step, ask.unread), plan })
    }

    fn paying(&self, model: &PassTimes, ask: DraftRequest) -> Option<DraftPlan> {
        let DraftRequest { due, unread, max, said, rest } = ask;
        let usual = ask.usual();
        let right = |_| self.hit_rate.share();
        let plan = model.best(due, max, right, |tokens| self.making(usual, tokens))?;
        let saved = (model.time(due) - 1.0 / plan.speed) * number(said.min(rest));
        let behind = self.passes.time(unread) - self.passes.time(usual);
        let may_lose = self.budget >= 0.0 || self.is_invested;
        (self.is_tried && may_lose && (unread == usual || saved > behind)).then_some(plan)
    }

    fn trial(
        &self,
        model: &PassTimes,
        DraftRequest { due, unread, max, .. }: DraftRequest,
    ) -> Option<DraftPlan> {
        let tokens = max.min(TRIAL_TOKENS);
        let verifying = model.time(due + tokens) - model.time(due);
        let costs = self.making(unread, tokens) + verifying;
        (tokens > 0 && self.budget >= costs).then_some(DraftPlan { tokens, speed: 0.0 })
    }

    /// Seconds to read `reads` tokens and then draft `tokens`.
    fn making(&self, reads: usize, tokens: usize) -> f64 {
        self.passes.time(reads) + self.passes.time(1) * number(tokens.saturating_sub(1))
    }

    /// How many of the unread tokens to read at once.
    fn reads(&self, step: f64, unread: usize) -> usize {
        let mut reads = MIN_CATCH_UP;
        while reads < unread && self.passes.time(2 * reads) <= MAX_PAUSE * step {
            reads *= 2;
        }
        reads.min(unread)
    }

    /// Notes time spent by the main model.
    pub(super) fn earn(&mut self, model: &PassTimes, time: Duration) {
        self.pay_in(model, INCOME_SHARE * time.as_secs_f64());
    }

    /// Notes a pass of `tokens` tokens of the draft model.
    pub(super) fn took(&mut self, model: &PassTimes, tokens: usize, time: Duration) {
        let max = Duration::from_secs_f64(MAX_OVERRUN * self.passes.time(tokens));
        let time = time.min(max);
        self.passes.took(tokens, time);
        self.pay_in(model, -time.as_secs_f64());
    }

    /// Notes the result of a draft after `due` tokens: how many tokens were right, and whether the next one was wrong.
    pub(super) fn judge(
        &mut self,
        model: &PassTimes,
        due: usize,
        drafted: usize,
        (right, was_wrong): (usize, bool),
    ) {
        self.is_tried = true;
        (0..right).for_each(|_| self.hit_rate.note(true));
        if was_wrong {
            self.hit_rate.note(false);
        }
        let verifying = model.time(due + drafted) - model.time(due);
        self.pay_in(model, model.time(1) * number(right) - verifying);
    }

    fn pay_in(&mut self, model: &PassTimes, seconds: f64) {
        self.budget = (self.budget + seconds).min(MAX_BUDGET * model.time(1));
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// A machine with this time for a pass of one token, and this much per further token, in milliseconds.
    #[derive(Clone, Copy)]
    struct Machine(f64, f64);

    const MODEL: Machine = Machine(40.0, 4.0);
    const SMALL: Machine = Machine(4.0, 0.4);

    impl Machine {
        fn time(self, tokens: usize) -> Duration {
            Duration::from_secs_f64((self.0 + self.1 * number(tokens - 1)) / 1e3)
        }

        fn passes(self) -> PassTimes {
            PassTimes::measured(self.time(1), 9, self.time(9))
        }
    }

    /// Simulates jobs with these times.
    struct World {
        model: PassTimes,
        budget: DraftBudget,
        random: StdRng,
        draft: Machine,
        /// Probability that a drafted token is right.
        right: f64,
        /// Time spent, time without a draft model, and the longest time between two tokens.
        spent: Duration,
        plain: Duration,
        pause: Duration,
        drafted: usize,
    }

    impl World {
        fn new(draft: Machine, right: f64) -> Self {
            let budget = DraftBudget::new(draft.passes());
            let (zero, random) = (Duration::ZERO, StdRng::seed_from_u64(1));
            let (spent, plain, pause) = (zero, zero, zero);
            Self { model: MODEL.passes(), budget, random, draft, right, spent, plain, pause, drafted: 0 }
        }

        fn run(&mut self, jobs: usize, prompt: usize, answer: usize) {
            (0..jobs).for_each(|_| self.job(prompt, answer));
        }

        fn job(&mut self, prompt: usize, answer: usize) {
            let (mut said, mut unread) = (1, prompt + 1);
            self.budget.begin();
            while said < answer {
                let began = self.spent;
                let rest = answer - said;
                let ask = DraftRequest { due: 1, unread, max: 15.min(rest - 1), said, rest };
                let next = self.budget.next(&self.model, ask);
                let count = next.map_or(0, |next| self.draft(&mut unread, next));
                let right = (0..count).take_while(|_| self.random.random_bool(self.right)).count();
                let pass = MODEL.time(1 + count);
                self.model.took(1 + count, pass);
                self.budget.earn(&self.model, pass);
                if count > 0 {
                    self.budget.judge(&self.model, 1, count, (right, right < count));
                    self.drafted += count;
                }
                self.spent += pass;
                self.plain += MODEL.time(1) * u32::try_from(right + 1).unwrap();
                self.pause = self.pause.max(self.spent - began);
                said += right + 1;
                unread += 1 + usize::from(count > 0 && right == count);
            }
        }

        /// How many tokens it drafts.
        fn draft(&mut self, unread: &mut usize, DraftStep { reads, plan }: DraftStep) -> usize {
            let pass = |world: &mut Self, tokens| {
                let time = world.draft.time(tokens);
                world.budget.took(&world.model, tokens, time);
                world.spent += time;
            };
            pass(self, reads);
            *unread -= reads;
            if *unread > 0 {
                return 0;
            }
            (1..plan.tokens).for_each(|_| pass(self, 1));
            plan.tokens
        }

        fn ratio(&self) -> f64 {
            self.spent.as_secs_f64() / self.plain.as_secs_f64()
        }
    }

    #[test]
    fn a_mostly_right_model_halves_the_time_of_answers() {
        let mut world = World::new(SMALL, 0.9);
        world.run(50, 60, 200);
        assert!(world.ratio() < 0.5, "{}", world.ratio());
    }

    #[test]
    fn a_model_that_is_never_right_costs_no_more_than_the_share() {
        for draft in [SMALL, MODEL] {
            let mut world = World::new(draft, 0.0);
            world.run(50, 20, 200);
            assert!(world.ratio() < 1.0 + INCOME_SHARE + 0.005, "{}", world.ratio());
            assert!(world.drafted > 0, "it was never tried");
        }
    }

    #[test]
    fn a_model_as_slow_as_the_main_model_is_not_used_even_if_always_right() {
        let mut world = World::new(MODEL, 1.0);
        world.run(50, 20, 200);
        let ratio = world.ratio();
        assert!(ratio < 1.0 + INCOME_SHARE + 0.005, "{ratio}");
        assert!(world.drafted * 10 < 50 * 200, "{}", world.drafted);
    }

    #[test]
    fn a_model_that_becomes_right_is_used_again_and_one_that_becomes_wrong_is_given_up() {
        let mut world = World::new(SMALL, 0.0);
        world.run(20, 20, 200);
        (world.right, world.spent, world.plain) = (0.9, Duration::ZERO, Duration::ZERO);
        world.run(50, 20, 200);
        assert!(world.ratio() < 0.6, "{}", world.ratio());
        (world.right, world.spent, world.plain) = (0.0, Duration::ZERO, Duration::ZERO);
        world.run(50, 20, 200);
        assert!(world.ratio() < 1.0 + INCOME_SHARE + 0.005, "{}", world.ratio());
    }

    #[test]
    fn a_long_prompt_is_read_only_for_a_long_answer_and_never_all_at_once() {
        let mut world = World::new(SMALL, 0.9);
        world.run(50, 60, 200);
        (world.spent, world.plain, world.pause, world.drafted) =
            (Duration::ZERO, Duration::ZERO, Duration::ZERO, 0);
        world.run(10, 8000, 10);
        assert_eq!(world.drafted, 0, "it would take as long as 80 steps");
        assert!(world.ratio() < 1.0 + INCOME_SHARE, "{}", world.ratio());
        world.run(10, 8000, 1000);
        assert!(world.ratio() < 0.65, "{}", world.ratio());
        assert!(world.pause < MODEL.time(1).mul_f64(MAX_PAUSE + 4.0), "{:?}", world.pause);
    }

    #[test]
    fn interrupted_passes_do_not_end_drafting_for_good() {
        let mut world = World::new(SMALL, 0.9);
        world.run(20, 60, 200);
        (0..9).for_each(|_| world.budget.took(&world.model, 1, Duration::from_secs(30)));
        (world.spent, world.plain) = (Duration::ZERO, Duration::ZERO);
        world.run(80, 60, 200);
        assert!(world.ratio() < 0.7, "{}", world.ratio());
    }

    #[test]
    fn nothing_is_drafted_before_the_first_step() {
        let ask = DraftRequest { due: 1, unread: 9, max: 15, said: 1, rest: 99 };
        assert_eq!(DraftBudget::new(SMALL.passes()).next(&PassTimes::default(), ask), None);
    }
}
