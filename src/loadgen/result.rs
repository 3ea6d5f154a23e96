//! Result of a run: latency percentiles, rates and errors, stored in a file to compare runs.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::timed_request::Outcome;

/// One of the latencies of a run.
pub(super) type Latency = fn(&LoadResult) -> &Summary;

/// Version of the result file's format.
const SCHEMA: u32 = 1;

/// Upper bound of the histograms, in microseconds: one hour.
const MAX_LATENCY_US: u64 = 3_600_000_000;

/// Percentiles in the result file, enough to draw a curve.
const PERCENTILES: [f64; 21] = [
    0.0, 5.0, 10.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 97.5, 99.0, 99.5,
    99.9, 99.99, 100.0,
];

/// Latency limits that a request must meet to count as goodput.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Milliseconds to the first text.
    pub ttft_ms: Option<f64>,
    /// Mean milliseconds per token after the first.
    pub tpot_ms: Option<f64>,
    /// Milliseconds to the end.
    pub e2e_ms: Option<f64>,
}

impl Limits {
    fn are_met_by(self, outcome: &Outcome) -> bool {
        let within = |limit: Option<f64>, took: Option<Duration>| {
            limit.is_none_or(|limit| took.is_none_or(|took| millis(took) <= limit))
        };
        within(self.ttft_ms, outcome.ttft.or(Some(outcome.total)))
            && within(self.tpot_ms, outcome.tpot())
            && within(self.e2e_ms, Some(outcome.total))
    }
}

/// Result of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadResult {
    /// Version of the format.
    pub schema: u32,
    /// Start of the run, in seconds since 1970.
    pub began: u64,
    /// The server's URL.
    pub server: String,
    /// Settings of the load generator, as on the command line.
    pub settings: BTreeMap<String, String>,
    /// Seconds from the first request to the last answer, without warm-up.
    pub seconds: f64,
    /// Number of requests, without warm-up.
    pub requests: u64,
    /// Complete answers.
    pub completed: u64,
    /// Failed requests by error code.
    pub errors: BTreeMap<String, u64>,
    /// Complete answers per second.
    pub requests_per_second: f64,
    /// Tokens of complete answers per second.
    pub output_tokens_per_second: f64,
    /// Tokens of complete answers and their prompts per second.
    pub total_tokens_per_second: f64,
    /// Tokens of all answered prompts.
    pub prompt_tokens: u64,
    /// Tokens of all complete answers.
    pub output_tokens: u64,
    /// Limits that define goodput.
    pub limits: Limits,
    /// Answers per second that meet all limits.
    pub goodput: f64,
    /// Time to the first text.
    pub ttft_ms: Summary,
    /// Time between two pieces of text.
    pub itl_ms: Summary,
    /// Mean time per token after the first.
    pub tpot_ms: Summary,
    /// Time to the end.
    pub e2e_ms: Summary,
    /// For every complete answer: send time in seconds, time to the first text and to the end in milliseconds.
    pub course: Vec<[f64; 3]>,
}

/// Summary of a histogram in milliseconds, with three significant digits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of values.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Percentile and value, in ascending order.
    pub percentiles: Vec<(f64, f64)>,
}

impl Summary {
    fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |percentile| (percentile, microseconds(histogram.value_at_percentile(percentile)));
        Self {
            count: histogram.len(),
            mean: histogram.mean() / 1e3,
            percentiles: PERCENTILES.into_iter().map(at).collect(),
        }
    }

    /// The value at one of the stored percentiles.
    #[must_use]
    pub fn at(&self, percentile: f64) -> Option<f64> {
        let same = |other: f64| (other - percentile).abs() < 1e-9;
        self.percentiles.iter().find(|(other, _)| same(*other)).map(|(_, value)| *value)
    }
}

/// Latency histograms of a run.
struct Latencies {
    ttft: Histogram<u64>,
    itl: Histogram<u64>,
    tpot: Histogram<u64>,
    e2e: Histogram<u64>,
}

impl Latencies {
    fn new() -> Result<Self, hdrhistogram::CreationError> {
        let histogram = || Histogram::new_with_bounds(1, MAX_LATENCY_US, 3);
        Ok(Self { ttft: histogram()?, itl: histogram()?, tpot: histogram()?, e2e: histogram()? })
    }

    fn note(&mut self, outcome: &Outcome) {
        let note = |histogram: &mut Histogram<u64>, latency: Duration| {
            histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
        };
        outcome.ttft.into_iter().for_each(|ttft| note(&mut self.ttft, ttft));
        outcome.inter_chunk.iter().for_each(|latency| note(&mut self.itl, *latency));
        outcome.tpot().into_iter().for_each(|tpot| note(&mut self.tpot, tpot));
        note(&mut self.e2e, outcome.total);
    }
}

/// What is known before the run.
#[derive(Clone, Debug)]
pub struct Heading {
    /// Start of the run, in seconds since 1970.
    pub began: u64,
    /// The server's URL.
    pub server: String,
    /// Settings of the load generator.
    pub settings: BTreeMap<String, String>,
    /// Limits that define goodput.
    pub limits: Limits,
}

