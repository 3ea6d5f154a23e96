//! Whether a draft model's guesses pay. Pure, as [`CostModel`](super::cost_model::CostModel) is.
//!
//! How often the text at hand repeats is learned from every token that is said. A draft model has to be run to be judged, and
//! before its first guess it has to read all that was said until then. So there is an account of time: a share of what the
//! model's own steps take is paid in, what the draft model takes and what verifying its guesses takes is paid out, and each
//! guess that is right pays in the step that it saved. From this follows what is done:
//!
//! - Guesses that are expected to pay are made while nothing is owed; once a prompt was read for them, to the end of its answer.
//! - Others are made as a trial, when the account has all that the trial can cost. This is how a draft model begins, and how
//!   one that was given up is seen to have become better.
//!
//! So over time no more than that share is lost to guesses that do not pay, but for what was expected to pay and did not, which
//! is owed first. Reading a long prompt is worth it only for an answer that is long enough. Nobody knows how long one will
//! be; it is taken to go on for as long as it has gone on so far, and then what is read in vain takes no more than was
//! saved by waiting.

use std::time::Duration;

use super::cost_model::{DraftPlan, HitRate, PassTimes, number};

/// What is paid in, as a share of the time that passes of the model take.
const SHARE: f64 = 0.02;

/// Most that is saved up, in steps of the model: no answer is held up for longer by a trial.
const MOST_SAVED: f64 = 32.0;

/// A pass counts for at most so many times what it was expected to take: one that was interrupted says nothing.
const MOST_COUNTED: f64 = 4.0;

/// Tokens of a trial: the first of them tells most.
const TRIAL: usize = 4;

/// What is believed before anything was tried.
const BELIEVED: f64 = 0.5;

/// Longest time that is read for before the next token is said, in steps of the model: whoever waits for it, supervision
/// among them, must not have to wait for all of a prompt.
const PAUSE: f64 = 8.0;

/// Tokens that are read at once in any case.
const LEAST_READ: usize = 16;

/// What is known of a draft model.
#[derive(Clone, Copy, Debug)]
pub(super) struct DraftBudget {
    passes: PassTimes,
    guesses: HitRate,
    is_tried: bool,
    /// Seconds that may be lost; below 0, that are owed.
    account: f64,
    /// More than the last few tokens of the text at hand was read because that was expected to pay.
    is_invested: bool,
}

/// What there is to guess.
#[derive(Clone, Copy, Debug)]
pub(super) struct DraftRequest {
    /// Tokens that are fed to the model in any case.
    pub(super) due: usize,
    /// Tokens that the draft model has not read, those among them.
    pub(super) unread: usize,
    /// Most tokens to guess.
    pub(super) most: usize,
    /// Tokens of the answer so far, and most that are still to come.
    pub(super) said: usize,
    pub(super) rest: usize,
}

impl DraftRequest {
    /// Tokens that are not read where nothing else is behind: what is due, and the last guess of the round before.
    fn usual(self) -> usize {
        self.unread.min(self.due + 1)
    }
}

/// What the draft model is to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DraftStep {
    /// Tokens to read. It guesses only if that is all of them.
    pub(super) reads: usize,
    /// What it then guesses; the speed of a trial is 0, as it is expected to gain nothing.
    pub(super) plan: DraftPlan,
}

impl DraftBudget {
    /// Nothing is known but what was measured of passes.
    pub(super) const fn new(passes: PassTimes) -> Self {
        Self { passes, guesses: HitRate::new(BELIEVED), is_tried: false, account: 0.0, is_invested: false }
    }

    /// Another text begins.
    pub(super) const fn begin(&mut self) {
        self.is_invested = false;
    }

    /// What to do for a model whose own passes take so long; `None` where it is not worth it.
    pub(super) fn next(&mut self, model: &PassTimes, ask: DraftRequest) -> Option<DraftStep> {
        let step = model.step()?;
        let paying = self.paying(model, ask);
        self.is_invested |= paying.is_some() && ask.unread > ask.usual();
        let plan = paying.or_else(|| self.trial(model, ask))?;
        Some(DraftStep { reads: self.reads(step, ask.unread), plan })
    }

