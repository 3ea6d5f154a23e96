//! Jobs that gateways offer to this node because it keeps the beginning of their prompts.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::runs::JobKey;

/// Offers that wait for the slot at most. Gateways publish a ticket for a job that is refused.
const MAX_OFFERS: usize = 64;

/// Offers that wait for the slot, in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Offers(Mutex<VecDeque<(JobKey, Instant)>>);

impl Offers {
    /// Keeps an offer until this time; `false` if there are too many.
    pub(super) fn keep(&self, job: JobKey, until: Instant) -> bool {
        let mut offers = self.lock();
        offers.retain(|(_, until)| *until > Instant::now());
        let has_room = offers.len() < MAX_OFFERS;
        if has_room {
            offers.push_back((job, until));
        }
        has_room
    }

    /// The first offer whose time has not passed.
    pub(super) fn take(&self) -> Option<JobKey> {
        let mut offers = self.lock();
        offers.retain(|(_, until)| *until > Instant::now());
        offers.pop_front().map(|(job, _)| job)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(JobKey, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn offers_come_back_in_order_until_their_time_has_passed() {
        let (offers, now) = (Offers::default(), Instant::now());
        let key = |job| ("g".to_owned(), job);
        assert!(offers.keep(key(1), now + Duration::from_secs(1)));
        assert!(offers.keep(key(2), now + Duration::from_secs(9)));
        assert!(offers.keep(key(3), now + Duration::from_secs(9)));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!([offers.take(), offers.take(), offers.take()], [Some(key(2)), Some(key(3)), None]);
        let until = Instant::now() + Duration::from_secs(1);
        assert_eq!((0..100).filter(|job| offers.keep(key(*job), until)).count(), MAX_OFFERS);
    }
}
