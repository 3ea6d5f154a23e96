//! Flags of commands that run a model in their own process, and opening it.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::output;
use crate::{
    device::{Device, OpenOptions, SessionOptions, affinity},
    device_spec::{CacheChoice, DeviceChoice, PackedFileChoice},
    engine::{Timeline, TimelineOptions},
    model::Model,
};

/// Flags of the engine.
#[derive(Debug, clap::Args)]
pub(super) struct EngineArgs {
    /// Directory of the ONNX Runtime library [default: ORT_DYLIB_PATH, lib/ beside the program, .onnxruntime/ above it]
    #[arg(long, value_name = "DIR", env = "EKA_ONNXRUNTIME_DIR")]
    onnxruntime: Option<PathBuf>,

    /// Device: auto, cpu, cuda, or cuda:N with the number of a GPU
    #[arg(long, value_name = "DEVICE", env = "EKA_ENGINE_DEVICE", default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,

    /// Compute threads [default: physical cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Pin threads to physical cores
    #[arg(long)]
    pin_cores: bool,

    /// Use eka's own operators on a CPU where they are faster
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    own_operators: bool,

    /// Run decode steps on a GPU as CUDA graphs
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    cuda_graphs: bool,

    /// Manage the CPU's memory like a GPU's, as device.host_pool does
    #[arg(long, hide = true)]
    host_pool: bool,

    /// Data type of the key-value cache with eka's own operators: auto, float32, float16 or int8
    #[arg(long, value_name = "FORMAT", default_value_t = CacheChoice::Auto)]
    kv_cache: CacheChoice,

    /// Keep packed weights in a file beside the graph: auto, always or never
    #[arg(long, value_name = "WHEN", default_value_t = PackedFileChoice::Auto)]
    packed_file: PackedFileChoice,

    /// Maximum number of prompt tokens in one forward pass
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=16384))]
    prefill_chunk: u16,
}

impl EngineArgs {
    /// Number of compute threads.
    pub(super) fn threads(&self) -> usize {
        self.threads.map_or_else(affinity::physical_cores, usize::from)
    }

    /// Opens the device, and prints a note if it is not the requested one.
    ///
    /// # Errors
    /// When the device does not exist or no library can be used.
    pub(super) fn device(&self) -> anyhow::Result<Device> {
        if self.pin_cores {
            let all = affinity::core_ids()
                .context("--pin-cores: the physical cores of this machine are unknown")?;
            share(&all, [0, 1], self.threads())
                .and_then(|cores| Ok(affinity::pin_to(cores)?))
                .context("--pin-cores")?;
        }
        let (choice, libraries, host_pool) = (self.device, self.onnxruntime.as_deref(), self.host_pool);
        let device = Device::open(OpenOptions { choice, libraries, host_pool, memory_limit: None })?;
        if let Some(why) = device.fell_back() {
            output::note(format_args!("using {device}: {why}"));
        }
        Ok(device)
    }

    /// Loads the model in `dir` and warms it up.
    ///
    /// # Errors
    /// When the model cannot be loaded.
    pub(super) fn open_on(&self, device: &Device, dir: &Path) -> anyhow::Result<Timeline> {
        let session = SessionOptions {
            threads: self.threads(),
            own_operators: self.own_operators,
            captures: self.cuda_graphs,
            cache: self.kv_cache,
            packed_file: self.packed_file,
        };
        let model = Model::open_on(device, dir, session)?;
        let options =
            TimelineOptions { chunk: usize::from(self.prefill_chunk), ..TimelineOptions::default() };
        let mut timeline = Timeline::new(model, options)?;
        timeline.warm_up()?;
        Ok(timeline)
    }
}

/// The cores of one of `count` workers with `threads` threads each.
///
/// # Errors
/// When there are too few cores.
pub(super) fn share(all: &[usize], [number, count]: [usize; 2], threads: usize) -> anyhow::Result<&[usize]> {
    let found = all.get(number * threads..(number + 1) * threads).filter(|_| count * threads <= all.len());
    found.with_context(|| {
        format!(
            "pinning {count} workers with {threads} threads each needs {} physical cores, but this process may use {}; \
             lower engine.threads, or disable engine.pin_cores",
            count * threads,
            all.len()
        )
    })
}
