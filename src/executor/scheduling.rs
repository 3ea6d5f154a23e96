//! Who is next: the one place where a job may go before another that came earlier.
//!
//! Two rules, one within the other, and neither without an end:
//!
//! 1. *Priority.* Interactive jobs go before batch jobs. When `max_overtakes` of them in a row went before a batch job that
//!    came earlier, it is a batch job's turn. So a batch job with `b` others ahead of it sees at most
//!    `max_overtakes · (b + 1)` later jobs go first, however many come.
//! 2. *Switches*, among jobs of the priority whose turn it is. After [`SlotRule::most_switches`] loads in a row on a slot, one
//!    whose model it has goes before the first, whose model it has not. No job is passed over for this by a slot twice.
//!
//! The rule says who is next among those that wait, and changes nothing else: a job that was accepted keeps its place also
//! when the queue is full, because what was promised to one client is not another's to take.

use std::num::NonZeroUsize;

use crate::job::{ModelId, Priority};

/// How often in a row interactive jobs go before an earlier batch job, unless the settings say otherwise.
const MAX_OVERTAKES: usize = 4;

/// What the rule wants to know of a job that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) priority: Priority,
    pub(super) model: &'a ModelId,
    /// How often it was the first of its priority, and another went because its model was loaded.
    pub(super) passed_over: usize,
}

/// What the rule wants to know of the slot that takes a job.
pub(super) struct SlotRule<'a> {
    /// Switches of models in a row; `None` is no limit.
    pub(super) most_switches: Option<NonZeroUsize>,
    /// So many there were.
    pub(super) switches: usize,
    /// How often a job may be passed over: once by each slot.
    pub(super) most_passes: usize,
    pub(super) is_loaded: &'a dyn Fn(&ModelId) -> bool,
}

/// Who is next, by places in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) place: usize,
    /// Whoever was passed over because its model is not loaded.
    pub(super) passed_over: Option<usize>,
    /// How many switches in a row the slot has made with this one.
    pub(super) switches: usize,
    priority: Priority,
    /// A batch job that came earlier waits on.
    overtakes: bool,
}

/// What the rule remembers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scheduler {
    pub(super) max_overtakes: usize,
    /// Interactive jobs in a row that went before an earlier batch job.
    overtakes: usize,
}

impl Scheduler {
    pub(super) const fn new() -> Self {
        Self { max_overtakes: MAX_OVERTAKES, overtakes: 0 }
    }

    /// The model of the first whose turn it is.
    pub(super) fn first<'a>(
        &self,
        mut waiting: impl Iterator<Item = (usize, Candidate<'a>)> + Clone,
    ) -> Option<&'a ModelId> {
        let turn = self.turn(waiting.clone())?;
        waiting.find(|(_, one)| one.priority == turn).map(|(_, one)| one.model)
    }

    /// The next of those that wait, with their places in the order they came, for a slot that takes one.
    pub(super) fn choose<'a>(
        &self,
        waiting: impl Iterator<Item = (usize, Candidate<'a>)> + Clone,
        slot: &SlotRule<'_>,
    ) -> Option<Pick> {
        let priority = self.turn(waiting.clone())?;
        let first_batch = place_of(waiting.clone(), Priority::Batch);
        let mut these = waiting.filter(|(_, one)| one.priority == priority);
        let (first, candidate) = these.next()?;
        let is_loaded = |model: &ModelId| (slot.is_loaded)(model);
        let (place, passed_over, switches) = if is_loaded(candidate.model) {
            (first, None, 0)
        } else if slot.most_switches.is_some_and(|most| slot.switches >= most.get())
            && candidate.passed_over < slot.most_passes
            && let Some((loaded, _)) = these.find(|(_, one)| is_loaded(one.model))
        {
            (loaded, Some(first), 0)
        } else {
            (first, None, slot.switches + 1)
        };
        let overtakes = priority == Priority::Interactive && first_batch.is_some_and(|batch| batch < place);
        Some(Pick { place, passed_over, switches, priority, overtakes })
    }

    /// Remembers that this one was taken.
    pub(super) const fn took(&mut self, next: Pick) {
        match next.priority {
            Priority::Batch => self.overtakes = 0,
            Priority::Interactive if next.overtakes => self.overtakes += 1,
            Priority::Interactive => {}
        }
    }

    /// How many batch jobs go before an interactive one that has so many interactive ones ahead of it, at most.
    pub(super) fn batch_turns(&self, interactive: usize) -> usize {
        (self.overtakes + interactive).checked_div(self.max_overtakes).unwrap_or(usize::MAX)
    }

    /// The priority whose turn it is.
    fn turn<'a>(&self, waiting: impl Iterator<Item = (usize, Candidate<'a>)> + Clone) -> Option<Priority> {
        let first_batch = place_of(waiting.clone(), Priority::Batch);
        match (place_of(waiting, Priority::Interactive), first_batch) {
            (None, None) => None,
            (None, Some(_)) => Some(Priority::Batch),
            (Some(later), Some(batch)) if batch < later && self.overtakes >= self.max_overtakes => {
                Some(Priority::Batch)
            }
            (Some(_), _) => Some(Priority::Interactive),
        }
    }
}

