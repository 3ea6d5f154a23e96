//! `eka doctor`: checks this machine, the settings and the model, and reports problems with their solutions.
//!
//! It changes nothing. With `--model` the model is loaded as well, to report where its nodes run.

use std::{
    env, fs,
    io::{self, Write},
    path::Path,
};

use serde::Serialize;
use serde_json::json;

use super::{
    exit::Exit,
    output::{self, ERROR, GOOD, OutputFlags},
};
use crate::{
    config::{self, Config, ConfigArgs},
    device::{Device, OpenError, OpenOptions, Placement, SessionOptions, affinity, cuda, process_memory},
    device_spec::DeviceChoice,
    manifest::{self, Manifest},
    model::Model,
    text::Text,
    units::Bytes,
};

/// Check this machine, the settings and the model, and explain problems
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) output: OutputFlags,

    #[command(flatten)]
    config: ConfigArgs,
}

/// Result of one check.
struct Finding {
    what: &'static str,
    state: Result<String, String>,
    /// Exit code if this is the first problem.
    exit: Exit,
}

const fn fine(what: &'static str, detail: String) -> Finding {
    Finding { what, state: Ok(detail), exit: Exit::Done }
}

/// A finding in the JSON output.
#[derive(Serialize)]
struct Entry<'a> {
    what: &'a str,
    state: &'static str,
    detail: &'a str,
}

impl Finding {
    fn entry(&self) -> Entry<'_> {
        let (state, detail) = match &self.state {
            Ok(detail) => ("ok", detail),
            Err(detail) => ("problem", detail),
        };
        Entry { what: self.what, state, detail }
    }
}

/// Runs all checks and prints one line each. Returns the exit code of the first problem.
///
/// # Errors
/// When stdout cannot be written to.
pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let settings = config::Settings::load(&args.config);
    if let (Ok(settings), true) = (&settings, args.config.print_config) {
        return super::settings::print_config(settings, args.output.json).map(|()| Exit::Done);
    }
    let mut findings = vec![program(), machine(), cpu_features(), memory()];
    match &settings {
        Ok(settings) => {
            findings.push(fine("settings", "valid; `eka serve --print-config` prints them".into()));
            findings.push(gpu());
            findings.extend(devices(&settings.config, args.config.flags.get("model").is_some()));
            findings.extend(models(&settings.config));
        }
        Err(e) => findings.push(Finding { what: "settings", state: Err(e.to_string()), exit: Exit::Usage }),
    }
    let exit = findings.iter().find(|finding| finding.state.is_err()).map_or(Exit::Done, |first| first.exit);
    if args.output.json {
        let entries: Vec<_> = findings.iter().map(Finding::entry).collect();
        output::document(&json!({"healthy": exit == Exit::Done, "findings": entries}))?;
    } else {
        output::result(|out| print(out, &findings))?;
    }
    Ok(exit)
}

fn print(out: &mut dyn Write, findings: &[Finding]) -> io::Result<()> {
    for Finding { what, state, .. } in findings {
        let (word, style, detail) = match state {
            Ok(_) if output::is_quiet() => continue,
            Ok(detail) => ("ok", GOOD, detail),
            Err(detail) => ("PROBLEM", ERROR, detail),
        };
        // Align further lines below the first one.
        let detail = detail.replace('\n', "\n                       ");
        writeln!(out, "{style}{word:<8}{style:#} {what:<13} {detail}")?;
    }
    Ok(())
}

fn program() -> Finding {
    let path =
        env::current_exe().map_or_else(|e| format!("unknown path: {e}"), |path| path.display().to_string());
    fine("eka", format!("{} ({path})", env!("CARGO_PKG_VERSION")))
}

fn machine() -> Finding {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    let detail = format!(
        "{} {}, {} physical cores, {logical} threads allowed",
        env::consts::OS,
        env::consts::ARCH,
        affinity::physical_cores()
    );
    fine("machine", detail)
}

/// Vector instructions, which determine the speed of quantized matrix products.
fn cpu_features() -> Finding {
    let has: Vec<&str> =
        vector_instructions().into_iter().filter_map(|(name, has)| has.then_some(name)).collect();
    if has.is_empty() {
        return fine("cpu", "no supported vector instructions: expect a few tokens per second".into());
    }
    fine("cpu", has.join(" "))
}

#[cfg(target_arch = "x86_64")]
fn vector_instructions() -> Vec<(&'static str, bool)> {
    vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ]
}