    fn paying(&self, model: &PassTimes, ask: DraftRequest) -> Option<DraftPlan> {
        let DraftRequest { due, unread, most, said, rest } = ask;
        let usual = ask.usual();
        let right = |_| self.guesses.share();
        let plan = model.best(due, most, right, |tokens| self.making(usual, tokens))?;
        let saved = (model.time(due) - 1.0 / plan.speed) * number(said.min(rest));
        let behind = self.passes.time(unread) - self.passes.time(usual);
        let may_lose = self.account >= 0.0 || self.is_invested;
        (self.is_tried && may_lose && (unread == usual || saved > behind)).then_some(plan)
    }

    fn trial(
        &self,
        model: &PassTimes,
        DraftRequest { due, unread, most, .. }: DraftRequest,
    ) -> Option<DraftPlan> {
        let tokens = most.min(TRIAL);
        let verifying = model.time(due + tokens) - model.time(due);
        let costs = self.making(unread, tokens) + verifying;
        (tokens > 0 && self.account >= costs).then_some(DraftPlan { tokens, speed: 0.0 })
    }

    /// Seconds that it takes to read so many tokens and then guess others.
    fn making(&self, reads: usize, tokens: usize) -> f64 {
        self.passes.time(reads) + self.passes.time(1) * number(tokens.saturating_sub(1))
    }

    /// How much to read at once.
    fn reads(&self, step: f64, unread: usize) -> usize {
        let mut reads = LEAST_READ;
        while reads < unread && self.passes.time(2 * reads) <= PAUSE * step {
            reads *= 2;
        }
        reads.min(unread)
    }

    /// Notes that passes of the model took so long.
    pub(super) fn earn(&mut self, model: &PassTimes, time: Duration) {
        self.pay_in(model, SHARE * time.as_secs_f64());
    }

    /// Notes what a pass of so many tokens of the draft model took.
    pub(super) fn took(&mut self, model: &PassTimes, tokens: usize, time: Duration) {
        let most = Duration::from_secs_f64(MOST_COUNTED * self.passes.time(tokens));
        let time = time.min(most);
        self.passes.took(tokens, time);
        self.pay_in(model, -time.as_secs_f64());
    }

    /// Notes what became of a guess behind `due` tokens: so many of it were right, and whether the next was wrong.
    pub(super) fn judge(
        &mut self,
        model: &PassTimes,
        due: usize,
        guessed: usize,
        (right, was_wrong): (usize, bool),
    ) {
        self.is_tried = true;
        (0..right).for_each(|_| self.guesses.note(true));
        if was_wrong {
            self.guesses.note(false);
        }
        let verifying = model.time(due + guessed) - model.time(due);
        self.pay_in(model, model.time(1) * number(right) - verifying);
    }

