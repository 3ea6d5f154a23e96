//! The report of a smoke test, in Markdown and as JSON.

use std::fmt::{self, Display, Write};

use serde::Serialize;

use super::{
    answer::{MemoryUse, ObservedAnswer},
    outcome::{Mode, Outcome},
};

/// All results of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Version of eka that ran the test.
    pub eka: &'static str,
    /// Name of the suite.
    pub suite: String,
    /// URL of the server.
    pub server: String,
    /// The server's model.
    pub model: String,
    /// The worker's device, as the server reports it.
    pub device: Option<String>,
    /// Milliseconds from the start of the process until it was ready, if the test started it.
    pub ready_ms: Option<f64>,
    /// Number of prompts that must pass.
    pub required: usize,
    /// Seconds from the start of the command to the last answer.
    pub took_seconds: f64,
    /// Every request, by mode and in the suite's order.
    pub outcomes: Vec<Outcome>,
}

/// A run and its summary.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether enough prompts pass.
    pub passed: bool,
    /// Prompts whose answers all pass.
    pub right: usize,
    /// Number of prompts.
    pub of: usize,
    /// Resident memory of the worker over all modes except isolated, which has many workers.
    pub memory: MemoryUse,
    /// Results by prompt, in the suite's order.
    pub prompts: Vec<PromptLine>,
    /// Results by mode.
    pub modes: Vec<ModeLine>,
    /// The run.
    #[serde(flatten)]
    pub run: Run,
}

/// Results of one prompt.
#[derive(Clone, Debug, Serialize)]
pub struct PromptLine {
    /// Name of the prompt.
    pub name: String,
    /// Whether all its answers pass.
    pub right: bool,
    /// Smallest share of letters in the expected script, over all answers.
    pub script_share: Option<f64>,
    /// Answer with the model loaded.
    pub text: Option<String>,
    /// Response time of that answer.
    pub response_ms: Option<f64>,
    /// Decode speed, as the server reports it.
    pub tokens_per_second: Option<f64>,
    /// The worker's resident memory around that request.
    pub memory: MemoryUse,
}

/// Results of one mode.
#[derive(Clone, Debug, Serialize)]
pub struct ModeLine {
    /// The mode.
    pub mode: Mode,
    /// Answers that pass.
    pub right: usize,
    /// Number of requests.
    pub of: usize,
    /// Median time to the first text.
    pub first_text_ms: Option<f64>,
    /// Median response time.
    pub response_ms: Option<f64>,
    /// Longest response time.
    pub longest_ms: Option<f64>,
    /// Median decode speed, as the server reports it.
    pub tokens_per_second: Option<f64>,
}

impl Report {
    /// Summarises a run.
    #[must_use]
    pub fn of(run: Run) -> Self {
        let prompts = prompts(&run.outcomes);
        let right = prompts.iter().filter(|line| line.right).count();
        let ways = [Mode::Cold, Mode::Cached, Mode::Queued, Mode::Isolated];
        let modes = ways.into_iter().filter_map(|mode| mode_line(&run.outcomes, mode)).collect();
        let memory = memory(&run.outcomes);
        Self { passed: right >= run.required, right, of: prompts.len(), memory, prompts, modes, run }
    }

