//! The checks of a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use eka::{
    job::JobId,
    worker::faults::{FaultKind, FaultPlan, FaultPoint},
};

use crate::{
    Run,
    request::{Answer, FinishedRequest, RequestError},
    server::Memory,
};

/// Largest accepted growth of the parent per thousand requests, by the trend of the run's second half: noise, or a leak too
/// small to matter within a year.
const MAX_GROWTH_KIB: f64 = 256.0;

/// Answers before that trend means anything.
const ENOUGH: usize = 1_000;

/// The effect of a fault on a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its worker answers it.
    Unharmed,
    /// The next worker answers it.
    Resumed,
    /// It fails with an error, because its device rejected a step.
    Refused,
}

/// The effect of a fault of this kind on its job.
const fn fate(kind: FaultKind) -> Fate {
    match kind {
        FaultKind::Slow(_) | FaultKind::Leak(_) | FaultKind::Flood(_) | FaultKind::Chatter => Fate::Unharmed,
        FaultKind::Fail | FaultKind::Starve => Fate::Refused,
        _ => Fate::Resumed,
    }
}

/// The fault that struck a job with this undisturbed answer: one that comes after its last step does not.
pub(crate) fn struck(plan: &FaultPlan, job: u64, undisturbed: &Answer) -> Option<FaultKind> {
    let fault = plan.of_job(JobId(job), 0).next()?;
    let reached = match fault.point {
        FaultPoint::Decode(step) => u64::from(step.get()) < undisturbed.completion_tokens,
        _ => true,
    };
    reached.then_some(fault.kind)
}

/// The job's number of each request that got an error instead of an answer, which names none. One slot answers in turn:
/// the first of them had the first of the numbers that no answer has.
pub(crate) fn numbers_of_refused(run: &Run) -> BTreeMap<usize, u64> {
    let answered: BTreeSet<u64> =
        run.requests.iter().filter_map(|request| Some(request.answer.as_ref().ok()?.job)).collect();
    let missing = (1..=run.requests.len() as u64).filter(|job| !answered.contains(job));
    let mut refused: Vec<usize> =
        (0..run.requests.len()).filter(|at| run.requests[*at].answer.is_err()).collect();
    refused.sort_by_key(|at| run.requests[*at].ended);
    refused.into_iter().zip(missing).collect()
}

/// All problems of a run; empty if there are none.
pub(crate) fn wrong(run: &Run, answers: &[Answer], plan: &FaultPlan) -> Vec<String> {
    let refused = numbers_of_refused(run);
    let mut wrong = Vec::new();
    for (at, request) in run.requests.iter().enumerate() {
        let undisturbed = &answers[request.question];
        match (&request.answer, refused.get(&at)) {
            (Ok(answer), _) => wrong.extend(wrong_answer(answer, undisturbed, plan)),
            (Err(refusal), Some(job)) => wrong.extend(wrong_refusal(refusal, *job, undisturbed, plan)),
            (Err(refusal), None) => wrong.push(format!("lost: {refusal:?}")),
        }
    }
    wrong.extend(wrong_numbers(run));
    wrong.extend(overtaken(&run.requests));
    wrong.extend(wrong_counters(run));
    let growth = growth_kib(&run.memory, |memory| memory.anonymous_kib);
    if run.requests.len() > ENOUGH && growth > MAX_GROWTH_KIB {
        wrong
            .push(format!("the parent grows by {growth:.0} KiB in 1,000 requests, {MAX_GROWTH_KIB} at most"));
    }
    wrong
}

fn wrong_answer(answer: &Answer, undisturbed: &Answer, plan: &FaultPlan) -> Option<String> {
    let fate = struck(plan, answer.job, undisturbed).map_or(Fate::Unharmed, fate);
    let right = answer.text == undisturbed.text
        && answer.completion_tokens == undisturbed.completion_tokens
        && fate != Fate::Refused
        && answer.resumed == u64::from(fate == Fate::Resumed);
    (!right).then(|| format!("{answer:?} should be {fate:?} and {:?}", undisturbed.text))
}

