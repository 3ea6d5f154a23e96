//! Starting a worker: settings, device, reader thread.

use std::{
    io::{Read, Write},
    process,
    sync::{Arc, mpsc},
    thread,
};

use super::{
    adapters::AdapterCache,
    error::WorkerError,
    faults::{FaultInjector, FaultPlan},
    memory::MemoryTracker,
    server::Server,
    stop_signals::StopSignals,
};
use crate::{
    device::{
        Device, OpenError, OpenOptions, affinity,
        scheduling::{SchedulingHint, set_scheduling_hint},
    },
    job::{GpuReport, RuntimeReport},
    wire::{self, FromWorker, PROTOCOL, ToWorker, WorkerSpec},
};

/// Serves the parent, which sends frames to `input` and reads `output`, until it asks for a shutdown. Injects the faults of `plan`.
///
/// # Errors
/// [`WorkerError`] when the device cannot be opened, the pipe fails, or the device can no longer be used.
pub fn run(
    input: impl Read + Send + 'static,
    output: impl Write + 'static,
    plan: FaultPlan,
) -> Result<(), WorkerError> {
    let (faults, mut output) = FaultInjector::new(plan, output);
    wire::write(&FromWorker::Hello { protocol: PROTOCOL }, &mut output)?;
    let signals = Arc::new(StopSignals::default());
    let frames = read_frames(input, Arc::clone(&signals));
    let spec = match frames.recv() {
        Ok(ToWorker::Start(spec)) => spec,
        Ok(ToWorker::Shutdown) | Err(_) => return Ok(()),
        Ok(other) => return Err(WorkerError::NoStart(format!("{other:?}"))),
    };
    // The thread that forwards tokens must be scheduled before the one that computes them. ONNX Runtime's threads inherit this.
    set_scheduling_hint(SchedulingHint::Throughput);
    let device = match open(&spec) {
        Ok(device) => device,
        Err(e) => {
            // The parent may have ended too.
            let _ = wire::write(&FromWorker::StartFailed { message: e.to_string() }, &mut output);
            return Err(e.into());
        }
    };
    let threads = spec.threads.unwrap_or_else(affinity::physical_cores);
    let memory = MemoryTracker::new(device.pool().cloned(), spec.trim);
    let report = RuntimeReport {
        runtime: device.runtime().version(),
        library: device.runtime().path().to_path_buf(),
        device: device.to_string(),
        gpu: device.gpu().map(|gpu| GpuReport { has_bfloat16: gpu.has_bfloat16 }),
        fell_back: device.fell_back().map(ToString::to_string),
        threads,
        memory: memory.idle(),
    };
    wire::write(&FromWorker::Started(report), &mut output)?;
    let (models, adapters) = (Default::default(), AdapterCache::new(spec.adapters));
    Server { models, device, spec, threads, signals, output, memory, faults, adapters }.serve(&frames)
}

fn open(spec: &WorkerSpec) -> Result<Device, OpenError> {
    // Before anything is loaded, because later threads inherit the affinity of this one.
    if !spec.processors.is_empty()
        && let Err(e) = affinity::pin_to(&spec.processors)
    {
        tracing::warn!("cannot pin threads to processors {:?}: {e}", spec.processors);
    }
    Device::open(OpenOptions {
        choice: spec.device,
        libraries: spec.onnxruntime_dir.as_deref(),
        memory_limit: spec.device_memory,
        host_pool: spec.host_pool,
    })
}

/// Reads frames on a separate thread. The process exits when the parent closes the pipe.
fn read_frames(mut input: impl Read + Send + 'static, signals: Arc<StopSignals>) -> mpsc::Receiver<ToWorker> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        loop {
            match wire::read::<ToWorker>(&mut input) {
                Ok(Some(ToWorker::Cancel(job))) => signals.cancel(job),
                Ok(Some(frame)) => {
                    if frame == ToWorker::Shutdown {
                        signals.shut_down();
                    }
                    if sender.send(frame).is_err() {
                        return;
                    }
                }
                Ok(None) => process::exit(0),
                Err(e) => {
                    tracing::error!("cannot read a frame from the parent: {e}");
                    process::exit(1);
                }
            }
        }
    });
    receiver
}
