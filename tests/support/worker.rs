//! Settings of a worker that is started without a server.

use std::{path::PathBuf, time::Duration};

use eka::{
    device_spec::{CacheChoice, DeviceChoice, PackedFileChoice},
    job::KeepAlive,
    supervise::{Budgets, ModelSource, Recycle, WorkerConfig},
    trim_policy::TrimPolicy,
    units::Bytes,
    wire::WorkerSpec,
};

/// A worker with one thread on the CPU.
pub(crate) fn worker_spec(prefill_chunk: usize, context_length: Option<usize>) -> WorkerSpec {
    WorkerSpec {
        onnxruntime_dir: None,
        threads: Some(1),
        processors: Vec::new(),
        own_operators: true,
        kv_cache: CacheChoice::Auto,
        packed_file: PackedFileChoice::Auto,
        prefill_chunk,
        context_length,
        device: DeviceChoice::Cpu,
        device_memory: None,
        trim: TrimPolicy::default(),
        kv_keep: Bytes(0),
        prefix_cache: Bytes(0),
        adapters: Bytes::mib(64),
        draft_tokens: 0,
        exact: false,
        cuda_graphs: false,
        host_pool: false,
    }
}

/// A worker for the model in `dir` that is recycled after every job, on a machine without memory for a second one.
pub(crate) fn recycling(dir: PathBuf) -> WorkerConfig {
    let place = ModelSource { id: "demo".into(), dir, draft: None, on_disk: Bytes::mib(4) };
    let second = Duration::from_secs(1);
    WorkerConfig {
        label: None,
        program: env!("CARGO_BIN_EXE_eka").into(),
        arguments: vec!["worker".into()],
        spec: worker_spec(64, None),
        models: vec![place],
        model_memory: None,
        keep_alive: KeepAlive::Forever,
        budgets: Budgets {
            load: 60 * second,
            warm_up: 60 * second,
            prefill_base: 60 * second,
            prefill_factor: 10,
            decode_floor: 60 * second,
            decode_factor: 10,
            pipe: 60 * second,
            idle: 60 * second,
        },
        recycle: Recycle {
            after_jobs: Some(1),
            after: None,
            growth: Bytes::mib(1024),
            between_requests: false,
        },
        speed_file: None,
        available_memory: || None,
    }
}
