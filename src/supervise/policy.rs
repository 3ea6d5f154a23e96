//! Decisions about restarts, retries and replacements. Pure: callers pass all counts and times.

use std::time::Duration;

use super::worker_config::Recycle;
use crate::{job::Memory, units::Bytes};

/// Longest wait between two starts.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Crashes during loading after which the load is given up.
const MAX_LOAD_CRASHES: u32 = 3;

/// When in its life a worker was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LossStage {
    /// It reported that the device or the model cannot be used.
    LoadFailed,
    /// It crashed or was killed before it was ready.
    BeforeReady,
    /// It crashed or was killed after it was ready.
    AfterReady,
}

/// What to do after a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Start the next worker after this time.
    RestartAfter(Duration),
    /// Stop trying: no worker will ever start.
    GiveUp,
}

/// What happens to a job whose worker was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterLoss {
    /// It resumes on the next worker.
    Resume,
    /// It fails.
    Fail,
}

/// What happens to a job that has lost `lost` workers. After two losses the job may be the cause, and a third loss would
/// delay all other jobs.
pub(super) const fn after_loss(lost: u32) -> AfterLoss {
    if lost < 2 { AfterLoss::Resume } else { AfterLoss::Fail }
}

/// What to do after a loss. `ever_ready`: a worker of this supervisor has been ready before. `failures`: consecutive workers
/// that were lost without finishing a job, this one included.
pub(super) fn after(stage: LossStage, ever_ready: bool, failures: u32) -> Action {
    match stage {
        // The same files will fail again. But a model that has loaded before may load again when memory is free.
        LossStage::LoadFailed if !ever_ready => Action::GiveUp,
        LossStage::BeforeReady if !ever_ready && failures >= MAX_LOAD_CRASHES => Action::GiveUp,
        // No wait after the first loss, because a client is waiting.
        _ if failures <= 1 => Action::RestartAfter(Duration::ZERO),
        _ => Action::RestartAfter(backoff(failures - 2)),
    }
}

/// Whether waiting jobs fail instead of waiting for the next worker. A reported load error will repeat, so it counts sooner
/// than a crash, which may end when a driver has restarted.
pub(super) const fn hands_jobs_back(stage: LossStage, failures: u32) -> bool {
    const TOLERATED_FAILURES: u32 = 8;
    match stage {
        LossStage::LoadFailed => is_down(failures),
        LossStage::BeforeReady | LossStage::AfterReady => failures > TOLERATED_FAILURES,
    }
}

/// Whether this many consecutive failures are reported as an outage.
pub(super) const fn is_down(failures: u32) -> bool {
    failures > 2
}

/// Whether a job fails after `losses` consecutive workers were lost while loading its model. If other models are configured,
/// their jobs must not wait for it. If not, the next attempt may succeed, and the job's own deadline decides.
pub(super) const fn gives_up_on_model(losses: u32, others: bool) -> bool {
    others && losses >= MAX_LOAD_CRASHES
}

/// What a worker has done since it was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServiceRecord {
    /// Finished jobs.
    pub(super) jobs: u64,
    /// Time since it was ready.
    pub(super) age: Duration,
    /// Anonymous memory that it should hold: its value at the start, and what its models took.
    pub(super) expected: Option<Bytes>,
    /// Anonymous memory after its last trim, without cached prompts.
    pub(super) held: Option<Bytes>,
}

/// Why a healthy worker should be replaced, if it should. A worker that has not run a job is as good as a new one.
pub(super) fn recycle(rules: &Recycle, service: &ServiceRecord) -> Option<String> {
    let ServiceRecord { jobs, age, expected, held } = *service;
    if rules.between_requests && jobs > 0 {
        return Some("after every job".into());
    }
    if let Some(max) = rules.after_jobs
        && jobs >= max
    {
        return Some(format!("after {jobs} jobs"));
    }
    if let Some(max) = rules.after
        && age >= max
        && jobs > 0
    {
        return Some(format!("after {} s", age.as_secs()));
    }
    let grown = Bytes(held?.0.saturating_sub(expected?.0));
    (jobs > 0 && grown >= rules.growth).then(|| format!("its memory exceeds what its models took by {grown}"))
}

/// Minimum idle time before a worker may end without a standby. After this silence it is also pinged before a request.
pub(super) const IDLE: Duration = Duration::from_millis(500);

/// Whether a worker that is due for replacement may end without a standby: when it has been idle for a moment, or after
/// `MAX_DELAY` more jobs without such a moment.
pub(super) fn may_end_without_standby(idle: Duration, jobs_since_due: u64) -> bool {
    const MAX_DELAY: u64 = 16;
    idle >= IDLE || jobs_since_due >= MAX_DELAY
}

/// Whether memory allows a second worker like this one. Both share the pages of mapped weights, so only anonymous memory
/// counts, plus a tenth. Unknown values count as no.
pub(super) fn fits_twice(available: Option<Bytes>, worker: Memory) -> bool {
    match (available, worker.anonymous) {
        (Some(available), Some(anonymous)) => available.0 >= anonymous.0.saturating_add(anonymous.0 / 10),
        _ => false,
    }
}

