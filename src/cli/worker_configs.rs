//! How the parent starts its workers: the models, memory and cores of each device's worker.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};

use super::{
    engine_args,
    exit::{Exit, WithExit},
    private_dir,
    resolve_model::{self, ResolvedModel},
    served_models::ServedModels,
    worker,
};
use crate::{
    child_process,
    config::{self, Config},
    device::{affinity, process_memory},
    device_spec::DeviceChoice,
    files,
    http::ModelRegistry,
    job::{GpuReport, KeepAlive},
    sandbox::Sandbox,
    supervise::{Budgets, ModelSource, Recycle, WorkerConfig, probe_device},
    text::Text,
    units::{Bytes, Tokens},
    wire::{DraftModel, WorkerSpec},
};

/// Checks that no other user can write to the default cache directory.
///
/// # Errors
/// When another user can.
pub(super) fn check_cache_dir(config: &Config) -> anyhow::Result<()> {
    if config.model.cache_dir.is_default() {
        private_dir::ensure(&config.model.cache_dir, "set model.cache_dir").with_exit(Exit::Usage)?;
    }
    Ok(())
}

/// How to start a worker with these models on the first configured device.
///
/// # Errors
/// When the program or a model's files are not found.
pub(super) fn on_first_device(config: &Config, models: &[ResolvedModel]) -> anyhow::Result<WorkerConfig> {
    worker_config(config, config.engine.device.first(), models)
}

/// The names of the configured devices, if there are several.
pub(super) fn labels(config: &Config) -> Vec<String> {
    let devices = &config.engine.device;
    if devices.all().len() > 1 { devices.labels() } else { Vec::new() }
}

/// The models to serve, and for each configured device, in the order of the settings, how to start its worker. Devices serve the
/// same models, but may use different exports of them.
///
/// # Errors
/// Those of [`on_first_device`], [`resolve_model::models`] and [`gpu`], and when no model can be used.
pub(super) async fn on_all_devices(
    config: &Config,
    sandbox: &Sandbox,
) -> anyhow::Result<(ModelRegistry, Vec<WorkerConfig>)> {
    let devices = &config.engine.device;
    let mut candidates = Vec::new();
    for device in devices.all() {
        candidates.push(resolve_model::models(config, gpu(config, *device).await?)?);
    }
    let served = ServedModels::open(candidates, sandbox).await?;
    served.registry.texts().for_each(|text| warn_of_context(config, text));
    let mut workers = Vec::new();
    for ((device, label), models) in devices.all().iter().zip(devices.labels()).zip(&served.devices) {
        let mut worker = with_cpu_share(worker_config(config, *device, models)?, config);
        if devices.all().len() > 1 {
            // Learned speeds differ between devices.
            let speed_file = format!("speed-{}.json", label.replace(':', "-"));
            worker.speed_file = Some(config.model.cache_dir.join(speed_file));
            worker.label = Some(label);
        }
        workers.push(worker);
    }
    if config.engine.pin_cores {
        pin(workers.iter_mut().map(|worker| &mut worker.spec))
            .context("engine.pin_cores")
            .with_exit(Exit::Machine)?;
    }
    Ok((served.registry, workers))
}

/// Pins each worker that may use the CPU to its own cores.
fn pin<'a>(workers: impl Iterator<Item = &'a mut WorkerSpec>) -> anyhow::Result<()> {
    let all = affinity::core_ids()
        .context("the physical cores of this machine cannot be read; set engine.pin_cores = false")?;
    let mut workers: Vec<_> =
        workers.filter(|spec| matches!(spec.device, DeviceChoice::Auto | DeviceChoice::Cpu)).collect();
    let count = workers.len();
    for (number, spec) in workers.iter_mut().enumerate() {
        let threads = spec.threads.unwrap_or_else(affinity::physical_cores);
        spec.processors = engine_args::share(&all, [number, count], threads)?.to_vec();
    }
    Ok(())
}

/// Capabilities of a device's GPU, if an export depends on them. A worker process finds out, because this process never loads
/// a device's libraries.
///
/// # Errors
/// When the only configured device is a GPU that cannot be used. A GPU among several, or of `auto`, is reported by its
/// supervisor.
pub(super) async fn gpu(config: &Config, choice: DeviceChoice) -> anyhow::Result<Option<GpuReport>> {
    if choice == DeviceChoice::Cpu || !resolve_model::is_exporting(config) {
        return Ok(None);
    }
    match probe_device(&worker_config(config, choice, &[])?).await {
        Ok(report) => Ok(report.gpu),
        Err(reason) if choice != DeviceChoice::Auto && config.engine.device.all().len() == 1 => {
            Err(anyhow!("{reason}; use --device cpu, or run eka doctor")).with_exit(Exit::Machine)
        }
        Err(_) => Ok(None),
    }
}

