use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use tokio::sync::mpsc::unbounded_channel;

use super::*;
use crate::executor::limits::Deadlines;
use crate::job::ModelId;

const FOREVER: Deadlines = Deadlines { queue: Duration::MAX, total: Duration::MAX };

fn queue(max_jobs: usize, max_prompt_tokens: usize) -> Queue {
    let max_jobs = NonZeroUsize::new(max_jobs).unwrap();
    Queue::new(Limits { max_jobs, max_prompt_tokens: Tokens(max_prompt_tokens) })
}

fn job_of(id: u64, prompt_tokens: usize, deadlines: Deadlines, at: Instant) -> QueuedJob {
    let job = Job::new(JobId(id), vec![7; prompt_tokens], 4);
    QueuedJob::new(job, unbounded_channel().0, CancellationToken::new(), at, deadlines.into())
}

#[test]
fn a_job_that_a_free_slot_is_about_to_take_does_not_count() {
    let (mut queue, now) = (queue(1, 100), Instant::now());
    queue.push(job_of(1, 1, FOREVER, now)).unwrap();
    queue.push(job_of(2, 1, FOREVER, now)).unwrap();
    assert!(matches!(queue.push(job_of(3, 1, FOREVER, now)), Err(SubmitError::Busy { jobs: 2, .. })));
    assert_eq!(queue.take(0, now).unwrap().job.id, JobId(1));
    assert!(matches!(queue.push(job_of(3, 1, FOREVER, now)), Err(SubmitError::Busy { jobs: 1, .. })));
}

#[test]
fn every_slot_takes_a_job_before_any_has_to_wait() {
    let (mut queue, now) = (queue(1, 100), Instant::now());
    queue.set_slots(2);
    for id in 1..=3 {
        queue.push(job_of(id, 1, FOREVER, now)).unwrap();
    }
    assert!(queue.push(job_of(4, 1, FOREVER, now)).is_err());
    assert_eq!(queue.take(0, now).unwrap().job.id, JobId(1));
    assert_eq!(queue.take(1, now).unwrap().job.id, JobId(2));
    assert!(queue.push(job_of(4, 1, FOREVER, now)).is_err());
    queue.release(JobId(1));
    queue.push(job_of(4, 1, FOREVER, now)).unwrap();
    let running: Vec<_> = queue.running().iter().map(|running| running.job.id.0).collect();
    assert_eq!(running, [2]);
}

/// The jobs of a group with these ids and prompts of one token.
fn group_of(ids: &[u64], now: Instant) -> Vec<QueuedJob> {
    let of = |id: &u64| QueuedJob { group: JobId(ids[0]), ..job_of(*id, 1, FOREVER, now) };
    ids.iter().map(of).collect()
}

#[test]
fn a_slot_takes_the_jobs_of_a_group_together_and_they_count_as_one() {
    let (mut queue, now) = (queue(1, 100), Instant::now());
    queue.push_group(group_of(&[1, 2, 3], now)).unwrap();
    queue.push_group(group_of(&[4, 5, 6], now)).unwrap();
    assert!(queue.push_group(group_of(&[7, 8], now)).is_err());
    assert_eq!(queue.jobs(), 6);
    let ids = |jobs: &[QueuedJob]| jobs.iter().map(|job| job.job.id.0).collect::<Vec<_>>();
    assert_eq!(queue.take(0, now).unwrap().job.id, JobId(1));
    assert_eq!(ids(&queue.take_rest(JobId(1), 0, now)), [2, 3]);
    // One that was cancelled while it waited.
    queue.remove(JobId(4)).unwrap();
    [1, 2].into_iter().for_each(|id| queue.release(JobId(id)));
    assert!(queue.take(0, now).is_none(), "one job of the first group still runs");
    queue.release(JobId(3));
    assert_eq!(queue.take(0, now).unwrap().job.id, JobId(5));
    assert_eq!(ids(&queue.take_rest(JobId(4), 0, now)), [6]);
}

#[test]
fn prompt_tokens_bound_the_queue_but_never_a_single_job() {
    let (mut queue, now) = (queue(9, 10), Instant::now());
    queue.push(job_of(1, 50, FOREVER, now)).unwrap();
    queue.take(0, now).unwrap();
    queue.push(job_of(2, 50, FOREVER, now)).unwrap();
    assert!(queue.push(job_of(3, 1, FOREVER, now)).is_err());
    queue.remove(JobId(2)).unwrap();
    queue.push(job_of(4, 4, FOREVER, now)).unwrap();
    queue.push(job_of(5, 6, FOREVER, now)).unwrap();
    assert!(queue.push(job_of(6, 1, FOREVER, now)).is_err());
    assert_eq!(queue.prompt_tokens(), Tokens(10));
}

