//! Measurements with adapters beside a model: `eka bench --adapters`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::{
    engine::Timeline,
    manifest::{self, AdapterManifest},
    model::LoadedAdapter,
    units::Bytes,
};

/// Adapters in memory, and what was measured with them.
pub(super) struct AdapterRounds {
    adapters: Vec<LoadedAdapter>,
    /// Seconds to load each.
    pub(super) load: Vec<f64>,
    /// Seconds to switch to each.
    pub(super) switch: Vec<f64>,
    /// Speed with an adapter, as a share of that without.
    pub(super) prefill: Vec<f64>,
    pub(super) decode: Vec<f64>,
}

impl AdapterRounds {
    /// Loads the first `count` adapters of the model in `dir`.
    ///
    /// # Errors
    /// When there are fewer, or one cannot be loaded.
    pub(super) fn load(timeline: &Timeline, dir: &Path, count: usize) -> anyhow::Result<Self> {
        let mut found: Vec<PathBuf> = fs::read_dir(dir.join(manifest::ADAPTERS))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.join(manifest::ADAPTER_FILE).is_file())
            .collect();
        found.sort();
        ensure!(
            (1..=found.len()).contains(&count),
            "--adapters is {count}, and {} has {} adapters; use 1 to that number, or add some with `eka export-adapter`",
            dir.display(),
            found.len()
        );
        let base = manifest::identity(dir)?;
        let (mut adapters, mut load) = (Vec::new(), Vec::new());
        for path in &found[..count] {
            let (_, hash) = AdapterManifest::read(path)?;
            let began = Instant::now();
            adapters.push(timeline.model().load_adapter(path, &hash, &base)?);
            load.push(began.elapsed().as_secs_f64());
        }
        Ok(Self { adapters, load, switch: Vec::new(), prefill: Vec::new(), decode: Vec::new() })
    }

    /// Number of adapters.
    pub(super) const fn count(&self) -> usize {
        self.adapters.len()
    }

    /// Their size in memory.
    pub(super) fn bytes(&self) -> Bytes {
        self.adapters.iter().map(LoadedAdapter::bytes).sum()
    }

    /// Runs `measure` without and with the next adapter; it returns the durations of prefill and decode.
    ///
    /// # Errors
    /// Those of `measure`.
    pub(super) fn round(
        &mut self,
        timeline: &mut Timeline,
        mut measure: impl FnMut(&mut Timeline) -> anyhow::Result<[Duration; 2]>,
    ) -> anyhow::Result<()> {
        let adapter = &self.adapters[self.decode.len() % self.adapters.len()];
        timeline.use_adapters(&[]);
        let without = measure(timeline)?;
        let began = Instant::now();
        timeline.use_adapters(&[(adapter, 1.0)]);
        self.switch.push(began.elapsed().as_secs_f64());
        let with = measure(timeline)?;
        timeline.use_adapters(&[]);
        let share = |index: usize| without[index].as_secs_f64() / with[index].as_secs_f64();
        self.prefill.push(share(0));
        self.decode.push(share(1));
        Ok(())
    }
}
