//! The order of jobs: the only place where a job may overtake an earlier one.
//!
//! There are two rules, and both are bounded:
//!
//! 1. *Priority.* Interactive jobs go before batch jobs. After `max_overtakes` of them in a row have overtaken a batch job, a batch
//!    job is next. So at most `max_overtakes · (b + 1)` later jobs overtake a batch job with `b` batch jobs ahead of it.
//! 2. *Model switches*, among jobs of the priority that is next. After [`SlotRule::max_switches`] model loads in a row on a slot, a
//!    job whose model is loaded goes before the first job, whose model is not. Each slot passes over a job at most once.
//!
//! A job that was accepted is never removed from a full queue in favour of another.

use std::num::NonZeroUsize;

use crate::job::{ModelId, Priority};

/// Default limit of interactive jobs in a row that overtake a batch job.
const MAX_OVERTAKES: usize = 4;

/// A waiting job, as far as the rules need it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) priority: Priority,
    pub(super) model: &'a ModelId,
    /// How often a job with a loaded model was taken instead of it.
    pub(super) passed_over: usize,
}

/// The slot that takes a job.
pub(super) struct SlotRule<'a> {
    /// Maximum number of model switches in a row; `None` means no limit.
    pub(super) max_switches: Option<NonZeroUsize>,
    /// Model switches in a row so far.
    pub(super) switches: usize,
    /// How often a job may be passed over: once by each slot.
    pub(super) max_passes: usize,
    pub(super) is_loaded: &'a dyn Fn(&ModelId) -> bool,
}

/// The next job, by index in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) index: usize,
    /// The job that was passed over because its model is not loaded.
    pub(super) passed_over: Option<usize>,
    /// Model switches in a row of the slot, this job included.
    pub(super) switches: usize,
    priority: Priority,
    /// It overtakes an earlier batch job.
    overtakes: bool,
}

/// The state of the rules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scheduler {
    pub(super) max_overtakes: usize,
    /// Interactive jobs in a row that have overtaken a batch job.
    overtakes: usize,
}

impl Scheduler {
    pub(super) const fn new() -> Self {
        Self { max_overtakes: MAX_OVERTAKES, overtakes: 0 }
    }

    /// The model of the first job of the priority that is next.
    pub(super) fn first<'a>(
        &self,
        mut waiting: impl Iterator<Item = (usize, Candidate<'a>)> + Clone,
    ) -> Option<&'a ModelId> {
        let turn = self.next_priority(waiting.clone())?;
        waiting.find(|(_, one)| one.priority == turn).map(|(_, one)| one.model)
    }

    /// The next of the waiting jobs for a slot. `waiting` has the jobs with their indices, in the order of arrival.
    pub(super) fn choose<'a>(
        &self,
        waiting: impl Iterator<Item = (usize, Candidate<'a>)> + Clone,
        slot: &SlotRule<'_>,
    ) -> Option<Pick> {
        let priority = self.next_priority(waiting.clone())?;
        let first_batch = index_of(waiting.clone(), Priority::Batch);
        let mut these = waiting.filter(|(_, one)| one.priority == priority);
        let (first, candidate) = these.next()?;
        let is_loaded = |model: &ModelId| (slot.is_loaded)(model);
        let (index, passed_over, switches) = if is_loaded(candidate.model) {
            (first, None, 0)
        } else if slot.max_switches.is_some_and(|max| slot.switches >= max.get())
            && candidate.passed_over < slot.max_passes
            && let Some((loaded, _)) = these.find(|(_, one)| is_loaded(one.model))
        {
            (loaded, Some(first), 0)
        } else {
            (first, None, slot.switches + 1)
        };
        let overtakes = priority == Priority::Interactive && first_batch.is_some_and(|batch| batch < index);
        Some(Pick { index, passed_over, switches, priority, overtakes })
    }

    /// Notes that this job was taken.
    pub(super) const fn took(&mut self, next: Pick) {
        match next.priority {
            Priority::Batch => self.overtakes = 0,
            Priority::Interactive if next.overtakes => self.overtakes += 1,
            Priority::Interactive => {}
        }
    }

    /// Maximum number of batch jobs that go before an interactive job with this many interactive jobs ahead of it.
    pub(super) fn batch_turns(&self, interactive: usize) -> usize {
        (self.overtakes + interactive).checked_div(self.max_overtakes).unwrap_or(usize::MAX)
    }

    /// The priority that is next.
    fn next_priority<'a>(
        &self,
        waiting: impl Iterator<Item = (usize, Candidate<'a>)> + Clone,
    ) -> Option<Priority> {
        let first_batch = index_of(waiting.clone(), Priority::Batch);
        match (index_of(waiting, Priority::Interactive), first_batch) {
            (None, None) => None,
            (None, Some(_)) => Some(Priority::Batch),
            (Some(later), Some(batch)) if batch < later && self.overtakes >= self.max_overtakes => {
                Some(Priority::Batch)
            }
            (Some(_), _) => Some(Priority::Interactive),
        }
    }
}