fn place_of<'a>(
    mut waiting: impl Iterator<Item = (usize, Candidate<'a>)>,
    priority: Priority,
) -> Option<usize> {
    waiting.find(|(_, one)| one.priority == priority).map(|(place, _)| place)
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

    /// Takes jobs of these priorities and models (`iIbB`: upper case is another model), all there from the beginning;
    /// whichever ran last is loaded.
    fn taken(jobs: &str, max_overtakes: usize, most_switches: Option<usize>) -> String {
        let mut line = Line::new(max_overtakes, most_switches);
        jobs.chars().for_each(|job| line.push(job));
        let mut taken = String::new();
        while let Some((job, _)) = line.take() {
            taken.push(spelt(&job));
        }
        taken
    }

    fn spelt(job: &WaitingJobInfo) -> char {
        let letter = if job.priority == Priority::Batch { 'b' } else { 'i' };
        if job.model == ModelId::from("upper") { letter.to_ascii_uppercase() } else { letter }
    }

    /// A queue of nothing but what the rule wants to know, and one slot.
    struct Line {
        order: Scheduler,
        waiting: Vec<WaitingJobInfo>,
        loaded: ModelId,
        most_switches: Option<NonZeroUsize>,
        switches: usize,
        came: usize,
    }

    impl Line {
        fn new(max_overtakes: usize, most_switches: Option<usize>) -> Self {
            Self {
                order: Scheduler { max_overtakes, ..Scheduler::new() },
                waiting: Vec::new(),
                loaded: ModelId::from("lower"),
                most_switches: most_switches.and_then(NonZeroUsize::new),
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

        /// The next job, and those that came before it and still wait.
        fn take(&mut self) -> Option<(WaitingJobInfo, Vec<usize>)> {
            let candidates = self.waiting.iter().enumerate().map(|(place, one)| {
                let WaitingJobInfo { priority, model, passed_over, .. } = one;
                (place, Candidate { priority: *priority, model, passed_over: *passed_over })
            });
            let rule = SlotRule {
                most_switches: self.most_switches,
                switches: self.switches,
                most_passes: 1,
                is_loaded: &|model| *model == self.loaded,
            };
            let next = self.order.choose(candidates, &rule)?;
            self.order.took(next);
            self.switches = next.switches;
            if let Some(passed_over) = next.passed_over {
                self.waiting[passed_over].passed_over += 1;
            }
            let overtaken = self.waiting[..next.place].iter().map(|one| one.id).collect();
            let taken = self.waiting.remove(next.place);
            self.loaded = taken.model.clone();
            Some((taken, overtaken))
        }
    }

    #[test]
    fn interactive_jobs_go_first_and_batch_jobs_have_their_turn() {
        assert_eq!(taken("bbiiiii", 2, None), "iibiibi");
        assert_eq!(taken("bbiiiii", 9, None), "iiiiibb");
        assert_eq!(taken("iiib", 1, None), "iiib", "who came first overtakes nobody");
    }

    #[test]
    fn without_overtaking_jobs_go_in_the_order_they_came() {
        assert_eq!(taken("bibiib", 0, None), "bibiib");
    }

    #[test]
    fn switches_are_counted_within_the_priority_whose_turn_it_is() {
        assert_eq!(taken("bBIiIi", 9, Some(1)), "IIiibB");
        assert_eq!(taken("BIbi", 9, None), "IiBb");
    }

    fn jobs() -> impl Strategy<Value = Vec<Option<char>>> {
        // `None` is a turn of the slot.
        prop::collection::vec(
            prop::option::weighted(0.6, prop::sample::select(vec!['i', 'I', 'b', 'B'])),
            1..200,
        )
    }

    proptest! {
        /// Whatever comes, and whenever the slot is free: nobody waits for ever.
        #[test]
        fn no_job_is_overtaken_more_often_than_the_rule_says(
            events in jobs(),
            max_overtakes in 0_usize..6,
            most_switches in prop::option::of(1_usize..4),
        ) {
            let mut line = Line::new(max_overtakes, most_switches);
            let mut allowed = HashMap::new();
            let mut overtaken: HashMap<usize, usize> = HashMap::new();
            let mut taken = 0;
            let rest = std::iter::repeat_n(None, events.len());
            for event in events.iter().copied().chain(rest) {
                if let Some(job) = event {
                    let ahead = |priority| line.waiting.iter().filter(|one| one.priority == priority).count();
                    let (batch, interactive) = (ahead(Priority::Batch), ahead(Priority::Interactive));
                    let own = if job.eq_ignore_ascii_case(&'b') { batch } else { interactive };
                    // Each that is ahead may be passed over once, by one that came later.
                    let turns = if most_switches.is_some() { 2 * (own + 1) } else { own + 1 };
                    let passed = if most_switches.is_some() { batch + interactive + 1 } else { 0 };
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
        fn jobs_of_one_priority_and_one_model_go_in_the_order_they_came(events in jobs()) {
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