#[test]
fn jobs_run_in_order_of_arrival_also_around_a_removed_one() {
    let (mut queue, now) = (queue(9, 100), Instant::now());
    for id in 1..=4 {
        queue.push(job_of(id, 1, FOREVER, now)).unwrap();
    }
    queue.remove(JobId(2)).unwrap();
    assert!(queue.remove(JobId(2)).is_none());
    let mut order = vec![];
    while let Some(next) = queue.take(0, now) {
        order.push(next.job.id.0);
        queue.release(next.job.id);
    }
    assert_eq!(order, [1, 3, 4]);
    assert!(queue.is_idle());
}

/// The order in which jobs of these models are taken when the slot holds the model of the last one.
fn order(models: &str, max_switches: usize) -> String {
    let (mut queue, now) = (queue(99, 100), Instant::now());
    let loaded = Arc::new(std::sync::Mutex::new(ModelId::default()));
    let max = NonZeroUsize::new(max_switches).unwrap();
    let held = Arc::clone(&loaded);
    let is_loaded = Arc::new(move |_, model: &ModelId| *model == *held.lock().unwrap());
    queue.route(Routing { max_switches: Some(max), is_loaded, is_open: Arc::new(|_| true) });
    for (id, model) in (1..).zip(models.chars()) {
        let mut accepted = job_of(id, 1, FOREVER, now);
        accepted.job.model = ModelId(model.into());
        queue.push(accepted).unwrap();
    }
    let mut order = String::new();
    while let Some(next) = queue.take(0, now) {
        order += &next.job.model.0;
        queue.release(next.job.id);
        *loaded.lock().unwrap() = next.job.model;
    }
    order
}

#[test]
fn jobs_run_in_order_of_arrival_until_there_were_too_many_switches() {
    assert_eq!(order("ababab", 99), "ababab");
    assert_eq!(order("ababab", 1), "aabbab");
    assert_eq!(order("ababab", 2), "abbaab");
    assert_eq!(order("aabbcc", 1), "aabbcc");
    assert_eq!(order("abcabc", 3), "abccab");
}

/// A queue of several slots that hold these models, one letter each, with jobs of others; `open` slots take them.
fn routed(slots: &'static [&'static str], models: &str, max: Option<usize>, open: &'static [bool]) -> Queue {
    let (mut queue, now) = (queue(99, 100), Instant::now());
    queue.set_slots(slots.len());
    queue.route(Routing {
        max_switches: max.and_then(NonZeroUsize::new),
        is_loaded: Arc::new(|slot, model| slots[slot].contains(&model.0)),
        is_open: Arc::new(|slot| open[slot]),
    });
    for (id, model) in (1..).zip(models.chars()) {
        let mut accepted = job_of(id, 1, FOREVER, now);
        accepted.job.model = ModelId(model.into());
        queue.push(accepted).unwrap();
    }
    queue
}

fn takes(queue: &mut Queue, slot: usize) -> Option<u64> {
    queue.take(slot, Instant::now()).map(|taken| taken.job.id.0)
}

#[test]
fn a_job_goes_to_the_free_slot_that_has_its_model_loaded() {
    let mut queue = routed(&["a", "b"], "ba", None, &[true; 2]);
    assert_eq!((takes(&mut queue, 0), takes(&mut queue, 1)), (Some(2), Some(1)));
    let mut queue = routed(&["a", "b"], "b", None, &[true; 2]);
    assert_eq!((takes(&mut queue, 0), takes(&mut queue, 1)), (None, Some(1)));
}

#[test]
fn a_job_does_not_wait_for_the_slot_that_has_its_model_while_another_is_free() {
    let mut queue = routed(&["a", "b"], "bb", None, &[true; 2]);
    assert_eq!((takes(&mut queue, 1), takes(&mut queue, 0)), (Some(1), Some(2)));
}

#[test]
fn a_model_is_loaded_on_the_slot_that_has_been_free_for_longest() {
    let mut queue = routed(&["a", "a", "a"], "cdc", None, &[true; 3]);
    assert_eq!((takes(&mut queue, 1), takes(&mut queue, 0)), (Some(2), Some(1)));
    queue.release(JobId(2));
    queue.release(JobId(1));
    assert_eq!((takes(&mut queue, 0), takes(&mut queue, 1), takes(&mut queue, 2)), (None, None, Some(3)));
}

