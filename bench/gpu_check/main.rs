//! All checks that need a real GPU, in one run: placement, parity, memory, speed, a killed worker.
//!
//! `scripts/gpu-check` starts it. Each check adds rows with a result and its limit to one table. With `--device cpu` the same
//! checks run on the CPU with small models and a memory pool like a GPU's, so that the program is tested before it runs on a
//! rented machine.

mod memory;
mod parity;
mod served;
#[path = "../server.rs"]
mod server;
#[path = "../pool_soak/soak.rs"]
mod soak;
mod speed;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use clap::Parser;
use eka::{
    device::{Device, OpenError, OpenOptions, SessionOptions, affinity},
    device_spec::{CacheChoice, DeviceChoice, PackedFileChoice},
    engine::{Timeline, TimelineOptions},
    manifest::Dtype,
    model::Model,
    units::Bytes,
};
use serde_json::Value;

use soak::BenchResult;
use table::Table;

/// Checks a GPU, or the CPU in its place
#[derive(Debug, Parser)]
#[command(name = "gpu_check")]
struct Args {
    /// What to check: cuda, cuda:N, or cpu
    #[arg(long, default_value_t = DeviceChoice::Cuda(0))]
    device: DeviceChoice,
    /// Directory of ONNX Runtime and of the CUDA libraries that it needs
    #[arg(long, value_name = "DIR", env = "EKA_ONNXRUNTIME_DIR")]
    libraries: Option<PathBuf>,
    /// The program
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_eka"))]
    eka: PathBuf,
    /// A checkout, for the demonstration model and the fixtures
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_MANIFEST_DIR"))]
    root: PathBuf,
    /// Write the table and the figures there: gpu-check.md, gpu-check.json
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Small models and few requests
    #[arg(long)]
    quick: bool,
    /// Only these checks
    #[arg(long, value_delimiter = ',', value_name = "CHECK")]
    only: Vec<Check>,
    /// Passed by `cargo bench`: run everything
    #[arg(long, hide = true)]
    bench: bool,
    /// Passed by cargo's test run: run once and short
    #[arg(long, hide = true)]
    test: bool,
}

/// The checks, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Check {
    /// Devices of this machine, and placement of the demonstration's nodes
    Doctor,
    /// Logits and greedy answers of the fixtures, and the ten prompts
    Parity,
    /// Requests of all lengths, and memory that remains
    Soak,
    /// Cost of a trim for the next request
    Trim,
    /// Tokens per second of random weights in published shapes
    Speed,
    /// A worker that is killed in an answer
    Killed,
}

const CHECKS: [Check; 6] =
    [Check::Doctor, Check::Parity, Check::Soak, Check::Trim, Check::Speed, Check::Killed];

/// Where checks find what they need.
struct Setup {
    device: Device,
    choice: DeviceChoice,
    libraries: Option<PathBuf>,
    eka: PathBuf,
    root: PathBuf,
    work: tempfile::TempDir,
    is_quick: bool,
}

impl Setup {
    fn is_gpu(&self) -> bool {
        self.device.gpu().is_some()
    }

    /// Data type of graphs for the device.
    fn dtype(&self) -> Dtype {
        if self.is_gpu() { Dtype::Float16 } else { Dtype::Float32 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// The program with these arguments and without this machine's settings.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.eka);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EKA_")) {
            command.env_remove(name);
        }
        command.current_dir(&self.root).args(arguments);
        command
    }

    /// The program on the device.
    fn on_device(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.args(["--device", &self.choice.to_string()]);
        if let Some(libraries) = &self.libraries {
            command.arg("--onnxruntime").arg(libraries);
        }
        command
    }

    /// Exports the checkpoint in `from` to `name`.
    fn export(&self, from: &Path, name: &str, more: &[&str]) -> BenchResult<PathBuf> {
        let out = self.path(name);
        let mut command = self.command(&["export"]);
        command.arg("--base").arg(from.join("base")).arg("--adapter").arg(from.join("adapter"));
        run(command.args(more).arg("--out").arg(&out))?;
        Ok(out)
    }