/// Wait before a start: 100 ms, doubled each time, up to [`MAX_BACKOFF`].
fn backoff(doublings: u32) -> Duration {
    Duration::from_millis(100).saturating_mul(1 << doublings.min(16)).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_resumes_after_one_loss_and_fails_after_two() {
        assert_eq!([1, 2, 3].map(after_loss), [AfterLoss::Resume, AfterLoss::Fail, AfterLoss::Fail]);
    }

    #[test]
    fn jobs_fail_soon_when_the_model_cannot_be_loaded_and_wait_through_a_short_outage() {
        let hands_back = |stage| [1, 2, 3, 8, 9].map(|failures| hands_jobs_back(stage, failures));
        assert_eq!(hands_back(LossStage::LoadFailed), [false, false, true, true, true]);
        assert_eq!(hands_back(LossStage::BeforeReady), [false, false, false, false, true]);
    }

    #[test]
    fn a_model_that_crashes_its_workers_is_given_up_if_there_are_others() {
        assert_eq!([1, 2, 3, 4].map(|losses| gives_up_on_model(losses, true)), [false, false, true, true]);
        assert!(!gives_up_on_model(99, false));
    }

    const RULES: Recycle =
        Recycle { after_jobs: None, after: None, growth: Bytes::mib(100), between_requests: false };

    fn service(jobs: u64, age_s: u64, grown_mib: u64) -> ServiceRecord {
        let (expected, held) = (Some(Bytes::mib(500)), Some(Bytes::mib(500 + grown_mib)));
        ServiceRecord { jobs, age: Duration::from_secs(age_s), expected, held }
    }

    #[test]
    fn a_worker_is_replaced_after_jobs_age_or_growth_but_not_before_its_first_job() {
        let after_jobs = Recycle { after_jobs: Some(10), ..RULES };
        let after = Recycle { after: Some(Duration::from_secs(60)), ..RULES };
        let between = Recycle { between_requests: true, ..RULES };
        assert_eq!(recycle(&RULES, &service(1 << 40, 1 << 30, 99)), None);
        assert_eq!(
            recycle(&RULES, &service(1, 0, 100)).unwrap(),
            "its memory exceeds what its models took by 100 MiB"
        );
        assert_eq!(recycle(&RULES, &service(0, 0, 100)), None);
        assert_eq!(recycle(&after_jobs, &service(9, 0, 0)), None);
        assert_eq!(recycle(&after_jobs, &service(10, 0, 0)).unwrap(), "after 10 jobs");
        assert_eq!(recycle(&after, &service(1, 59, 0)), None);
        assert_eq!(recycle(&after, &service(0, 60, 0)), None);
        assert_eq!(recycle(&after, &service(1, 60, 0)).unwrap(), "after 60 s");
        assert_eq!(recycle(&between, &service(0, 9, 0)), None);
        assert!(recycle(&between, &service(1, 0, 0)).is_some());
        let unknown = ServiceRecord { held: None, ..service(1, 1, 0) };
        assert_eq!(recycle(&RULES, &unknown), None);
    }

    #[test]
    fn a_worker_without_a_standby_ends_when_idle_or_after_sixteen_more_jobs() {
        assert!(!may_end_without_standby(Duration::ZERO, 0) && !may_end_without_standby(IDLE / 2, 15));
        assert!(may_end_without_standby(IDLE, 0) && may_end_without_standby(Duration::ZERO, 16));
    }

    #[test]
    fn a_second_worker_is_started_only_if_it_is_known_to_fit() {
        let worker =
            Memory { resident: Some(Bytes::mib(900)), anonymous: Some(Bytes::mib(100)), ..Memory::default() };
        assert!(fits_twice(Some(Bytes::mib(110)), worker));
        assert!(!fits_twice(Some(Bytes::mib(109)), worker));
        assert!(!fits_twice(None, worker));
        assert!(!fits_twice(Some(Bytes::mib(1 << 20)), Memory::default()));
    }

    #[test]
    fn a_reported_load_error_is_final_unless_the_model_has_loaded_before() {
        assert_eq!(after(LossStage::LoadFailed, false, 1), Action::GiveUp);
        assert!(matches!(after(LossStage::LoadFailed, true, 1), Action::RestartAfter(_)));
    }

    #[test]
    fn a_crash_while_loading_is_retried_a_few_times() {
        assert!(matches!(after(LossStage::BeforeReady, false, 1), Action::RestartAfter(_)));
        assert!(matches!(after(LossStage::BeforeReady, false, 2), Action::RestartAfter(_)));
        assert_eq!(after(LossStage::BeforeReady, false, 3), Action::GiveUp);
        assert!(matches!(after(LossStage::BeforeReady, true, 1000), Action::RestartAfter(_)));
    }

    #[test]
    fn restarts_are_immediate_at_first_and_then_back_off_up_to_a_limit() {
        let waits: Vec<_> = (1..=20)
            .map(|failures| match after(LossStage::AfterReady, true, failures) {
                Action::RestartAfter(wait) => wait,
                Action::GiveUp => panic!("a worker that was ready is never given up"),
            })
            .collect();
        assert_eq!(waits[0], Duration::ZERO);
        assert!(waits.is_sorted());
        assert_eq!(waits[1], Duration::from_millis(100));
        assert_eq!(waits.last(), Some(&MAX_BACKOFF));
        assert_eq!(after(LossStage::AfterReady, true, u32::MAX), Action::RestartAfter(MAX_BACKOFF));
    }
}
