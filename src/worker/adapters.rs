//! The adapters that the worker has in memory.
//!
//! An adapter is loaded for the first job that uses it, which takes milliseconds, and stays until the memory limit needs its
//! room: the least recently used adapter is dropped first. A job chooses its adapters before its first pass, also if it has none, so
//! that none is left from the job before.

use std::sync::Arc;

use super::loaded_model::LoadedModel;
use crate::{
    job::{Failure, JobAdapter, ModelId},
    manifest,
    model::LoadedAdapter,
    units::Bytes,
};

/// Adapters in memory, the least recently used first.
#[derive(Debug)]
pub(super) struct AdapterCache {
    entries: Vec<CachedAdapter>,
    max: Bytes,
}

#[derive(Debug)]
struct CachedAdapter {
    model: ModelId,
    name: String,
    hash: [u8; 32],
    adapter: Arc<LoadedAdapter>,
}

impl AdapterCache {
    /// Empty, with a limit of `max`.
    pub(super) const fn new(max: Bytes) -> Self {
        Self { entries: Vec::new(), max }
    }

    /// Size of all adapters.
    pub(super) fn bytes(&self) -> Bytes {
        self.entries.iter().map(|entry| entry.adapter.bytes()).sum()
    }

    /// Drops the adapters of a model, or all.
    pub(super) fn forget(&mut self, model: Option<&ModelId>) {
        self.entries.retain(|entry| model.is_some_and(|model| entry.model != *model));
    }

    /// Lets the next passes of `loaded`, the model with the id `model`, use `adapters`; loads those that are not in memory.
    ///
    /// # Errors
    /// [`Failure::Adapter`] when one cannot be loaded or all together exceed the limit. The model then has none.
    pub(super) fn activate(
        &mut self,
        model: &ModelId,
        loaded: &mut LoadedModel,
        adapters: &[JobAdapter],
    ) -> Result<(), Failure> {
        loaded.timeline.use_adapters(&[]);
        let mut active = Vec::with_capacity(adapters.len());
        for adapter in adapters {
            active.push((self.get(model, loaded, adapter)?, adapter.weight));
        }
        let active: Vec<(&LoadedAdapter, f32)> =
            active.iter().map(|(adapter, weight)| (&**adapter, *weight)).collect();
        self.make_room(adapters.len());
        if self.bytes() > self.max {
            let name = adapters.iter().map(|adapter| &*adapter.name).collect::<Vec<_>>().join(", ");
            let (bytes, max) = (self.bytes(), self.max);
            self.entries.clear();
            let message = format!(
                "it needs {bytes}, more than models.adapters_bytes ({max}); raise that, or export the adapter with a lower rank"
            );
            return Err(Failure::Adapter { name, message });
        }
        loaded.timeline.use_adapters(&active);
        Ok(())
    }

    /// An adapter from memory or from its directory; it is the most recently used one then.
    fn get(
        &mut self,
        model: &ModelId,
        loaded: &LoadedModel,
        JobAdapter { name, hash, .. }: &JobAdapter,
    ) -> Result<Arc<LoadedAdapter>, Failure> {
        let found = self.entries.iter().position(|entry| entry.model == *model && entry.name == *name);
        if let Some(found) = found {
            let entry = self.entries.remove(found);
            if entry.hash == *hash {
                let adapter = Arc::clone(&entry.adapter);
                self.entries.push(entry);
                return Ok(adapter);
            }
        }
        let dir = manifest::adapter_dir(&loaded.dir, name);
        let opened = loaded.timeline.model().load_adapter(&dir, hash, &loaded.identity);
        let adapter = opened.map_err(|e| Failure::Adapter { name: name.clone(), message: e.to_string() })?;
        let adapter = Arc::new(adapter);
        tracing::debug!("loaded adapter {name} of {model}: {}", adapter.bytes());
        self.entries.push(CachedAdapter {
            model: model.clone(),
            name: name.clone(),
            hash: *hash,
            adapter: Arc::clone(&adapter),
        });
        Ok(adapter)
    }

    /// Drops the least recently used adapters until the limit is kept, but not the last `used`.
    fn make_room(&mut self, used: usize) {
        while self.bytes() > self.max && self.entries.len() > used {
            self.entries.remove(0);
        }
    }
}
