//! What to do when a worker has ended. Pure: it is told what happened, and time is a number.

use std::time::Duration;

use super::Recycle;
use crate::{job::Memory, units::Bytes};

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

/// Whether jobs that wait for a worker are answered instead, as new ones are while there is none. Where the worker itself says
/// that the model cannot be loaded, the next one says the same; a driver that restarts is worth some seconds.
pub(super) const fn gives_jobs_back(end: End, failures: u32) -> bool {
    const FAILURES_WORTH_WAITING_FOR: u32 = 8;
    match end {
        End::LoadFailed => is_down(failures),
        End::BeforeReady | End::AfterReady => failures > FAILURES_WORTH_WAITING_FOR,
    }
}

/// Whether this many failures in a row are reported as an outage.
pub(super) const fn is_down(failures: u32) -> bool {
    failures > 2
}

/// Whether a job is given up because workers keep ending while they load its model; `losses`: how many, in a row. Where
/// there are other models their jobs must not wait for it; where there is none, the next attempt may do better and the
/// job's own deadline decides.
pub(super) const fn gives_up_on_model(losses: u32, others: bool) -> bool {
    others && losses >= SILENT_ATTEMPTS
}

/// How a worker has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Service {
    /// Jobs that it has run.
    pub(super) jobs: u64,
    /// For how long it has been ready.
    pub(super) age: Duration,
    /// Anonymous memory that it should hold: what it started with, and what its models took.
    pub(super) expected: Option<Bytes>,
    /// What it holds after its last trim, but for prompts that it keeps.
    pub(super) held: Option<Bytes>,
}

/// Why a worker that works is to be replaced, if it is. One that has done nothing since it came is as good as the next.
pub(super) fn recycle(rules: &Recycle, service: &Service) -> Option<String> {
    let Service { jobs, age, expected, held } = *service;
    if rules.between_requests && jobs > 0 {
        return Some("after every job".into());
    }
    if let Some(most) = rules.after_jobs
        && jobs >= most
    {
        return Some(format!("after {jobs} jobs"));
    }
    if let Some(most) = rules.after
        && age >= most
        && jobs > 0
    {
        return Some(format!("after {} s", age.as_secs()));
    }
    let grown = Bytes(held?.0.saturating_sub(expected?.0));
    (jobs > 0 && grown >= rules.growth).then(|| format!("it holds {grown} more than its models took"))
}

/// How long nobody must have wanted a worker before it may leave nobody behind.
pub(super) const IDLE: Duration = Duration::from_millis(500);

/// Whether a worker that is due may leave before its successor is there: when nobody has wanted it for a moment, or when
/// such a moment does not come. `waited`: jobs that it has run since it was due.
pub(super) fn may_leave(idle: Duration, waited: u64) -> bool {
    const PATIENCE: u64 = 16;
    idle >= IDLE || waited >= PATIENCE
}

/// Whether the machine has room for a second worker like this one, beside it. Weights are mapped from files and the same
/// pages for both, so only anonymous memory counts, with a tenth to spare. Where the system does not say, it has not.
pub(super) fn fits_twice(available: Option<Bytes>, worker: Memory) -> bool {
    match (available, worker.anonymous) {
        (Some(available), Some(anonymous)) => available.0 >= anonymous.0.saturating_add(anonymous.0 / 10),
        _ => false,
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
    fn a_job_is_given_back_when_the_model_cannot_be_loaded_and_waits_through_a_short_outage() {
        let gives_back = |end| [1, 2, 3, 8, 9].map(|failures| gives_jobs_back(end, failures));
        assert_eq!(gives_back(End::LoadFailed), [false, false, true, true, true]);
        assert_eq!(gives_back(End::BeforeReady), [false, false, false, false, true]);
    }

    #[test]
    fn a_model_that_ends_its_workers_is_given_up_where_others_wait() {
        assert_eq!([1, 2, 3, 4].map(|losses| gives_up_on_model(losses, true)), [false, false, true, true]);
        assert!(!gives_up_on_model(99, false));
    }

    const RULES: Recycle =
        Recycle { after_jobs: None, after: None, growth: Bytes::mib(100), between_requests: false };

    fn service(jobs: u64, age_s: u64, grown_mib: u64) -> Service {
        let (expected, held) = (Some(Bytes::mib(500)), Some(Bytes::mib(500 + grown_mib)));
        Service { jobs, age: Duration::from_secs(age_s), expected, held }
    }

    #[test]
    fn a_worker_is_replaced_by_jobs_by_age_and_by_growth_and_not_before_its_first_job() {
        let after_jobs = Recycle { after_jobs: Some(10), ..RULES };
        let after = Recycle { after: Some(Duration::from_secs(60)), ..RULES };
        let between = Recycle { between_requests: true, ..RULES };
        assert_eq!(recycle(&RULES, &service(1 << 40, 1 << 30, 99)), None);
        assert_eq!(
            recycle(&RULES, &service(1, 0, 100)).unwrap(),
            "it holds 100 MiB more than its models took"
        );
        assert_eq!(recycle(&RULES, &service(0, 0, 100)), None);
        assert_eq!(recycle(&after_jobs, &service(9, 0, 0)), None);
        assert_eq!(recycle(&after_jobs, &service(10, 0, 0)).unwrap(), "after 10 jobs");
        assert_eq!(recycle(&after, &service(1, 59, 0)), None);
        assert_eq!(recycle(&after, &service(0, 60, 0)), None);
        assert_eq!(recycle(&after, &service(1, 60, 0)).unwrap(), "after 60 s");
        assert_eq!(recycle(&between, &service(0, 9, 0)), None);
        assert!(recycle(&between, &service(1, 0, 0)).is_some());
        let unknown = Service { held: None, ..service(1, 1, 0) };
        assert_eq!(recycle(&RULES, &unknown), None);
    }

    #[test]
    fn a_worker_without_a_successor_leaves_when_nobody_wants_it_and_not_never() {
        assert!(!may_leave(Duration::ZERO, 0) && !may_leave(IDLE / 2, 15));
        assert!(may_leave(IDLE, 0) && may_leave(Duration::ZERO, 16));
    }

    #[test]
    fn a_second_worker_is_started_only_where_it_is_known_to_fit() {
        let worker =
            Memory { resident: Some(Bytes::mib(900)), anonymous: Some(Bytes::mib(100)), ..Memory::default() };
        assert!(fits_twice(Some(Bytes::mib(110)), worker));
        assert!(!fits_twice(Some(Bytes::mib(109)), worker));
        assert!(!fits_twice(None, worker));
        assert!(!fits_twice(Some(Bytes::mib(1 << 20)), Memory::default()));
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
