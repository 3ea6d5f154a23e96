//! Opening a model in this process, for the commands that measure and do not serve.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::output;
use crate::{
    device::{Device, OpenOptions, SessionOptions, cores, host},
    device_spec::{CacheChoice, DeviceChoice},
    engine::{Timeline, TimelineOptions},
    model::Model,
};

/// How to run the model.
#[derive(Debug, clap::Args)]
pub(super) struct EngineArgs {
    /// Directory of ONNX Runtime's library; without it, ORT_DYLIB_PATH, then `lib/` beside the binary, then `.onnxruntime/` above it
    #[arg(long, value_name = "DIR", env = "EKA_ONNXRUNTIME_DIR")]
    onnxruntime: Option<PathBuf>,

    /// What computes: auto, cpu, cuda, or cuda:N with the number of a GPU
    #[arg(long, value_name = "DEVICE", env = "EKA_ENGINE_DEVICE", default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,

    /// Threads that compute [default: physical cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Keep threads to physical cores of their own
    #[arg(long)]
    pin_cores: bool,

    /// On a CPU, whether eka's own operators compute where they can
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    own_operators: bool,

    /// On a GPU, whether decode steps are captured as CUDA graphs
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    cuda_graphs: bool,

    /// Treat the CPU's memory as a GPU's is treated, as device.host_pool does
    #[arg(long, hide = true)]
    host_pool: bool,

    /// What the key-value cache is stored in where they do: auto, float32, float16 or int8
    #[arg(long, value_name = "FORMAT", default_value_t = CacheChoice::Auto)]
    kv_cache: CacheChoice,

    /// Most prompt tokens in one pass
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=16384))]
    prefill_chunk: u16,
}

impl EngineArgs {
    /// Threads that will compute.
    pub(super) fn threads(&self) -> usize {
        self.threads.map_or_else(host::physical_cores, usize::from)
    }

    /// Opens the device, and says which it is unless it is the one asked for.
    ///
    /// # Errors
    /// When there is no such device, or no library that can be used.
    pub(super) fn device(&self) -> anyhow::Result<Device> {
        if self.pin_cores {
            let all = cores::cores().context("--pin-cores: which processors are cores is not known")?;
            share(&all, [0, 1], self.threads())
                .and_then(|cores| Ok(cores::keep_to(cores)?))
                .context("--pin-cores")?;
        }
        let (choice, libraries, host_pool) = (self.device, self.onnxruntime.as_deref(), self.host_pool);
        let device = Device::open(OpenOptions { choice, libraries, host_pool, memory_limit: None })?;
        if let Some(why) = device.fell_back() {
            output::note(format_args!("on {device}, as {why}"));
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
        };
        let model = Model::open_on(device, dir, session)?;
        let options =
            TimelineOptions { chunk: usize::from(self.prefill_chunk), ..TimelineOptions::default() };
        let mut timeline = Timeline::new(model, options)?;
        timeline.warm_up()?;
        Ok(timeline)
    }
}

/// The cores of worker `number` of so `many`, `threads` each.
///
/// # Errors
/// When there are too few.
pub(super) fn share(all: &[usize], [number, many]: [usize; 2], threads: usize) -> anyhow::Result<&[usize]> {
    let found = all.get(number * threads..(number + 1) * threads).filter(|_| many * threads <= all.len());
    found.with_context(|| {
        format!(
            "{many} workers of {threads} threads on cores of their own need {} physical cores, and this process may use {}: \
             lower engine.threads, or do without",
            many * threads,
            all.len()
        )
    })
}