/// An error is correct if the device rejected a step; the text before it must be the beginning of the answer.
fn wrong_refusal(refusal: &RequestError, job: u64, undisturbed: &Answer, plan: &FaultPlan) -> Option<String> {
    let kind = struck(plan, job, undisturbed);
    let right = kind.map(fate) == Some(Fate::Refused)
        && refusal.code == if kind == Some(FaultKind::Starve) { "out_of_memory" } else { "device_error" }
        && undisturbed.text.starts_with(&refusal.partial);
    (!right).then(|| format!("job {job}, with {kind:?}, got {refusal:?}"))
}

/// Every job number up to the count of requests belongs to exactly one request.
fn wrong_numbers(run: &Run) -> Vec<String> {
    let mut times = BTreeMap::<u64, usize>::new();
    let answered = run.requests.iter().filter_map(|request| Some(request.answer.as_ref().ok()?.job));
    answered.chain(numbers_of_refused(run).into_values()).for_each(|job| *times.entry(job).or_default() += 1);
    (1..=run.requests.len() as u64)
        .chain(times.keys().copied().filter(|job| *job > run.requests.len() as u64))
        .map(|job| (job, times.get(&job).copied().unwrap_or(0)))
        .filter(|(_, times)| *times != 1)
        .map(|(job, times)| format!("job {job} was answered {times} times"))
        .collect()
}

/// Jobs that one which came later overtook. A short prompt gets its number and its place in the queue in one go, so the
/// numbers are the order of acceptance; one slot ends jobs in the order it starts them; and whoever is overtaken ends
/// later by at least the other's time, so that half of the own is beyond doubt and beyond the clients' own unsteadiness.
fn overtaken(requests: &[FinishedRequest]) -> Vec<String> {
    let mut jobs: Vec<(&Answer, Instant)> =
        requests.iter().filter_map(|request| Some((request.answer.as_ref().ok()?, request.ended))).collect();
    jobs.sort_by_key(|(answer, _)| answer.job);
    let (mut wrong, mut first_later) = (Vec::new(), None::<Instant>);
    for (answer, ended) in jobs.into_iter().rev() {
        let late = first_later.map_or_else(Default::default, |later| ended.saturating_duration_since(later));
        if late > answer.served / 2 {
            wrong.push(format!("job {} ended {late:?} after a later one", answer.job));
        }
        first_later = Some(first_later.map_or(ended, |later| later.min(ended)));
    }
    wrong
}

/// The server's own count of answers and of resumed jobs.
fn wrong_counters(run: &Run) -> Vec<String> {
    let counted = |start: &str| -> u64 {
        let lines = run.metrics.lines().filter(|line| line.starts_with(start));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    let answers = counted("eka_requests_total{route=\"/generate-lite\"");
    let resumed = counted("eka_jobs_resumed_total ");
    let seen: u64 =
        run.requests.iter().filter_map(|request| Some(request.answer.as_ref().ok()?.resumed)).sum();
    let mut wrong = Vec::new();
    if answers != run.requests.len() as u64 {
        wrong.push(format!("the server counts {answers} answers, the clients {}", run.requests.len()));
    }
    if resumed != seen {
        wrong.push(format!("the server counts {resumed} resumed jobs, the clients {seen}"));
    }
    wrong
}

/// KiB in 1,000 answers: the slope of least squares over the second half of a run.
#[expect(clippy::cast_precision_loss, reason = "a trend for people to read")]
pub(crate) fn growth_kib(memory: &[Memory], kib: impl Fn(&Memory) -> u64) -> f64 {
    let late = &memory[memory.len() / 2..];
    let mean = |of: &dyn Fn(&Memory) -> f64| late.iter().map(of).sum::<f64>() / late.len() as f64;
    let (x, y) = (|m: &Memory| m.answers as f64 / 1e3, |m: &Memory| kib(m) as f64);
    let (x_mean, y_mean) = (mean(&x), mean(&y));
    let covariance: f64 = late.iter().map(|m| (x(m) - x_mean) * (y(m) - y_mean)).sum();
    let variance: f64 = late.iter().map(|m| (x(m) - x_mean).powi(2)).sum();
    if variance > 0.0 { covariance / variance } else { 0.0 }
}
