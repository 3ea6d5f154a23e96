//! What to do when a worker has ended. Pure: it is told what happened, and time is a number.

use std::time::Duration;

/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Attempts at a first load that crash without a word, before it is given up.
const SILENT_ATTEMPTS: u32 = 3;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It said that the model cannot be loaded.
    LoadFailed,
    /// It ended, or had to be ended, before it was ready.
    BeforeReady,
    /// It ended, or had to be ended, after it was ready.
    AfterReady,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Start another one after a while.
    RestartAfter(Duration),
    /// No worker will ever run: say why and stop trying.
    GiveUp,
}

/// What becomes of a job whose worker is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterLoss {
    /// The next worker goes on with it.
    Resume,
    /// It is answered with an error.
    Fail,
}

/// `lost`: workers that ended while they had the job. The second may have been the job's own doing; a third would hold
/// up everybody else.
pub(super) const fn after_loss(lost: u32) -> AfterLoss {
    if lost < 2 { AfterLoss::Resume } else { AfterLoss::Fail }
}

/// `ever_ready`: whether any worker of this server has been ready. `failures`: ends in a row of workers that had not
/// finished a job since they were started, this one included.
pub(super) fn after(end: End, ever_ready: bool, failures: u32) -> Action {
    match end {
        // The same files will not load the next time; but what loaded once may load again when memory is free.
        End::LoadFailed if !ever_ready => Action::GiveUp,
        End::BeforeReady if !ever_ready && failures >= SILENT_ATTEMPTS => Action::GiveUp,
        // The first one is replaced at once: a client is waiting.
        _ if failures <= 1 => Action::RestartAfter(Duration::ZERO),
        _ => Action::RestartAfter(backoff(failures - 2)),
    }
}

/// 100 ms, doubled each time, up to [`LONGEST_WAIT`].
fn backoff(doublings: u32) -> Duration {
    Duration::from_millis(100).saturating_mul(1 << doublings.min(16)).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_gets_a_second_worker_and_no_third() {
        assert_eq!([1, 2, 3].map(after_loss), [AfterLoss::Resume, AfterLoss::Fail, AfterLoss::Fail]);
    }

    #[test]
    fn a_model_that_never_loaded_is_given_up_at_its_own_word() {
        assert_eq!(after(End::LoadFailed, false, 1), Action::GiveUp);
        assert!(matches!(after(End::LoadFailed, true, 1), Action::RestartAfter(_)));
    }

    #[test]
    fn a_crash_while_loading_is_tried_again_but_not_for_ever() {
        assert!(matches!(after(End::BeforeReady, false, 1), Action::RestartAfter(_)));
        assert!(matches!(after(End::BeforeReady, false, 2), Action::RestartAfter(_)));
        assert_eq!(after(End::BeforeReady, false, 3), Action::GiveUp);
        assert!(matches!(after(End::BeforeReady, true, 1000), Action::RestartAfter(_)));
    }

    #[test]
    fn the_first_replacement_comes_at_once_and_later_ones_ever_later_up_to_a_limit() {
        let waits: Vec<_> = (1..=20)
            .map(|failures| match after(End::AfterReady, true, failures) {
                Action::RestartAfter(wait) => wait,
                Action::GiveUp => panic!("a worker that was ready is never given up"),
            })
            .collect();
        assert_eq!(waits[0], Duration::ZERO);
        assert!(waits.is_sorted());
        assert_eq!(waits[1], Duration::from_millis(100));
        assert_eq!(waits.last(), Some(&LONGEST_WAIT));
        assert_eq!(after(End::AfterReady, true, u32::MAX), Action::RestartAfter(LONGEST_WAIT));
    }
}