/// Warns when the settings ask for a longer context than the model has, because the model's is used then.
pub(super) fn warn_of_context(config: &Config, text: &Text) {
    let (model, card) = (Tokens(text.card().context_length), text.card());
    if let Some(asked) = config.engine.context_length.filter(|asked| *asked > model) {
        tracing::warn!(
            event = "context_shortened",
            model = card.id,
            "engine.context_length is {asked}, but {} has {model}: {model} is used; export it with a longer context, or lower the \
             setting",
            card.id
        );
    }
}

/// Divides cores and memory between several workers on the CPU, unless the settings set them.
fn with_cpu_share(mut worker: WorkerConfig, config: &Config) -> WorkerConfig {
    let cpus = config.engine.device.cpus();
    if worker.spec.device != DeviceChoice::Cpu || cpus < 2 {
        return worker;
    }
    worker.spec.threads.get_or_insert_with(|| (affinity::physical_cores() / cpus).max(1));
    if config.models.memory_bytes.is_none() {
        let share = |all: Bytes| Bytes(all.0 / u64::try_from(cpus).unwrap_or(1));
        worker.model_memory = worker.model_memory.map(share);
    }
    worker
}

fn worker_config(
    config: &Config,
    device: DeviceChoice,
    models: &[ResolvedModel],
) -> anyhow::Result<WorkerConfig> {
    let part = |of: u64| process_memory::machine_memory().map(|(total, _)| Bytes(total.0 / of));
    let spec = WorkerSpec {
        onnxruntime_dir: config.onnxruntime.dir.clone(),
        threads: config.engine.threads.map(Into::into),
        processors: Vec::new(),
        own_operators: config.engine.own_operators,
        kv_cache: config.engine.kv_cache,
        packed_file: config.engine.packed_file,
        prefill_chunk: config.engine.prefill_chunk.get(),
        context_length: config.engine.context_length.map(|n| n.0),
        device,
        device_memory: config.device.memory_limit_bytes,
        trim: config.device.trim,
        kv_keep: config.device.kv_keep_bytes,
        prefix_cache: config.engine.prefix_cache_bytes,
        adapters: config.models.adapters_bytes.or_else(|| part(4)).unwrap_or(Bytes::mib(1024)),
        draft_tokens: config.engine.draft_tokens,
        exact: config.engine.exact,
        cuda_graphs: config.device.cuda_graphs,
        host_pool: config.device.host_pool,
    };
    let keep_alive = config.models.keep_alive_ms;
    Ok(WorkerConfig {
        label: None,
        program: child_process::own_program().context("cannot find the path of this program")?,
        arguments: vec![worker::NAME.into()],
        spec,
        models: models.iter().map(model_source).collect::<Result<_, _>>()?,
        model_memory: config.models.memory_bytes.or_else(|| part(2)),
        keep_alive: keep_alive.map_or(KeepAlive::Forever, |keep_alive| KeepAlive::For(keep_alive.into())),
        budgets: budgets(&config.watchdog),
        recycle: recycle(&config.recycle),
        speed_file: Some(config.model.cache_dir.join("speed.json")),
        available_memory: || process_memory::machine_memory().map(|(_, available)| available),
    })
}

fn model_source(model: &ResolvedModel) -> anyhow::Result<ModelSource> {
    let (dir, on_disk) = canonical_dir_and_size(&model.dir)?;
    let mut source = ModelSource { id: model.id.as_str().into(), dir, draft: None, on_disk };
    if let Some(draft) = &model.draft {
        let (dir, size) = canonical_dir_and_size(&draft.dir)?;
        source.draft = Some(DraftModel { id: draft.id.as_str().into(), dir });
        source.on_disk = on_disk + size;
    }
    Ok(source)
}

/// A model's canonical directory, and the size of its files.
fn canonical_dir_and_size(dir: &Path) -> anyhow::Result<(PathBuf, Bytes)> {
    let failed = || format!("cannot read model directory {}", dir.display());
    let size = files::list(dir).with_context(failed)?.iter().map(|file| file.metadata.len()).sum();
    // Learned speeds are stored by directory, and must be found from every working directory.
    Ok((fs::canonicalize(dir).with_context(failed)?, Bytes(size)))
}

fn budgets(watchdog: &config::Watchdog) -> Budgets {
    Budgets {
        load: watchdog.load_ms.into(),
        warm_up: watchdog.warm_up_ms.into(),
        prefill_base: watchdog.prefill_base_ms.into(),
        prefill_factor: watchdog.prefill_factor,
        decode_floor: watchdog.decode_floor_ms.into(),
        decode_factor: watchdog.decode_factor,
        pipe: watchdog.pipe_ms.into(),
        idle: watchdog.idle_ms.into(),
    }
}

fn recycle(rules: &config::Recycle) -> Recycle {
    Recycle {
        after_jobs: rules.after_jobs,
        after: rules.after_ms.map(Into::into),
        growth: rules.memory_growth_bytes,
        between_requests: rules.between_requests,
    }
}
