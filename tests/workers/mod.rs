//! Worker processes: restarts, injected faults, several devices and models, device memory.

mod adapters;
mod device_memory;
mod gpu_detection;
mod injected_faults;
mod model_loading;
mod multi_device;
mod restarts;
mod worker_protocol;