impl LoadResult {
    /// Summarises the outcomes of a run of `seconds`.
    ///
    /// # Errors
    /// Never in practice: the histograms' bounds are constants.
    pub fn of(
        heading: Heading,
        outcomes: &[Outcome],
        seconds: f64,
    ) -> Result<Self, hdrhistogram::CreationError> {
        let Heading { began, server, settings, limits } = heading;
        let (mut latencies, mut errors) = (Latencies::new()?, BTreeMap::new());
        let (mut prompt_tokens, mut output_tokens, mut completed, mut good) = (0, 0, 0, 0_u64);
        let mut course = Vec::new();
        for outcome in outcomes {
            if let Some(error) = &outcome.error {
                *errors.entry(error.clone()).or_default() += 1;
                continue;
            }
            latencies.note(outcome);
            completed += 1;
            prompt_tokens += outcome.prompt_tokens;
            output_tokens += outcome.output_tokens;
            good += u64::from(limits.are_met_by(outcome));
            let ttft = outcome.ttft.unwrap_or(outcome.total);
            course.push([outcome.scheduled_at.as_secs_f64(), millis(ttft), millis(outcome.total)]);
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of a run")]
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        Ok(Self {
            schema: SCHEMA,
            began,
            server,
            settings,
            seconds,
            requests: outcomes.len() as u64,
            completed,
            errors,
            requests_per_second: rate(completed),
            output_tokens_per_second: rate(output_tokens),
            total_tokens_per_second: rate(output_tokens + prompt_tokens),
            prompt_tokens,
            output_tokens,
            limits,
            goodput: rate(good),
            ttft_ms: Summary::of(&latencies.ttft),
            itl_ms: Summary::of(&latencies.itl),
            tpot_ms: Summary::of(&latencies.tpot),
            e2e_ms: Summary::of(&latencies.e2e),
            course,
        })
    }

    /// Reads a result file.
    ///
    /// # Errors
    /// When the text is not a result, or has a newer format.
    pub fn parse(text: &str) -> Result<Self, String> {
        let result: Self = serde_json::from_str(text)
            .map_err(|error| format!("not a result file of eka bench --url: {error}"))?;
        if result.schema > SCHEMA {
            return Err(format!(
                "the format is version {}, newer than {SCHEMA}, which this eka reads; use a newer eka",
                result.schema
            ));
        }
        Ok(result)
    }
}

fn millis(wait: Duration) -> f64 {
    wait.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "an hour at most")]
fn microseconds(value: u64) -> f64 {
    value as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    pub(crate) fn result(outcomes: &[Outcome], limits: Limits) -> LoadResult {
        let heading = Heading { began: 0, server: "http://x".into(), settings: BTreeMap::new(), limits };
        LoadResult::of(heading, outcomes, 2.0).unwrap()
    }

    fn answer(first: u64, total: u64) -> Outcome {
        Outcome {
            ttft: Some(ms(first)),
            inter_chunk: vec![ms(10); 4],
            total: ms(total),
            prompt_tokens: 7,
            output_tokens: 5,
            ..Outcome::default()
        }
    }

    #[test]
    fn rates_count_complete_answers_and_errors_have_codes() {
        let failed = Outcome { error: Some("queue_full".into()), total: ms(1), ..Outcome::default() };
        let result = result(&[answer(100, 500), failed.clone(), failed], Limits::default());
        assert_eq!((result.requests, result.completed, result.errors["queue_full"]), (3, 1, 2));
        assert_eq!((result.requests_per_second, result.output_tokens_per_second), (0.5, 2.5));
        assert_eq!(result.total_tokens_per_second, 6.0);
        assert_eq!(result.e2e_ms.count, 1, "a failed request has no latency");
        assert_eq!(result.itl_ms.count, 4);
        // A histogram keeps three digits.
        let tpot = result.tpot_ms.at(50.0).unwrap();
        assert!((99.9..=100.1).contains(&tpot), "{tpot}");
    }

    #[test]
    fn goodput_counts_answers_within_every_limit() {
        let answers = [answer(100, 500), answer(300, 500), answer(100, 900)];
        let goodput =
            |ttft_ms, tpot_ms, e2e_ms| result(&answers, Limits { ttft_ms, tpot_ms, e2e_ms }).goodput * 2.0;
        assert_eq!(goodput(None, None, None), 3.0);
        assert_eq!(goodput(Some(200.0), None, None), 2.0);
        assert_eq!(goodput(Some(200.0), None, Some(600.0)), 1.0);
        assert_eq!(goodput(None, Some(50.0), None), 1.0);
    }

    #[test]
    fn percentiles_are_right_to_three_digits() {
        let answers: Vec<_> = (1..=1000).map(|n| answer(n, 2 * n)).collect();
        let result = result(&answers, Limits::default());
        for (percentile, value) in [(50.0, 500.0), (90.0, 900.0), (99.0, 990.0), (100.0, 1000.0)] {
            let got = result.ttft_ms.at(percentile).unwrap();
            assert!((got / value - 1.0).abs() < 0.002, "{percentile}: {got}");
        }
    }

    #[test]
    fn a_result_file_is_read_back_and_other_files_are_refused() {
        let result = result(&[answer(100, 500)], Limits { ttft_ms: Some(5.0), ..Limits::default() });
        let text = serde_json::to_string(&result).unwrap();
        assert_eq!(LoadResult::parse(&text), Ok(result));
        assert!(LoadResult::parse("{}").unwrap_err().contains("not a result file"));
        assert!(
            LoadResult::parse(&text.replace("\"schema\":1", "\"schema\":2")).unwrap_err().contains("newer")
        );
    }
}
