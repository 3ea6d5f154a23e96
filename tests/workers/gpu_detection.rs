//! Every way in which a GPU cannot be had, planted in directories of a test: each is an error with a sentence of its own
//! for who asked for the GPU, a reason in one line for who left the choice, and never a panic.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use eka::device::cuda::{FUNCTIONS, NoCuda, probe};
use serde_json::json;

use crate::support::{
    files::OLD_LIBRARY,
    models::runtime,
    program::{Program, argument, cache_setting, eka, root, text},
    server::eventually,
};

/// The least that answers as a driver does: one GPU or as many as are asked for, which then cannot be opened.
const DRIVER: &str = r#"
#include <stdlib.h>
static int setting(const char *name, int otherwise) { char *set = getenv(name); return set ? atoi(set) : otherwise; }
int cuInit(unsigned flags) { (void)flags; return setting("STAND_IN_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = setting("STAND_IN_VERSION", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = setting("STAND_IN_GPUS", 1); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int room, int device) { (void)device; if (room > 3) { name[0] = 'T'; name[1] = '4'; name[2] = 0; } return 0; }
int cuGetErrorName(int error, const char **name) { (void)error; *name = "STAND_IN"; return 0; }
int cuGetErrorString(int error, const char **message) { (void)error; *message = "a stand-in reports this"; return 0; }
"#;

const CUDA: [&str; 4] = ["libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"];

/// Compiles a shared object.
fn compile(source: &str, library: &Path) {
    let file = library.with_extension("c");
    fs::write(&file, source).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o", argument(library), argument(&file)]).status();
    assert!(built.unwrap().success(), "a C compiler links every Rust program");
}

/// A machine with libraries planted: `cpu/` holds one that works.
struct Machine {
    directory: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { directory: tempfile::tempdir().unwrap(), variables: Vec::new() };
        for directory in ["driver", "cpu", "gpu"] {
            fs::create_dir(machine.path(directory)).unwrap();
        }
        machine.link_core("cpu");
        machine
    }

    /// A stub driver library with a GPU, whose functions do nothing.
    fn with_driver() -> Self {
        let rest: String =
            FUNCTIONS.iter().map(|name| format!("int {name}(void) {{ return 999; }}\n")).collect();
        let machine = Self::new();
        compile(&format!("{DRIVER}{rest}"), &machine.path("driver/libcuda.so.1"));
        machine
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    fn set(mut self, variable: &'static str, value: &str) -> Self {
        self.variables.push((variable, value.into()));
        self
    }

    /// The CPU library, which every machine that runs the tests has.
    fn link_core(&self, directory: &str) {
        symlink(runtime().path(), self.path(directory).join("libonnxruntime.so.1.31.1")).unwrap();
    }

    fn plant(&self, file: &str, source: Option<&str>) {
        match source {
            Some(source) => compile(source, &self.path(file)),
            None => fs::write(self.path(file), "a text").unwrap(),
        }
    }

    /// What CUDA's provider needs, and a file in its place.
    fn plant_cuda(&self) {
        CUDA.iter().for_each(|name| self.plant(&format!("gpu/{name}"), Some("")));
        self.plant("gpu/libonnxruntime_providers_cuda.so", Some(""));
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = eka(arguments);
        command.args(["--onnxruntime", argument(self.directory.path())]);
        command.env("LD_LIBRARY_PATH", self.path("driver")).envs(self.variables.iter().cloned());
        command.output().unwrap()
    }

    /// The messages about a missing GPU, with `--device cuda` and with `--device auto`.
    fn refuses(&self, device: &str, reason: &str) {
        let refused = self.run(&["doctor", "--device", device]);
        let (report, panic) = (text(&refused.stdout), text(&refused.stderr));
        let problem = report.lines().find(|line| line.starts_with("PROBLEM")).unwrap_or_default();
        assert!(problem.contains("device") && problem.contains("cannot be used: "), "{report}");
        assert!(report.contains(reason), "{reason} is not in\n{report}");
        assert!(refused.status.code() == Some(3) && panic.is_empty(), "{panic}");
    }

    fn falls_back(&self, reason: &str) {
        let left = self.run(&["doctor"]);
        let (report, panic) = (text(&left.stdout), text(&left.stderr));
        assert!(report.contains("the CPU: ") && report.contains(reason), "{reason} is not in\n{report}");
        assert!(left.status.success() && panic.is_empty(), "{report}{panic}");
    }

    fn has_none(&self, reason: &str) {
        self.refuses("cuda", reason);
        self.falls_back(reason);
    }
}

#[test]
fn a_missing_driver_is_reported() {
    if probe() == Err(NoCuda::NoDriver) {
        Machine::new().has_none("this machine has no NVIDIA driver (libcuda.so.1 was not found)");
    }
}

#[test]
fn a_broken_driver_library_is_reported() {
    let machine = Machine::new();
    machine.plant("driver/libcuda.so.1", None);
    machine.has_none("the NVIDIA driver cannot be used: ");
    let machine = Machine::new();
    machine.plant("driver/libcuda.so.1", Some(""));
    machine.has_none("its library has no function cuInit; install it again");
    let machine = Machine::new();
    machine.plant("driver/libcuda.so.1", Some(DRIVER));
    machine.has_none("its library has no function cuDeviceGetAttribute");
}

#[test]
fn an_old_driver_is_reported_with_both_versions() {
    let machine = Machine::new().set("STAND_IN_VERSION", "12040");
    machine.plant("driver/libcuda.so.1", Some(DRIVER));
    machine.has_none(
        "the NVIDIA driver supports CUDA 12.4, the libraries need CUDA 13.0: update the driver to 580",
    );
}

#[test]
fn no_gpu_and_a_wrong_gpu_number_are_reported_differently() {
    let none = "the NVIDIA driver finds no GPU; check that one is installed and that CUDA_VISIBLE_DEVICES does not hide it";
    Machine::with_driver().set("STAND_IN_GPUS", "0").has_none(none);
    Machine::with_driver().set("STAND_IN_INIT", "100").has_none(none);
    let stuck = "the NVIDIA driver cannot be used: DriverError(CUDA_ERROR_UNKNOWN";
    Machine::with_driver().set("STAND_IN_INIT", "999").has_none(stuck);
    let machine = Machine::with_driver().set("STAND_IN_GPUS", "2");
    machine.refuses("cuda:2", "GPU 2 does not exist: this machine has 2, counted from 0");
}

#[test]
fn missing_or_invalid_libraries_are_named_one_by_one() {
    let machine = Machine::with_driver();
    machine.has_none("no ONNX Runtime with CUDA; run scripts/onnxruntime --gpu");
    machine.plant("gpu/libonnxruntime.so", Some(OLD_LIBRARY));
    machine.has_none("libonnxruntime_providers_cuda.so is missing beside it");
    machine.plant("gpu/libonnxruntime_providers_cuda.so", Some(""));
    for name in CUDA {
        let stem = name.split_once(".so").unwrap().0;
        machine.has_none(&format!("{stem}.so is missing in "));
        machine.plant(&format!("gpu/{name}"), Some(""));
    }
    machine.has_none("version 1.17.3, 1.30 or newer is needed");
    machine.plant("gpu/libcublas.so.13", None);
    machine.has_none("libcublas.so.13 cannot be loaded: ");
}

#[test]
fn a_cpu_library_is_reported_and_still_serves_the_cpu() {
    let machine = Machine::with_driver();
    machine.plant_cuda();
    machine.link_core("gpu");
    machine.has_none("gpu/libonnxruntime.so.1.31.1 was built without CUDA");
}

#[test]
fn a_gpu_library_serves_the_cpu_if_there_is_no_other() {
    let machine = Machine::new();
    fs::remove_dir_all(machine.path("cpu")).unwrap();
    machine.link_core("gpu");
    let healthy = machine.run(&["doctor", "--device", "cpu"]);
    assert!(healthy.status.success(), "{}", text(&healthy.stdout));
}

#[test]
fn device_cuda_fails_with_the_reason_instead_of_using_the_cpu() {
    let machine = Machine::with_driver().set("STAND_IN_VERSION", "12080");
    let cache = cache_setting();
    for command in [&["generate", "x"][..], &["serve", "--port", "0"]] {
        let refused = machine.run(&[command, &["--device", "cuda", "--set", &cache]].concat());
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(3), "{error}");
        assert!(error.contains("cuda:0 cannot be used: the NVIDIA driver supports CUDA 12.8"), "{error}");
        assert!(!error.contains("panicked") && text(&refused.stdout).trim().is_empty(), "{error}");
    }
    let answered = machine.run(&["generate", "x", "--max-new-tokens", "2", "--set", &cache]);
    assert!(answered.status.success(), "{}", text(&answered.stderr));
}

#[tokio::test]
async fn the_log_explains_the_cpu_fallback_once_and_v1_models_shows_node_placement() {
    let program = Program::start(&["--device", "auto"]).await;
    if probe() == Err(NoCuda::NoDriver) {
        // The line arrives on a separate pipe.
        eventually("the log says why", || program.log().contains("NVIDIA driver")).await;
        let log = program.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("NVIDIA driver")).collect();
        assert!(
            matches!(&lines[..], [line] if line.contains("on the CPU because this machine has no NVIDIA driver")),
            "{log}"
        );
    }
    let models = program.get("/v1/models").await;
    let models: serde_json::Value = models.json().await.unwrap();
    let eka = &models["data"][0]["eka"];
    let operators = eka["loaded"]["operators"]["CPUExecutionProvider"].as_object().unwrap();
    let nodes: u64 = operators.values().map(|count| count.as_u64().unwrap()).sum();
    assert!(operators.contains_key("Attention"), "{eka}");
    assert_eq!(eka["loaded"]["placement"], json!({ "CPUExecutionProvider": nodes }));
    assert_eq!(eka["worker"]["device"], "the CPU");
    let metrics = program.metrics().await;
    let line = format!("eka_graph_nodes{{provider=\"CPUExecutionProvider\"}} {nodes}\n");
    assert!(metrics.contains(&line), "{metrics}");

    let export = program.export();
    let doctor = eka_doctor(&export);
    assert!(doctor.contains(&format!("{nodes} nodes on CPUExecutionProvider")), "{doctor}");
    assert!(doctor.contains("Attention "), "{doctor}");
}

fn eka_doctor(model: &Path) -> String {
    text(&eka(&["doctor", "--device", "cpu", "--model", argument(model)]).output().unwrap().stdout)
}

#[test]
fn gpu_check_reports_a_missing_gpu() {
    let script = root().join("scripts/gpu-check");
    let has_gpu = fs::read_dir("/dev").unwrap().any(|entry| {
        entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .strip_prefix("nvidia")
            .is_some_and(|n| n.parse::<u8>().is_ok())
    });
    let run = |arguments: &[&str]| Command::new(&script).args(arguments).output().unwrap();
    if !has_gpu {
        let without = run(&[]);
        assert_eq!((without.status.code(), text(&without.stdout).trim()), (Some(3), "no GPU"));
    }
    for (arguments, message) in [
        (&["--device", "tpu"][..], "--device needs cuda, cuda:N or cpu, not 'tpu'"),
        (&["--libraries", "/nowhere"], "--libraries needs a folder that exists, not '/nowhere'"),
        (&["--device", "cpu", "--eka", "/bin/true"], "--eka and --checks go together"),
    ] {
        let refused = run(arguments);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains(message), "{}", text(&refused.stderr));
    }
}
