//! In which order a node asks for the jobs of its pools and classes, so that none waits for ever. Pure.

use crate::cluster::subjects::Class;

/// Which jobs a node has taken.
#[derive(Debug)]
pub(super) struct Turns {
    /// Jobs in a row that may overtake those of a lower class, and those of models that are not loaded.
    max_overtakes: usize,
    /// Interactive jobs since the last batch job.
    overtakes: usize,
    /// Jobs since the last one whose model was not loaded.
    without_load: usize,
    /// Offered jobs since the last ticket.
    offered: usize,
    /// When each pool had its last job, counted in jobs.
    last: Vec<u64>,
    jobs: u64,
}

impl Turns {
    pub(super) fn new(pools: usize, max_overtakes: usize) -> Self {
        Self { max_overtakes, overtakes: 0, without_load: 0, offered: 0, last: vec![0; pools], jobs: 0 }
    }

    /// Resumed jobs first, then interactive ones, unless too many have overtaken batch jobs.
    pub(super) const fn classes(&self) -> [Class; 3] {
        if self.overtakes >= self.max_overtakes {
            [Class::Resumed, Class::Batch, Class::Interactive]
        } else {
            Class::ALL
        }
    }

    /// The indices of the pools. Loading a model takes long, so those that are loaded are first, unless too many of their jobs have
    /// overtaken others; of these, the one that has waited longest.
    pub(super) fn pools(&self, is_loaded: impl Fn(usize) -> bool) -> Vec<usize> {
        let loaded_first = self.without_load < self.max_overtakes.max(1);
        let mut pools: Vec<usize> = (0..self.last.len()).collect();
        pools.sort_by_key(|pool| (is_loaded(*pool) != loaded_first, self.last[*pool]));
        pools
    }

    /// Whether an offered job goes before tickets.
    pub(super) const fn offer_is_next(&self) -> bool {
        self.offered < self.max_overtakes
    }

    pub(super) const fn took_offer(&mut self) {
        self.offered += 1;
    }

    /// Notes a ticket of a class and a pool, if that is known.
    pub(super) fn took(&mut self, class: Option<Class>, pool: Option<usize>, is_loaded: bool) {
        self.offered = 0;
        match class {
            Some(Class::Interactive) => self.overtakes += 1,
            Some(Class::Batch) => self.overtakes = 0,
            Some(Class::Resumed) | None => {}
        }
        self.without_load = if is_loaded { self.without_load + 1 } else { 0 };
        self.jobs += 1;
        if let Some(last) = pool.and_then(|pool| self.last.get_mut(pool)) {
            *last = self.jobs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_jobs_wait_for_a_limited_number_of_interactive_ones() {
        let mut turns = Turns::new(1, 2);
        for _ in 0..2 {
            assert_eq!(turns.classes(), Class::ALL);
            turns.took(Some(Class::Interactive), Some(0), true);
        }
        assert_eq!(turns.classes()[1], Class::Batch);
        turns.took(Some(Class::Batch), Some(0), true);
        assert_eq!(turns.classes()[1], Class::Interactive);
    }

    #[test]
    fn every_pool_has_its_turn_although_all_have_jobs() {
        let (mut turns, mut loaded, mut taken) = (Turns::new(3, 4), 0, [0; 3]);
        for _ in 0..60 {
            let pool = turns.pools(|pool| pool == loaded)[0];
            turns.took(Some(Class::Interactive), Some(pool), pool == loaded);
            loaded = pool;
            taken[pool] += 1;
        }
        assert!(taken.iter().all(|jobs| (15..=25).contains(jobs)), "{taken:?}");
    }

    #[test]
    fn two_loaded_models_take_turns() {
        let mut turns = Turns::new(2, 100);
        let order: Vec<usize> = (0..4)
            .map(|_| {
                let pool = turns.pools(|_| true)[0];
                turns.took(Some(Class::Interactive), Some(pool), true);
                pool
            })
            .collect();
        assert_eq!(order, [0, 1, 0, 1]);
    }

    #[test]
    fn tickets_wait_for_a_limited_number_of_offers() {
        let mut turns = Turns::new(1, 1);
        assert!(turns.offer_is_next());
        turns.took_offer();
        assert!(!turns.offer_is_next());
        turns.took(None, None, true);
        assert!(turns.offer_is_next());
    }
}