    /// The report in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        // Writing to a `String` cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let Run { suite, server, model, device, ready_ms, required, took_seconds, eka, .. } = &self.run;
        let verdict = if self.passed { "passed" } else { "FAILED" };
        writeln!(out, "# Smoke: {verdict}, {} of {} right\n", self.right, self.of)?;
        write!(out, "Suite {suite}, model {model}")?;
        device.iter().try_for_each(|device| write!(out, " on {device}"))?;
        write!(out, ", {server}; {required} of {} required; eka {eka}; {took_seconds:.1} s in all", self.of)?;
        ready_ms
            .iter()
            .try_for_each(|ready| write!(out, ", {:.1} s of it until the server was ready", ready / 1e3))?;
        writeln!(out, ".\n")?;
        self.write_prompts(out)?;
        self.write_modes(out)?;
        self.write_problems(out)
    }

    fn write_prompts(&self, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "| prompt | right | in its script | answer | response, ms | tokens/s | memory before, MiB | peak | after |"
        )?;
        writeln!(out, "|---|---|---|---|---:|---:|---:|---:|---:|")?;
        for line in &self.prompts {
            let PromptLine { name, right, script_share, text, response_ms, tokens_per_second, memory } = line;
            writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                cell(name),
                if *right { "yes" } else { "NO" },
                shown(script_share.map(|share| format!("{:.0} %", (share * 100.0).floor()))),
                shown(text.as_deref().map(cell)),
                decimal(*response_ms, 1),
                decimal(*tokens_per_second, 0),
                mebibytes(memory.before),
                mebibytes(memory.peak),
                mebibytes(memory.after),
            )?;
        }
        let MemoryUse { before, peak, after } = self.memory;
        let (before, peak, after) = (mebibytes(before), mebibytes(peak), mebibytes(after));
        writeln!(out, "| all | {} of {} | | | | | {before} | {peak} | {after} |\n", self.right, self.of)
    }

    fn write_modes(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "| asked | right | success | first text, ms | response, ms | longest | tokens/s |")?;
        writeln!(out, "|---|---|---:|---:|---:|---:|---:|")?;
        for line in &self.modes {
            let ModeLine { mode, right, of, first_text_ms, response_ms, longest_ms, tokens_per_second } =
                line;
            writeln!(
                out,
                "| {} | {right} of {of} | {} % | {} | {} | {} | {} |",
                mode.as_str(),
                right * 100 / of,
                decimal(*first_text_ms, 1),
                decimal(*response_ms, 1),
                decimal(*longest_ms, 1),
                decimal(*tokens_per_second, 0),
            )?;
        }
        writeln!(
            out,
            "\nCold: the first request, from the start of the server's process. Cached: one after the other, the model loaded. \
             Queued: all at once, the wait included. Isolated: a new worker process for each. Times are medians, memory is the \
             worker's resident set with the model loaded."
        )
    }

    fn write_problems(&self, out: &mut String) -> fmt::Result {
        let wrong: Vec<_> = self.run.outcomes.iter().filter(|outcome| !outcome.is_right()).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n## What is wrong\n")?;
        for Outcome { name, mode, problems, answer, .. } in wrong {
            write!(out, "- {} ({}): {}", line(name), mode.as_str(), line(&problems.join("; ")))?;
            if let Some(ObservedAnswer { text, .. }) = answer {
                write!(out, ". Answer: {}", line(text))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

fn prompts(outcomes: &[Outcome]) -> Vec<PromptLine> {
    let cached = outcomes.iter().filter(|outcome| outcome.mode == Mode::Cached);
    let line = |outcome: &Outcome| {
        let same = || outcomes.iter().filter(|other| other.name == outcome.name);
        let answer = outcome.answer.as_ref();
        PromptLine {
            name: outcome.name.clone(),
            right: same().all(Outcome::is_right),
            script_share: same().filter_map(|other| other.script_share).min_by(f64::total_cmp),
            text: answer.map(|seen| seen.text.clone()),
            response_ms: answer.map(|seen| seen.response_ms),
            tokens_per_second: answer.and_then(|seen| seen.tokens_per_second),
            memory: answer.map(|seen| seen.memory).unwrap_or_default(),
        }
    };
    cached.map(line).collect()
}

fn mode_line(outcomes: &[Outcome], mode: Mode) -> Option<ModeLine> {
    let asked: Vec<_> = outcomes.iter().filter(|outcome| outcome.mode == mode).collect();
    let figures = |figure: fn(&ObservedAnswer) -> Option<f64>| {
        let mut figures: Vec<_> =
            asked.iter().filter_map(|outcome| outcome.answer.as_ref().and_then(figure)).collect();
        figures.sort_by(f64::total_cmp);
        figures
    };
    let responses = figures(|seen| Some(seen.response_ms));
    (!asked.is_empty()).then(|| ModeLine {
        mode,
        right: asked.iter().filter(|outcome| outcome.is_right()).count(),
        of: asked.len(),
        first_text_ms: median(&figures(|seen| Some(seen.first_text_ms))),
        response_ms: median(&responses),
        longest_ms: responses.last().copied(),
        tokens_per_second: median(&figures(|seen| seen.tokens_per_second)),
    })
}

/// Median of sorted values.
fn median(sorted: &[f64]) -> Option<f64> {
    let (lower, upper) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
    Some(f64::midpoint(*sorted.get(lower)?, *sorted.get(upper)?))
}

fn memory(outcomes: &[Outcome]) -> MemoryUse {
    let of_one_worker = outcomes.iter().filter(|outcome| outcome.mode != Mode::Isolated);
    let answers: Vec<_> = of_one_worker.filter_map(|outcome| outcome.answer.as_ref()).collect();
    MemoryUse {
        before: answers.first().and_then(|seen| seen.memory.before),
        peak: answers.iter().filter_map(|seen| seen.memory.peak).max(),
        after: answers.last().and_then(|seen| seen.memory.after),
    }
}

fn shown(value: Option<impl Display>) -> String {
    value.map_or_else(|| "–".into(), |value| value.to_string())
}

fn decimal(value: Option<f64>, digits: usize) -> String {
    shown(value.map(|value| format!("{value:.digits$}")))
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn mebibytes(bytes: Option<u64>) -> String {
    decimal(bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)), 1)
}

/// Text on one line, with control characters escaped.
fn line(text: &str) -> String {
    let is_plain = |c: char| !c.is_control();
    text.chars().map(|c| if is_plain(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// Text for a cell of a Markdown table.
fn cell(text: &str) -> String {
    line(text).replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, mode: Mode, ms: f64, problems: &[&str]) -> Outcome {
        let memory = MemoryUse { before: Some(1 << 20), peak: Some(3 << 20), after: Some(2 << 20) };
        let text = "a|b\nc".to_owned();
        let answer = Some(ObservedAnswer { text, response_ms: ms, memory, ..ObservedAnswer::default() });
        let problems = problems.iter().map(|&problem| problem.to_owned()).collect();
        Outcome { name: name.into(), mode, script_share: Some(0.996), problems, answer }
    }

    fn report(required: usize) -> Report {
        let outcomes = vec![
            outcome("x", Mode::Cached, 10.0, &[]),
            outcome("y", Mode::Cached, 20.0, &[]),
            outcome("x", Mode::Queued, 10.0, &[]),
            outcome("y", Mode::Queued, 40.0, &["wrong script"]),
        ];
        Report::of(Run {
            eka: "0",
            suite: "s".into(),
            server: "http://x".into(),
            model: "m".into(),
            device: None,
            ready_ms: Some(1500.0),
            required,
            took_seconds: 2.0,
            outcomes,
        })
    }

    #[test]
    fn a_prompt_passes_if_all_its_answers_pass() {
        let strict = report(2);
        assert_eq!((strict.right, strict.of, strict.passed), (1, 2, false));
        assert!(report(1).passed);
        let queued = &strict.modes[1];
        assert_eq!((queued.right, queued.of, queued.response_ms), (1, 2, Some(25.0)));
        assert_eq!(queued.longest_ms, Some(40.0));
    }

    #[test]
    fn the_report_lists_problems_and_escapes_table_cells() {
        let text = report(2).markdown();
        assert!(text.starts_with("# Smoke: FAILED, 1 of 2 right\n"), "{text}");
        assert!(text.contains("| y | NO | 99 % | a\\|b\\nc | 20.0 | – | 1.0 | 3.0 | 2.0 |"), "{text}");
        assert!(text.contains("| queued | 1 of 2 | 50 % | 0.0 | 25.0 | 40.0 | – |"), "{text}");
        assert!(text.contains("- y (queued): wrong script. Answer: a|b\\nc\n"), "{text}");
    }
}
