//! Who is next: the one place where a job may go before another that came earlier.
//!
//! Two rules, one within the other, and neither without an end:
//!
//! 1. *Priority.* Interactive jobs go before batch jobs. When `max_overtakes` of them in a row went before a batch job that
//!    came earlier, it is a batch job's turn. So a batch job with `b` others ahead of it sees at most
//!    `max_overtakes · (b + 1)` later jobs go first, however many come.
//! 2. *Switches*, among jobs of the priority whose turn it is. After [`Switching::most`] loads in a row, one whose model is
//!    loaded goes before the first, whose model is not. No job is passed over for this twice while it is first.
//!
//! The rule says who is next among those that wait, and changes nothing else: a job that was accepted keeps its place also
//! when the queue is full, because what was promised to one client is not another's to take.

use std::{fmt, num::NonZeroUsize, sync::Arc};

use crate::job::{ModelId, Priority};

/// How often in a row interactive jobs go before an earlier batch job, unless the settings say otherwise.
const MAX_OVERTAKES: usize = 4;

/// How often in a row a job may be taken whose model has to be loaded first, while one of its priority waits whose model is
/// there.
///
/// Jobs of two models that alternate would have each of them loaded again and again. Every job that is passed over is
/// first in line for the next switch, so none waits for more than the jobs of `most` switches and one more.
#[derive(Clone)]
pub struct Switching {
    /// Switches in a row.
    pub most: NonZeroUsize,
    /// Whether a model is loaded.
    pub is_loaded: Arc<dyn Fn(&ModelId) -> bool + Send + Sync>,
}

impl fmt::Debug for Switching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switching").field("most", &self.most).finish_non_exhaustive()
    }
}

/// What the rule wants to know of a job that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) priority: Priority,
    pub(super) model: &'a ModelId,
    /// It was the first of its priority once, and another went because its model was loaded.
    pub(super) was_passed_over: bool,
}

/// Who is next, by places in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) place: usize,
    /// Whoever was passed over because its model is not loaded.
    pub(super) passed_over: Option<usize>,
}

/// What the rule remembers.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) max_overtakes: usize,
    /// Interactive jobs in a row that went before an earlier batch job.
    overtakes: usize,
    pub(super) switching: Option<Switching>,
    /// Jobs taken in a row whose model was not loaded.
    switches: usize,
}

impl Order {
    pub(super) const fn new() -> Self {
        Self { max_overtakes: MAX_OVERTAKES, overtakes: 0, switching: None, switches: 0 }
    }

    /// The next of those that wait, in the order they came.
    pub(super) fn next<'a>(&mut self, waiting: impl Iterator<Item = Candidate<'a>> + Clone) -> Option<Next> {
        let first_batch = waiting.clone().position(|one| one.priority == Priority::Batch);
        let turn = self.turn(first_batch, waiting.clone())?;
        let next = self.among(waiting.enumerate().filter(|(_, one)| one.priority == turn))?;
        match turn {
            Priority::Batch => self.overtakes = 0,
            Priority::Interactive if first_batch.is_some_and(|batch| batch < next.place) => {
                self.overtakes += 1;
            }
            Priority::Interactive => {}
        }
        Some(next)
    }

    /// How many batch jobs go before an interactive one that has so many interactive ones ahead of it, at most.
    pub(super) fn batch_turns(&self, interactive: usize) -> usize {
        (self.overtakes + interactive).checked_div(self.max_overtakes).unwrap_or(usize::MAX)
    }

    /// The priority whose turn it is.
    fn turn<'a>(
        &self,
        first_batch: Option<usize>,
        mut waiting: impl Iterator<Item = Candidate<'a>>,
    ) -> Option<Priority> {
        let first_interactive = waiting.position(|one| one.priority == Priority::Interactive);
        match (first_interactive, first_batch) {
            (None, None) => None,
            (None, Some(_)) => Some(Priority::Batch),
            (Some(later), Some(batch)) if batch < later && self.overtakes >= self.max_overtakes => {
                Some(Priority::Batch)
            }
            (Some(_), _) => Some(Priority::Interactive),
        }
    }

    /// The first of these, unless that would be one switch of models too many.
    fn among<'a>(&mut self, mut these: impl Iterator<Item = (usize, Candidate<'a>)>) -> Option<Next> {
        let (place, first) = these.next()?;
        let Some(Switching { most, is_loaded }) = &self.switching else {
            return Some(Next { place, passed_over: None });
        };
        if is_loaded(first.model) {
            self.switches = 0;
            return Some(Next { place, passed_over: None });
        }
        if self.switches >= most.get()
            && !first.was_passed_over
            && let Some((loaded, _)) = these.find(|(_, one)| is_loaded(one.model))
        {
            self.switches = 0;
            return Some(Next { place: loaded, passed_over: Some(place) });
        }
        self.switches += 1;
        Some(Next { place, passed_over: None })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    struct Waiting {
        id: usize,
        priority: Priority,
        model: ModelId,
        was_passed_over: bool,
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

    fn spelt(job: &Waiting) -> char {
        let letter = if job.priority == Priority::Batch { 'b' } else { 'i' };
        if job.model == ModelId::from("upper") { letter.to_ascii_uppercase() } else { letter }
    }

    /// A queue of nothing but what the rule wants to know.
    struct Line {
        order: Order,
        waiting: Vec<Waiting>,
        loaded: Arc<std::sync::Mutex<ModelId>>,
        came: usize,
    }

    impl Line {
        fn new(max_overtakes: usize, most_switches: Option<usize>) -> Self {
            let loaded = Arc::new(std::sync::Mutex::new(ModelId::from("lower")));
            let held = Arc::clone(&loaded);
            let switching = most_switches.and_then(NonZeroUsize::new).map(|most| Switching {
                most,
                is_loaded: Arc::new(move |model: &ModelId| *model == *held.lock().unwrap()),
            });
            let order = Order { max_overtakes, switching, ..Order::new() };
            Self { order, waiting: Vec::new(), loaded, came: 0 }
        }

        fn push(&mut self, job: char) {
            let is_batch = job.eq_ignore_ascii_case(&'b');
            let priority = if is_batch { Priority::Batch } else { Priority::Interactive };
            let model = if job.is_uppercase() { "upper" } else { "lower" }.into();
            self.waiting.push(Waiting { id: self.came, priority, model, was_passed_over: false });
            self.came += 1;
        }

        /// The next job, and those that came before it and still wait.
        fn take(&mut self) -> Option<(Waiting, Vec<usize>)> {
            let candidates = self.waiting.iter().map(|one| Candidate {
                priority: one.priority,
                model: &one.model,
                was_passed_over: one.was_passed_over,
            });
            let next = self.order.next(candidates)?;
            if let Some(passed_over) = next.passed_over {
                self.waiting[passed_over].was_passed_over = true;
            }
            let overtaken = self.waiting[..next.place].iter().map(|one| one.id).collect();
            let taken = self.waiting.remove(next.place);
            *self.loaded.lock().unwrap() = taken.model.clone();
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
