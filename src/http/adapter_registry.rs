//! The adapters that are served beside their bases, by model and name.
//!
//! They are found in the directory `adapters` of each model, when the server starts and whenever it is scanned again: an adapter
//! that is copied there can be used without a restart, and one that is removed is refused from then on. Only manifests are read here;
//! workers load the tensors when a request needs them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::manifest::{self, ADAPTER_FILE, AdapterManifest};

/// Most adapters of one model.
const MAX_ADAPTERS: usize = 10_000;

/// Most adapters that metrics name.
const MAX_LABELS: usize = 200;

/// An adapter of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServedAdapter {
    pub(crate) name: String,
    /// SHA-256 of its manifest.
    pub(crate) hash: [u8; 32],
    /// When its manifest was written, in seconds since 1970.
    pub(crate) created: u64,
    pub(crate) rank: usize,
    /// Names of the modules that it changes, without their layers.
    pub(crate) targets: Vec<String>,
    /// Size of its tensors in bytes.
    pub(crate) bytes: u64,
    /// Why it cannot be mixed with other adapters; `None` if it can.
    pub(crate) exclusive: Option<String>,
}

/// What a scan has changed: `MODEL:NAME` each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScanReport {
    pub(crate) added: Vec<String>,
    pub(crate) replaced: Vec<String>,
    pub(crate) removed: Vec<String>,
    /// Adapters that cannot be used, with the reason.
    pub(crate) refused: Vec<(String, String)>,
}

/// Adapters by name.
type Adapters = BTreeMap<String, Arc<ServedAdapter>>;

/// The adapters of all models. Clones refer to the same ones.
#[derive(Clone, Debug, Default)]
pub struct AdapterRegistry {
    /// The directories of the models, by id.
    dirs: Arc<BTreeMap<String, PathBuf>>,
    found: Arc<RwLock<Arc<Found>>>,
    /// Adapters that metrics have named.
    counted: Arc<Mutex<BTreeSet<String>>>,
}

/// What the last scan has found.
#[derive(Debug, Default)]
struct Found {
    adapters: BTreeMap<String, Adapters>,
    /// Manifests that were read, with their time and length, so that only changed ones are read again.
    seen: BTreeMap<PathBuf, (Stamp, Result<Arc<ServedAdapter>, String>)>,
}

/// The time and length of a file.
type Stamp = (Option<SystemTime>, u64);

impl AdapterRegistry {
    /// For models in these directories, by their ids. Nothing is found before the first scan.
    #[must_use]
    pub fn new(dirs: BTreeMap<String, PathBuf>) -> Self {
        Self { dirs: Arc::new(dirs), ..Self::default() }
    }

    /// Reads the directories again. It reads files, so it must not run on the HTTP thread.
    fn scan(&self) -> ScanReport {
        let before = self.found();
        let mut now = Found::default();
        for (model, dir) in &*self.dirs {
            let adapters = now.read_model(dir, &before);
            now.adapters.insert(model.clone(), adapters);
        }
        let report = changes(&before, &now, &self.dirs);
        *self.found.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
        report
    }

    /// [Scans](Self::scan), and logs what has changed.
    pub(crate) fn scan_and_log(&self) -> ScanReport {
        let report = self.scan();
        for (event, names) in
            [("added", &report.added), ("replaced", &report.replaced), ("removed", &report.removed)]
        {
            if !names.is_empty() {
                let adapters = names.join(", ");
                tracing::info!(event = "adapters_changed", adapters, "adapters {event}: {adapters}");
            }
        }
        for (adapter, reason) in &report.refused {
            tracing::warn!(event = "adapter_unavailable", adapter, "adapter not served: {reason}");
        }
        report
    }

    /// Scans now and then every `interval`, on a thread that may wait for the disk. Does not complete.
    pub async fn watch(self, interval: Duration) {
        loop {
            let registry = self.clone();
            let _ = tokio::task::spawn_blocking(move || registry.scan_and_log()).await;
            tokio::time::sleep(interval).await;
        }
    }

    /// The adapters of a model, by their names.
    pub(crate) fn of_model(&self, model: &str) -> Vec<Arc<ServedAdapter>> {
        self.found().adapters.get(model).map(|all| all.values().cloned().collect()).unwrap_or_default()
    }

    /// The adapter of a model with this name.
    pub(crate) fn find(&self, model: &str, name: &str) -> Option<Arc<ServedAdapter>> {
        self.found().adapters.get(model)?.get(name).cloned()
    }

    /// The name of an adapter in metrics, whose number of names has a limit.
    pub(crate) fn label(&self, model: &str, name: &str) -> String {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let label = format!("{model}:{name}");
        if counted.contains(&label) || (counted.len() < MAX_LABELS && counted.insert(label.clone())) {
            label
        } else {
            "other".into()
        }
    }