#[cfg(target_arch = "aarch64")]
fn vector_instructions() -> Vec<(&'static str, bool)> {
    use std::arch::is_aarch64_feature_detected;
    vec![
        ("neon", is_aarch64_feature_detected!("neon")),
        ("dotprod", is_aarch64_feature_detected!("dotprod")),
        ("i8mm", is_aarch64_feature_detected!("i8mm")),
        ("sve", is_aarch64_feature_detected!("sve")),
    ]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn vector_instructions() -> Vec<(&'static str, bool)> {
    Vec::new()
}

fn memory() -> Finding {
    match process_memory::machine_memory() {
        Some((total, available)) => fine("memory", format!("{available} available of {total}")),
        None => fine("memory", "unknown on this system".into()),
    }
}

fn gpu() -> Finding {
    // Whether a missing GPU is a problem depends on the configured device.
    fine(
        "gpu",
        cuda::probe().map_or_else(
            |why| why.to_string(),
            |gpus| format!("{}; the driver supports CUDA {}", gpus.names.join(", "), gpus.driver),
        ),
    )
}

/// Checks ONNX Runtime and the configured devices, and optionally the placement of the model's nodes.
fn devices(config: &Config, with_model: bool) -> Vec<Finding> {
    let device = match open(config) {
        Ok(device) => device,
        Err(e @ OpenError::NoCuda { .. }) => {
            return vec![Finding { what: "device", state: Err(e.to_string()), exit: Exit::Machine }];
        }
        Err(e) => {
            return vec![Finding { what: "onnxruntime", state: Err(e.to_string()), exit: Exit::Machine }];
        }
    };
    let mut findings = vec![Finding { what: "onnxruntime", state: library(&device), exit: Exit::Machine }];
    let why = device.fell_back().map(|why| format!(": {why}")).unwrap_or_default();
    findings.push(fine("device", format!("{device}{why}")));
    findings.extend(config.engine.device.all().iter().skip(1).map(|choice| other(*choice)));
    if with_model && manifest::is_model(&config.model.path) {
        findings.push(Finding { what: "placement", state: placement(&device, config), exit: Exit::Model });
    }
    findings
}

/// Checks that a further device exists; one process can open only one.
fn other(choice: DeviceChoice) -> Finding {
    let found = match choice {
        DeviceChoice::Cuda(ordinal) => {
            cuda::probe().and_then(|gpus| Ok(format!("{choice} ({})", gpus.name(ordinal)?)))
        }
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok("the CPU".into()),
    };
    let state = found.map_err(|why| OpenError::NoCuda { choice, why }.to_string());
    Finding { what: "device", state, exit: Exit::Machine }
}

fn open(config: &Config) -> Result<Device, OpenError> {
    Device::open(OpenOptions {
        choice: config.engine.device.first(),
        libraries: config.onnxruntime.dir.as_deref(),
        memory_limit: config.device.memory_limit_bytes,
        host_pool: config.device.host_pool,
    })
}

fn library(device: &Device) -> Result<String, String> {
    let runtime = device.runtime();
    let providers = runtime.providers().map_err(|e| e.to_string())?;
    let (version, path) = (runtime.version(), runtime.path().display());
    Ok(format!("{version} ({path})\nproviders: {}", providers.join(", ")))
}

/// Loads the model and lists where its nodes run, by provider and operator.
fn placement(device: &Device, config: &Config) -> Result<String, String> {
    let threads = config.engine.threads.map_or_else(affinity::physical_cores, Into::into);
    let config::Engine { own_operators, kv_cache: cache, packed_file, .. } = config.engine;
    let options =
        SessionOptions { threads, own_operators, captures: config.device.cuda_graphs, cache, packed_file };
    let model = Model::open_on(device, &config.model.path, options);
    let placement = model.map_err(|e| e.to_string())?.session().placement().map_err(|e| e.to_string())?;
    Ok(described(&placement))
}

fn described(placement: &Placement) -> String {
    let lines = placement.iter().map(|(provider, operators)| {
        let nodes: usize = operators.values().sum();
        let list: Vec<_> = operators.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!("{nodes} nodes on {provider}\n{}", list.join(", "))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Checks the configured model and the models beside it.
fn models(config: &Config) -> Vec<Finding> {
    let path = &config.model.path;
    let mut findings = vec![Finding { what: "model", state: model(path), exit: Exit::Model }];
    let Some(siblings) = path.parent().and_then(|parent| fs::read_dir(parent).ok()) else { return findings };
    let mut others: Vec<_> = siblings.filter_map(Result::ok).map(|entry| entry.path()).collect();
    others.sort();
    for other in others.iter().filter(|other| *other != path && manifest::is_model(other)) {
        findings.push(Finding { what: "also found", state: model(other), exit: Exit::Model });
    }
    findings
}

/// Describes a model directory, or what is wrong with it.
fn model(path: &Path) -> Result<String, String> {
    let name = path.display();
    if manifest::is_model(path) {
        let manifest = Manifest::read(path).map_err(|e| e.to_string())?;
        Text::open(path, "doctor").and_then(|text| text.check_templates()).map_err(|e| e.to_string())?;
        let graph = path.join(&manifest.graph.file);
        let size =
            |file: &Path| fs::metadata(file).map(|m| m.len()).map_err(|e| format!("{}: {e}", file.display()));
        let bytes = Bytes(size(&graph)?) + Bytes(size(&path.join(format!("{}.data", manifest.graph.file)))?);
        let weights =
            manifest.quantization.map(|q| format!(" with int{} weights", q.bits)).unwrap_or_default();
        let Manifest { architecture, dtype, context_length: context, .. } = &manifest;
        return Ok(format!("{name}: {architecture}, {dtype}{weights}, {bytes}, context length {context}"));
    }
    if path.join("base/config.json").is_file() {
        let adapter = if path.join("adapter").is_dir() { "and its adapter" } else { "without an adapter" };
        return Ok(format!("{name}: a checkpoint {adapter}, exported on first use"));
    }
    Err(format!("{name} is not a model directory; create one with `eka export`, or set model.path"))
}