fn index_of<'a>(
    mut waiting: impl Iterator<Item = (usize, Candidate<'a>)>,
    priority: Priority,
) -> Option<usize> {
    waiting.find(|(_, one)| one.priority == priority).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    struct WaitingJobInfo {
        id: usize,
        priority: Priority,
        model: ModelId,
        passed_over: usize,
    }

    /// Takes jobs of these priorities and models (`iIbB`: upper case is another model), all waiting from the start. The model that
    /// ran last is loaded.
    fn taken(jobs: &str, max_overtakes: usize, max_switches: Option<usize>) -> String {
        let mut line = Line::new(max_overtakes, max_switches);
        jobs.chars().for_each(|job| line.push(job));
        let mut taken = String::new();
        while let Some((job, _)) = line.take() {
            taken.push(letter(&job));
        }
        taken
    }

    fn letter(job: &WaitingJobInfo) -> char {
        let letter = if job.priority == Priority::Batch { 'b' } else { 'i' };
        if job.model == ModelId::from("upper") { letter.to_ascii_uppercase() } else { letter }
    }

    /// A minimal queue with one slot.
    struct Line {
        order: Scheduler,
        waiting: Vec<WaitingJobInfo>,
        loaded: ModelId,
        max_switches: Option<NonZeroUsize>,
        switches: usize,
        came: usize,
    }

    impl Line {
        fn new(max_overtakes: usize, max_switches: Option<usize>) -> Self {
            Self {
                order: Scheduler { max_overtakes, ..Scheduler::new() },
                waiting: Vec::new(),
                loaded: ModelId::from("lower"),
                max_switches: max_switches.and_then(NonZeroUsize::new),
                switches: 0,
                came: 0,
            }
        }

        fn push(&mut self, job: char) {
            let is_batch = job.eq_ignore_ascii_case(&'b');
            let priority = if is_batch { Priority::Batch } else { Priority::Interactive };
            let model = if job.is_uppercase() { "upper" } else { "lower" }.into();
            self.waiting.push(WaitingJobInfo { id: self.came, priority, model, passed_over: 0 });
            self.came += 1;
        }

        /// The next job, and the earlier jobs that still wait.
        fn take(&mut self) -> Option<(WaitingJobInfo, Vec<usize>)> {
            let candidates = self.waiting.iter().enumerate().map(|(index, one)| {
                let WaitingJobInfo { priority, model, passed_over, .. } = one;
                (index, Candidate { priority: *priority, model, passed_over: *passed_over })
            });
            let rule = SlotRule {
                max_switches: self.max_switches,
                switches: self.switches,
                max_passes: 1,
                is_loaded: &|model| *model == self.loaded,
            };
            let next = self.order.choose(candidates, &rule)?;
            self.order.took(next);
            self.switches = next.switches;
            if let Some(passed_over) = next.passed_over {
                self.waiting[passed_over].passed_over += 1;
            }
            let overtaken = self.waiting[..next.index].iter().map(|one| one.id).collect();
            let taken = self.waiting.remove(next.index);
            self.loaded = taken.model.clone();
            Some((taken, overtaken))
        }
    }

    #[test]
    fn interactive_jobs_go_first_and_batch_jobs_are_not_starved() {
        assert_eq!(taken("bbiiiii", 2, None), "iibiibi");
        assert_eq!(taken("bbiiiii", 9, None), "iiiiibb");
        assert_eq!(taken("iiib", 1, None), "iiib", "the first job overtakes no other");
    }

    #[test]
    fn without_overtaking_jobs_run_in_order_of_arrival() {
        assert_eq!(taken("bibiib", 0, None), "bibiib");
    }

    #[test]
    fn switches_are_counted_within_the_priority_that_is_next() {
        assert_eq!(taken("bBIiIi", 9, Some(1)), "IIiibB");
        assert_eq!(taken("BIbi", 9, None), "IiBb");
    }

    fn jobs() -> impl Strategy<Value = Vec<Option<char>>> {
        // `None`: the slot takes a job.
        prop::collection::vec(
            prop::option::weighted(0.6, prop::sample::select(vec!['i', 'I', 'b', 'B'])),
            1..200,
        )
    }

    proptest! {
        /// No job waits for ever, in any order of arrivals and free slots.
        #[test]
        fn no_job_is_overtaken_more_often_than_the_rule_says(
            events in jobs(),
            max_overtakes in 0_usize..6,
            max_switches in prop::option::of(1_usize..4),
        ) {
            let mut line = Line::new(max_overtakes, max_switches);
            let mut allowed = HashMap::new();
            let mut overtaken: HashMap<usize, usize> = HashMap::new();
            let mut taken = 0;
            let rest = std::iter::repeat_n(None, events.len());
            for event in events.iter().copied().chain(rest) {
                if let Some(job) = event {
                    let ahead = |priority| line.waiting.iter().filter(|one| one.priority == priority).count();
                    let (batch, interactive) = (ahead(Priority::Batch), ahead(Priority::Interactive));
                    let own = if job.eq_ignore_ascii_case(&'b') { batch } else { interactive };
                    // Each job ahead may be passed over once, for a later one.
                    let turns = if max_switches.is_some() { 2 * (own + 1) } else { own + 1 };
                    let passed = if max_switches.is_some() { batch + interactive + 1 } else { 0 };
                    let by_priority = if job.eq_ignore_ascii_case(&'b') { max_overtakes * turns } else { 0 };
                    allowed.insert(line.came, by_priority + passed);
                    line.push(job);
                } else if let Some((_, passed)) = line.take() {
                    taken += 1;
                    for id in passed {
                        *overtaken.entry(id).or_default() += 1;
                    }
                }
            }
            prop_assert_eq!(taken, line.came, "every job is taken");
            for (id, times) in overtaken {
                prop_assert!(times <= allowed[&id], "job {id} was overtaken {times} times, {} at most", allowed[&id]);
            }
        }

        #[test]
        fn jobs_of_one_priority_and_one_model_run_in_order_of_arrival(events in jobs()) {
            let mut line = Line::new(3, None);
            let mut last = HashMap::new();
            for event in &events {
                match event {
                    Some(job) => line.push(*job),
                    None => if let Some((job, _)) = line.take() {
                        let before = last.insert(job.priority, job.id);
                        prop_assert!(before.is_none_or(|before| before < job.id));
                    }
                }
            }
        }
    }
}
