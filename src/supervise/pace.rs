//! What was learned of each model's speed, kept between runs, so that a server that has just started does not have to
//! give its first prompts the time that an unknown machine would need.
//!
//! It is a hint in a cache: a file that cannot be read counts as none, and one that cannot be written is no reason to stop.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    WorkerCommand,
    watchdog::{Learned, Watchdog},
};
use crate::{files, job::ModelId, units::Bytes};

/// Thousands of models are smaller.
const MOST_FILE: Bytes = Bytes::mib(16);

/// A watchdog for each model, for no two are equally fast.
#[derive(Debug, Default)]
pub(super) struct Watchdogs {
    by_model: HashMap<ModelId, Watchdog>,
}

impl Watchdogs {
    /// The one of this model, which knows what the runs before have learned.
    pub(super) fn of(&mut self, model: &ModelId, command: &WorkerCommand) -> &mut Watchdog {
        self.by_model.entry(model.clone()).or_insert_with(|| {
            let learned = command
                .pace_file
                .as_deref()
                .zip(command.place(model))
                .and_then(|(file, place)| read(file, &place.dir));
            learned.map_or_else(
                || Watchdog::new(command.budgets),
                |learned| Watchdog::with(command.budgets, learned),
            )
        })
    }

    /// Keeps for the next run what was learned in this one.
    pub(super) fn save(&self, command: &WorkerCommand) {
        let Some(file) = &command.pace_file else { return };
        let dir = |model| Some(command.place(model)?.dir.clone());
        let learned: BTreeMap<_, _> = self
            .by_model
            .iter()
            .filter_map(|(model, watchdog)| Some((dir(model)?, watchdog.learned()?)))
            .collect();
        if learned.is_empty() {
            return;
        }
        if let Err(e) = write(file, learned) {
            tracing::debug!("{}: {e}; the next run learns this machine's speed anew", file.display());
        }
    }
}

/// The file's content, by model directory.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Paces {
    models: BTreeMap<PathBuf, Learned>,
}

/// Reads what was learned of the model in `dir`.
fn read(file: &Path, dir: &Path) -> Option<Learned> {
    read_all(file).models.get(dir).copied()
}

/// Adds to what other servers have written meanwhile. It replaces the file as a whole, so that nobody reads half of it.
fn write(file: &Path, learned: BTreeMap<PathBuf, Learned>) -> io::Result<()> {
    let mut all = read_all(file);
    all.models.extend(learned);
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let fresh = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&fresh, &all)?;
    fresh.persist(file)?;
    Ok(())
}

fn read_all(file: &Path) -> Paces {
    let read = files::read(file, MOST_FILE).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
    read.unwrap_or_else(|e| {
        tracing::debug!("{}: {e}; nothing is known of this machine's speed", file.display());
        Paces::default()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_learned_is_known_in_the_next_run_beside_what_others_learned() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/pace.json");
        let one = Learned::new(Duration::from_micros(700), Duration::from_millis(30));
        write(&file, BTreeMap::from([("/models/one".into(), one)])).unwrap();
        let two = Learned::new(Duration::from_secs(1), Duration::MAX);
        write(&file, BTreeMap::from([("/models/two".into(), two)])).unwrap();
        assert_eq!(read(&file, Path::new("/models/one")), Some(one));
        assert_eq!(read(&file, Path::new("/models/two")), Some(two));
        assert_eq!(read(&file, Path::new("/models/three")), None);
        assert_eq!((one.prefill(), one.step()), (Duration::from_micros(700), Duration::from_millis(30)));
    }

    #[test]
    fn a_file_that_is_damaged_counts_as_none_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pace.json");
        for damaged in ["", "{", "[]", r#"{"models": {"a": {"prefill_ns": -1}}}"#, "\0\u{1}"] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(read(&file, Path::new("a")), None, "{damaged:?}");
        }
        let learned = Learned::new(Duration::from_millis(1), Duration::from_millis(2));
        write(&file, BTreeMap::from([("a".into(), learned)])).unwrap();
        assert_eq!(read(&file, Path::new("a")), Some(learned));
    }
}
