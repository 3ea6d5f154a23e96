//! The report of a run as text.

use std::{collections::BTreeMap, time::Duration};

use eka::worker::faults::FaultPlan;

use crate::{
    Run,
    request::{Answer, FinishedRequest},
    verdict::{growth_kib, numbers_of_refused, struck},
};

/// All jobs that one kind of fault hit.
#[derive(Default)]
struct Row {
    count: usize,
    answered: usize,
    refused: usize,
    correct: usize,
    /// Milliseconds beyond the undisturbed answer's.
    added_ms: Vec<f64>,
}

/// Prints the table of kinds, and the parent's memory.
pub(crate) fn print(run: &Run, answers: &[Answer], plan: &FaultPlan) {
    let refused = numbers_of_refused(run);
    let mut rows = BTreeMap::<&str, Row>::new();
    for (at, request) in run.requests.iter().enumerate() {
        let undisturbed = &answers[request.question];
        let job = request.answer.as_ref().ok().map(|answer| answer.job).or_else(|| refused.get(&at).copied());
        let kind = job.and_then(|job| struck(plan, job, undisturbed));
        rows.entry(kind.map_or("(none)", |kind| kind.name())).or_default().add(request, undisturbed);
    }
    println!(
        "added latency: of answers, beyond the same request's undisturbed, without the time in the queue"
    );
    println!(
        "{:<10} {:>7} {:>9} {:>7} {:>8} {:>10} {:>10} {:>10}",
        "fault", "jobs", "answered", "errors", "correct", "median ms", "p95 ms", "max ms"
    );
    for (kind, mut row) in rows {
        row.added_ms.sort_by(f64::total_cmp);
        let [median, p95, max] = [50, 95, 100].map(|percent| percentile(&row.added_ms, percent));
        println!(
            "{kind:<10} {:>7} {:>9} {:>7} {:>8} {median:>10} {p95:>10} {max:>10}",
            row.count, row.answered, row.refused, row.correct
        );
    }
    print_memory(run);
}

impl Row {
    fn add(&mut self, request: &FinishedRequest, undisturbed: &Answer) {
        self.count += 1;
        match &request.answer {
            Ok(answer) => {
                self.answered += 1;
                self.correct += usize::from(answer.text == undisturbed.text);
                self.added_ms.push(ms(answer.served) - ms(undisturbed.served));
            }
            Err(_) => self.refused += 1,
        }
    }
}

fn print_memory(run: &Run) {
    let [Some(before), Some(after)] = [run.memory.first(), run.memory.last()] else { return };
    for (name, from, to, growth) in [
        (
            "resident",
            before.resident_kib,
            after.resident_kib,
            growth_kib(&run.memory, |memory| memory.resident_kib),
        ),
        (
            "anonymous",
            before.anonymous_kib,
            after.anonymous_kib,
            growth_kib(&run.memory, |memory| memory.anonymous_kib),
        ),
    ] {
        println!(
            "the parent's {name} memory: {from} KiB at first, {to} KiB after {} requests; {growth:+.1} KiB in 1,000 \
             requests by the trend of the second half",
            after.answers
        );
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The nearest of sorted values; a dash where there are none.
fn percentile(sorted: &[f64], percent: usize) -> String {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).map_or_else(|| "-".into(), |value| format!("{value:.1}"))
}