    fn found(&self) -> Arc<Found> {
        Arc::clone(&self.found.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Found {
    /// The usable adapters of the model in `dir`.
    fn read_model(&mut self, dir: &Path, before: &Self) -> Adapters {
        let mut adapters = Adapters::new();
        let Ok(entries) = fs::read_dir(dir.join(manifest::ADAPTERS)) else { return adapters };
        let mut identity = None;
        for entry in entries.flatten().take(MAX_ADAPTERS) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path().join(ADAPTER_FILE);
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if !manifest::is_adapter_name(&name) {
                continue;
            }
            let stamp = (metadata.modified().ok(), metadata.len());
            let read = match before.seen.get(&path) {
                Some((known, read)) if *known == stamp => read.clone(),
                _ => {
                    let base = identity.get_or_insert_with(|| manifest::identity(dir).unwrap_or_default());
                    read_adapter(&entry.path(), &name, (base, stamp.0)).map(Arc::new)
                }
            };
            if let Ok(adapter) = &read {
                adapters.insert(name, Arc::clone(adapter));
            }
            self.seen.insert(path, (stamp, read));
        }
        adapters
    }
}

fn read_adapter(
    dir: &Path,
    name: &str,
    (base, modified): (&str, Option<SystemTime>),
) -> Result<ServedAdapter, String> {
    let (manifest, hash) = AdapterManifest::read(dir).map_err(|e| e.to_string())?;
    if manifest.base != base {
        return Err(format!(
            "{}: it was exported for another base, or the base was exported again since; run `eka export-adapter` again",
            dir.display()
        ));
    }
    let since = modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Ok(ServedAdapter {
        name: name.to_owned(),
        hash,
        created: since.map_or(0, |since| since.as_secs()),
        rank: manifest.rank,
        targets: manifest.targets,
        bytes: manifest.files.iter().map(|file| file.bytes).sum(),
        exclusive: manifest.exclusive,
    })
}

/// What differs between two scans.
fn changes(before: &Found, now: &Found, dirs: &BTreeMap<String, PathBuf>) -> ScanReport {
    let mut report = ScanReport::default();
    for model in dirs.keys() {
        let none = Adapters::new();
        let [old, new] = [before, now].map(|found| found.adapters.get(model).unwrap_or(&none));
        for (name, adapter) in new {
            match old.get(name) {
                None => report.added.push(format!("{model}:{name}")),
                Some(known) if known.hash != adapter.hash => report.replaced.push(format!("{model}:{name}")),
                Some(_) => {}
            }
        }
        let removed = old.keys().filter(|name| !new.contains_key(*name));
        report.removed.extend(removed.map(|name| format!("{model}:{name}")));
    }
    for (path, (stamp, read)) in &now.seen {
        if let Err(reason) = read
            && before.seen.get(path).is_none_or(|(known, _)| known != stamp)
        {
            report.refused.push((path.parent().unwrap_or(path).display().to_string(), reason.clone()));
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ADAPTER_SCHEMA;

    fn write(model: &Path, name: &str, base: &str, rank: usize) {
        let dir = manifest::adapter_dir(model, name);
        fs::create_dir_all(&dir).unwrap();
        let manifest = AdapterManifest {
            schema: ADAPTER_SCHEMA,
            exporter: "eka".into(),
            base: base.into(),
            rank,
            alpha: 1.0,
            targets: vec!["q_proj".into()],
            exclusive: None,
            products: Vec::new(),
            sources: Vec::new(),
            files: Vec::new(),
        };
        fs::write(dir.join(ADAPTER_FILE), manifest.to_json()).unwrap();
    }

    #[test]
    fn adapters_appear_change_and_disappear_with_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(manifest::FILE_NAME), "{}").unwrap();
        let base = manifest::identity(dir.path()).unwrap();
        let registry = AdapterRegistry::new([("m".to_owned(), dir.path().to_owned())].into());
        assert_eq!(registry.scan(), ScanReport::default());
        write(dir.path(), "a", &base, 4);
        write(dir.path(), "b", "another base", 4);
        fs::create_dir(manifest::adapter_dir(dir.path(), ".c.partial-1")).unwrap();
        let report = registry.scan();
        assert_eq!((report.added, report.refused.len()), (vec!["m:a".to_owned()], 1));
        assert!(report.refused[0].1.contains("another base"));
        assert_eq!(registry.scan(), ScanReport::default(), "a refusal is reported once");
        let first = registry.find("m", "a").unwrap();
        write(dir.path(), "a", &base, 16);
        assert_eq!(registry.scan().replaced, ["m:a"]);
        let second = registry.find("m", "a").unwrap();
        assert!(second.hash != first.hash && second.rank == 16);
        fs::remove_dir_all(manifest::adapter_dir(dir.path(), "a")).unwrap();
        assert_eq!(registry.scan().removed, ["m:a"]);
        assert!(registry.find("m", "a").is_none() && registry.of_model("m").is_empty());
    }
}