    fn pay_in(&mut self, model: &PassTimes, seconds: f64) {
        self.account = (self.account + seconds).min(MOST_SAVED * model.time(1));
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// A machine on which a pass takes so many milliseconds, and so many more for each further token.
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

    /// Jobs that are computed on no machine but by these times.
    struct World {
        model: PassTimes,
        worth: DraftBudget,
        random: StdRng,
        draft: Machine,
        /// How often a guess is right.
        right: f64,
        /// All that was spent; what it would have been without a draft model; the longest time between two words.
        spent: Duration,
        plain: Duration,
        pause: Duration,
        guessed: usize,
    }

    impl World {
        fn new(draft: Machine, right: f64) -> Self {
            let worth = DraftBudget::new(draft.passes());
            let (zero, random) = (Duration::ZERO, StdRng::seed_from_u64(1));
            let (spent, plain, pause) = (zero, zero, zero);
            Self { model: MODEL.passes(), worth, random, draft, right, spent, plain, pause, guessed: 0 }
        }

        fn run(&mut self, jobs: usize, prompt: usize, answer: usize) {
            (0..jobs).for_each(|_| self.job(prompt, answer));
        }

        fn job(&mut self, prompt: usize, answer: usize) {
            let (mut said, mut unread) = (1, prompt + 1);
            self.worth.begin();
            while said < answer {
                let began = self.spent;
                let rest = answer - said;
                let ask = DraftRequest { due: 1, unread, most: 15.min(rest - 1), said, rest };
                let next = self.worth.next(&self.model, ask);
                let guess = next.map_or(0, |next| self.draft(&mut unread, next));
                let right = (0..guess).take_while(|_| self.random.random_bool(self.right)).count();
                let pass = MODEL.time(1 + guess);
                self.model.took(1 + guess, pass);
                self.worth.earn(&self.model, pass);
                if guess > 0 {
                    self.worth.judge(&self.model, 1, guess, (right, right < guess));
                    self.guessed += guess;
                }
                self.spent += pass;
                self.plain += MODEL.time(1) * u32::try_from(right + 1).unwrap();
                self.pause = self.pause.max(self.spent - began);
                said += right + 1;
                unread += 1 + usize::from(guess > 0 && right == guess);
            }
        }

        /// How many it guesses.
        fn draft(&mut self, unread: &mut usize, DraftStep { reads, plan }: DraftStep) -> usize {
            let pass = |world: &mut Self, tokens| {
                let time = world.draft.time(tokens);
                world.worth.took(&world.model, tokens, time);
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
    fn one_that_is_mostly_right_is_used_and_answers_take_half_as_long() {
        let mut world = World::new(SMALL, 0.9);
        world.run(50, 60, 200);
        assert!(world.ratio() < 0.5, "{}", world.ratio());
    }

    #[test]
    fn one_that_is_never_right_costs_no_more_than_its_share() {
        for draft in [SMALL, MODEL] {
            let mut world = World::new(draft, 0.0);
            world.run(50, 20, 200);
            assert!(world.ratio() < 1.0 + SHARE + 0.005, "{}", world.ratio());
            assert!(world.guessed > 0, "it was never tried");
        }
    }

    #[test]
    fn one_that_takes_as_long_as_the_model_itself_is_not_used_however_right_it_is() {
        let mut world = World::new(MODEL, 1.0);
        world.run(50, 20, 200);
        let ratio = world.ratio();
        assert!(ratio < 1.0 + SHARE + 0.005, "{ratio}");
        assert!(world.guessed * 10 < 50 * 200, "{}", world.guessed);
    }

    #[test]
    fn one_that_becomes_right_is_found_out_and_one_that_ceases_to_be_is_given_up() {
        let mut world = World::new(SMALL, 0.0);
        world.run(20, 20, 200);
        (world.right, world.spent, world.plain) = (0.9, Duration::ZERO, Duration::ZERO);
        world.run(50, 20, 200);
        assert!(world.ratio() < 0.6, "{}", world.ratio());
        (world.right, world.spent, world.plain) = (0.0, Duration::ZERO, Duration::ZERO);
        world.run(50, 20, 200);
        assert!(world.ratio() < 1.0 + SHARE + 0.005, "{}", world.ratio());
    }

    #[test]
    fn a_long_prompt_is_read_for_a_long_answer_alone_and_never_all_at_once() {
        let mut world = World::new(SMALL, 0.9);
        world.run(50, 60, 200);
        (world.spent, world.plain, world.pause, world.guessed) =
            (Duration::ZERO, Duration::ZERO, Duration::ZERO, 0);
        world.run(10, 8000, 10);
        assert_eq!(world.guessed, 0, "it would take as long as 80 steps");
        assert!(world.ratio() < 1.0 + SHARE, "{}", world.ratio());
        world.run(10, 8000, 1000);
        assert!(world.ratio() < 0.65, "{}", world.ratio());
        assert!(world.pause < MODEL.time(1).mul_f64(PAUSE + 4.0), "{:?}", world.pause);
    }

    #[test]
    fn no_pass_however_interrupted_ends_it_for_good() {
        let mut world = World::new(SMALL, 0.9);
        world.run(20, 60, 200);
        (0..9).for_each(|_| world.worth.took(&world.model, 1, Duration::from_secs(30)));
        (world.spent, world.plain) = (Duration::ZERO, Duration::ZERO);
        world.run(80, 60, 200);
        assert!(world.ratio() < 0.7, "{}", world.ratio());
    }

    #[test]
    fn before_a_step_was_seen_nothing_is_done() {
        let ask = DraftRequest { due: 1, unread: 9, most: 15, said: 1, rest: 99 };
        assert_eq!(DraftBudget::new(SMALL.passes()).next(&PassTimes::default(), ask), None);
    }
}