#[test]
fn every_slot_counts_its_own_switches() {
    // Each slot makes one switch, and then prefers jobs for its model.
    let mut queue = routed(&["a", "b"], "ccccab", Some(1), &[true; 2]);
    assert_eq!((takes(&mut queue, 0), takes(&mut queue, 1)), (Some(1), Some(2)));
    queue.release(JobId(1));
    queue.release(JobId(2));
    assert_eq!((takes(&mut queue, 0), takes(&mut queue, 1)), (Some(5), Some(6)));
    queue.release(JobId(5));
    queue.release(JobId(6));
    assert_eq!((takes(&mut queue, 0), takes(&mut queue, 1)), (Some(3), Some(4)));
}

#[test]
fn a_closed_slot_takes_no_job_and_makes_no_room() {
    let mut queue = routed(&["a", "a"], "aa", None, &[false, true]);
    assert_eq!((takes(&mut queue, 0), takes(&mut queue, 1)), (None, Some(1)));
    queue.set_limits(Limits { max_jobs: NonZeroUsize::MIN, max_prompt_tokens: Tokens(99) });
    assert!(queue.check_room(Tokens(1), Priority::Interactive).is_err(), "one job waits already");
}

#[test]
fn a_job_that_was_passed_over_is_next() {
    // However many jobs use the loaded model, the other job waits for one of them only.
    assert_eq!(order("abaaaaaaaa", 1), "aabaaaaaaa");
}

fn batch_of(id: u64, at: Instant) -> QueuedJob {
    let mut accepted = job_of(id, 1, FOREVER, at);
    accepted.terms.priority = Priority::Batch;
    accepted
}

#[test]
fn retry_after_of_an_interactive_job_does_not_count_batch_jobs() {
    let (mut queue, now) = (queue(3, 100), Instant::now());
    for id in 1..=4 {
        queue.push(batch_of(id, now)).unwrap();
    }
    let long =
        |accepted: QueuedJob| QueuedJob { job: Job { max_new_tokens: 1_000, ..accepted.job }, ..accepted };
    queue.remove(JobId(4)).unwrap();
    queue.push(long(batch_of(4, now))).unwrap();
    assert_eq!(queue.take(0, now).unwrap().job.id, JobId(1));
    let wait = |refused| match refused {
        Err(SubmitError::Busy { retry_after, .. }) => retry_after,
        other => panic!("{other:?}"),
    };
    let (batch, interactive) = (queue.push(batch_of(5, now)), queue.push(job_of(5, 1, FOREVER, now)));
    assert!(wait(batch) > 10 * wait(interactive), "{:?}", queue.ahead_of(Priority::Interactive).count());
}

#[test]
fn an_interactive_job_does_not_displace_a_waiting_batch_job() {
    let (mut queue, now) = (queue(1, 100), Instant::now());
    queue.push(batch_of(1, now)).unwrap();
    queue.push(batch_of(2, now)).unwrap();
    assert!(queue.push(job_of(3, 1, FOREVER, now)).is_err());
    assert_eq!(queue.jobs(), 2);
}

#[test]
fn the_earlier_deadline_is_the_reason() {
    let (mut queue, now) = (queue(9, 100), Instant::now());
    let seconds = Duration::from_secs;
    queue.push(job_of(1, 1, FOREVER, now)).unwrap();
    queue.push(job_of(2, 1, Deadlines { queue: seconds(3), total: seconds(9) }, now)).unwrap();
    queue.push(job_of(3, 1, Deadlines { queue: seconds(9), total: seconds(2) }, now)).unwrap();
    assert_eq!(queue.next_deadline(), Some(now + seconds(2)));
    assert!(queue.remove_overdue(now + seconds(1)).is_none());
    let later = now + seconds(3);
    let (gone, why) = queue.remove_overdue(later).unwrap();
    assert_eq!((gone.job.id, why), (JobId(2), Failure::QueueTimeout { waited: seconds(3) }));
    let (gone, why) = queue.remove_overdue(later).unwrap();
    assert_eq!((gone.job.id, why), (JobId(3), Failure::Deadline { elapsed: seconds(3) }));
    assert_eq!((queue.next_deadline(), queue.jobs()), (None, 1));
}

#[test]
fn a_closed_queue_refuses_new_jobs_and_keeps_the_others() {
    let (mut queue, now) = (queue(9, 100), Instant::now());
    queue.push(job_of(1, 1, FOREVER, now)).unwrap();
    queue.close();
    assert!(matches!(queue.push(job_of(2, 1, FOREVER, now)), Err(SubmitError::Stopped)));
    assert_eq!(queue.jobs(), 1);
}