    fn demo(&self, dtype: Dtype) -> BenchResult<PathBuf> {
        let name = format!("demo-{dtype}");
        if self.path(&name).is_dir() {
            return Ok(self.path(&name));
        }
        self.export(&self.root.join("models/demo"), &name, &["--dtype", &dtype.to_string()])
    }

    /// Opens a model on the device as a worker does.
    fn open(&self, dir: &Path, kv_keep: Bytes) -> BenchResult<Timeline> {
        let model = Model::open_on(&self.device, dir, session(true))?;
        let mut timeline =
            Timeline::new(model, TimelineOptions { keep: kv_keep, ..TimelineOptions::default() })?;
        timeline.warm_up()?;
        Ok(timeline)
    }
}

fn session(captures: bool) -> SessionOptions {
    SessionOptions {
        threads: affinity::physical_cores(),
        own_operators: true,
        captures,
        cache: CacheChoice::Auto,
        packed_file: PackedFileChoice::Auto,
    }
}

/// Runs a program to its end; returns its output.
fn run(command: &mut Command) -> BenchResult<String> {
    let output = command.output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} ended with {}: {said}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn main() -> BenchResult<ExitCode> {
    eka::device::refuse_telemetry();
    let mut args = Args::parse();
    // As cargo means it: a test run of the benches is short, and on what every machine has.
    if args.test || !args.bench {
        (args.quick, args.device) = (true, DeviceChoice::Cpu);
    }
    let choice = args.device;
    let opened = Device::open(OpenOptions {
        choice,
        libraries: args.libraries.as_deref(),
        memory_limit: None,
        host_pool: choice == DeviceChoice::Cpu,
    });
    let device = match opened {
        Ok(device) => device,
        Err(OpenError::NoCuda { why, .. }) => {
            println!("no GPU: {why}");
            return Ok(ExitCode::from(3));
        }
        Err(other) => return Err(other.into()),
    };
    let setup = Setup {
        device,
        choice,
        libraries: args.libraries.clone(),
        eka: fs::canonicalize(&args.eka)?,
        root: args.root.clone(),
        work: tempfile::tempdir()?,
        is_quick: args.quick,
    };
    let mut table = Table::new(&setup);
    for check in CHECKS.into_iter().filter(|check| args.only.is_empty() || args.only.contains(check)) {
        let began = Instant::now();
        let done = match check {
            Check::Doctor => doctor(&setup, &mut table),
            Check::Parity => parity::run(&setup, &mut table),
            Check::Soak => memory::soak(&setup, &mut table),
            Check::Trim => memory::trim(&setup, &mut table),
            Check::Speed => speed::run(&setup, &mut table),
            Check::Killed => served::killed(&setup, &mut table),
        };
        let name = format!("{check:?}").to_lowercase();
        if let Err(e) = done {
            table.failed(&name, &e.to_string());
        }
        eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
        // Intermediate results, in case the machine is lost.
        table.write(args.out.as_deref())?;
    }
    println!("{table}");
    Ok(if table.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn doctor(setup: &Setup, table: &mut Table) -> BenchResult<()> {
    let demo = setup.demo(setup.dtype())?;
    let mut command = setup.on_device(&["doctor", "--json"]);
    let output = command.arg("--model").arg(&demo).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
    for finding in report["findings"].as_array().into_iter().flatten() {
        let (what, detail) =
            (finding["what"].as_str().unwrap_or("?"), finding["detail"].as_str().unwrap_or_default());
        if ["gpu", "onnxruntime", "device", "placement"].contains(&what) {
            table.info(&format!("doctor: {what}"), &detail.replace('\n', "; "));
        }
    }
    let timeline = setup.open(&demo, Bytes(0))?;
    let placement = timeline.model().session().placement()?;
    let wanted = if setup.is_gpu() { "CUDAExecutionProvider" } else { "CPUExecutionProvider" };
    let elsewhere: usize =
        placement.iter().filter(|(name, _)| *name != wanted).flat_map(|(_, nodes)| nodes.values()).sum();
    let all: usize = placement.values().flat_map(|nodes| nodes.values()).sum();
    table.check(
        "nodes of the demonstration elsewhere",
        "0",
        &format!("{elsewhere} of {all}"),
        elsewhere == 0,
    );
    Ok(())
}
