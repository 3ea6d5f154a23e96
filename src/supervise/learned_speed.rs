//! The measured speed of each model, kept in a file between runs, so that a new server does not have to use the long timeouts
//! for an unknown machine.
//!
//! The file is only a cache: if it cannot be read or written, the speed is measured again.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    watchdog::{LearnedSpeed, Watchdog},
    worker_config::WorkerConfig,
};
use crate::{files, job::ModelId};

/// A watchdog for each model, because models differ in speed.
#[derive(Debug, Default)]
pub(super) struct Watchdogs {
    by_model: HashMap<ModelId, Watchdog>,
}

impl Watchdogs {
    /// The watchdog of `model`, which starts with the speed from earlier runs.
    pub(super) fn of(&mut self, model: &ModelId, config: &WorkerConfig) -> &mut Watchdog {
        self.by_model.entry(model.clone()).or_insert_with(|| {
            let learned = config
                .speed_file
                .as_deref()
                .zip(config.source(model))
                .and_then(|(file, source)| read(file, &source.dir));
            learned.map_or_else(
                || Watchdog::new(config.budgets),
                |learned| Watchdog::with(config.budgets, learned),
            )
        })
    }

    /// Writes the speeds for the next run.
    pub(super) fn save(&self, config: &WorkerConfig) {
        let Some(file) = &config.speed_file else { return };
        let dir = |model| Some(config.source(model)?.dir.clone());
        let learned: BTreeMap<_, _> = self
            .by_model
            .iter()
            .filter_map(|(model, watchdog)| Some((dir(model)?, watchdog.learned()?)))
            .collect();
        if learned.is_empty() {
            return;
        }
        if let Err(e) = write(file, learned) {
            tracing::debug!(
                "cannot write {}: {e}; the next run will measure the speed again",
                file.display()
            );
        }
    }
}

/// Content of the file, by model directory.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SpeedFile {
    models: BTreeMap<PathBuf, LearnedSpeed>,
}

/// The speed of the model in `dir`.
fn read(file: &Path, dir: &Path) -> Option<LearnedSpeed> {
    read_all(file).models.get(dir).copied()
}

/// Adds `learned` to the entries of other servers. Replaces the whole file, so that other processes never read half of it.
fn write(file: &Path, learned: BTreeMap<PathBuf, LearnedSpeed>) -> io::Result<()> {
    let mut all = read_all(file);
    all.models.extend(learned);
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let fresh = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&fresh, &all)?;
    fresh.persist(file)?;
    Ok(())
}

fn read_all(file: &Path) -> SpeedFile {
    let read = files::read(file, files::MAX_JSON).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
    read.unwrap_or_else(|e| {
        tracing::debug!("cannot read {}: {e}; the speed of this machine is unknown", file.display());
        SpeedFile::default()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn speeds_are_kept_for_the_next_run_together_with_those_of_other_servers() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/speed.json");
        let one = LearnedSpeed::new(Duration::from_micros(700), Duration::from_millis(30));
        write(&file, BTreeMap::from([("/models/one".into(), one)])).unwrap();
        let two = LearnedSpeed::new(Duration::from_secs(1), Duration::MAX);
        write(&file, BTreeMap::from([("/models/two".into(), two)])).unwrap();
        assert_eq!(read(&file, Path::new("/models/one")), Some(one));
        assert_eq!(read(&file, Path::new("/models/two")), Some(two));
        assert_eq!(read(&file, Path::new("/models/three")), None);
        assert_eq!((one.prefill(), one.step()), (Duration::from_micros(700), Duration::from_millis(30)));
    }

    #[test]
    fn a_damaged_file_is_ignored_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("speed.json");
        for damaged in ["", "{", "[]", r#"{"models": {"a": {"prefill_ns": -1}}}"#, "\0\u{1}"] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(read(&file, Path::new("a")), None, "{damaged:?}");
        }
        let learned = LearnedSpeed::new(Duration::from_millis(1), Duration::from_millis(2));
        write(&file, BTreeMap::from([("a".into(), learned)])).unwrap();
        assert_eq!(read(&file, Path::new("a")), Some(learned));
    }
}
