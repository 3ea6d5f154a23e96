//! Results and their limits.

use std::{fmt, fs, path::Path};

use serde::Serialize;

use crate::{Setup, soak::BenchResult};

/// One finding.
#[derive(Debug, Serialize)]
struct Row {
    check: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bar: Option<String>,
    found: String,
    /// `None` without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

/// All findings of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    device: String,
    eka: &'static str,
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new(setup: &Setup) -> Self {
        Self { device: setup.device.to_string(), eka: env!("CARGO_PKG_VERSION"), rows: Vec::new() }
    }

    /// A result without a limit.
    pub(crate) fn info(&mut self, check: &str, found: &str) {
        self.rows.push(Row { check: check.into(), bar: None, found: found.into(), met: None });
    }

    /// A result and its limit.
    pub(crate) fn check(&mut self, check: &str, bar: &str, found: &str, met: bool) {
        self.rows.push(Row {
            check: check.into(),
            bar: Some(bar.into()),
            found: found.into(),
            met: Some(met),
        });
    }

    /// A check that could not be carried out.
    pub(crate) fn failed(&mut self, check: &str, why: &str) {
        self.check(check, "can be checked", why, false);
    }

    pub(crate) fn is_good(&self) -> bool {
        self.rows.iter().all(|row| row.met != Some(false))
    }

    /// Writes it to `directory`, for people and for programs.
    pub(crate) fn write(&self, directory: Option<&Path>) -> BenchResult<()> {
        let Some(directory) = directory else { return Ok(()) };
        fs::create_dir_all(directory)?;
        fs::write(directory.join("gpu-check.json"), serde_json::to_string_pretty(self)? + "\n")?;
        fs::write(directory.join("gpu-check.md"), self.to_string())?;
        Ok(())
    }
}

/// As Markdown.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "eka {} on {}\n", self.eka, self.device)?;
        writeln!(f, "| check | found | bar | |\n|---|---|---|---|")?;
        for Row { check, bar, found, met } in &self.rows {
            let verdict = match met {
                None => "",
                Some(true) => "met",
                Some(false) => "**MISSED**",
            };
            writeln!(f, "| {check} | {found} | {} | {verdict} |", bar.as_deref().unwrap_or_default())?;
        }
        Ok(())
    }
}
