//! The settings that can be given on the command line.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

/// Where settings come from, and the most used ones as flags of their own.
///
/// Flags win over environment variables (EKA_SERVER_PORT for server.port), those over the file, and the file over the
/// defaults.
// Values are text here: a mistake in one is then reported like a mistake in the file, together with all others.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Settings")]
pub struct ConfigArgs {
    /// File with settings [default: eka.toml in the working directory, if there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Any setting, such as queue.max_jobs=8; can be given more than once
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = split_setting)]
    pub set: Vec<(String, String)>,
    /// Print the settings and where each comes from, as a file that can be used again, and exit
    #[arg(long)]
    pub print_config: bool,
    /// Directory of an exported model, or a source directory with base/ and perhaps adapter/
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// Directory whose subdirectories are models that are served as well, loaded when they are asked for
    #[arg(long, value_name = "DIR")]
    pub models: Option<String>,
    /// The model's name in requests [default: the directory's name]
    #[arg(long, value_name = "NAME")]
    pub model_id: Option<String>,
    /// Weights of a source directory's export: none, int8 or int4
    #[arg(long, value_name = "TYPE")]
    pub quantize: Option<String>,
    /// A smaller model with the same tokens, to guess what comes next: a directory, or the name of one in --models
    #[arg(long, value_name = "DIR")]
    pub draft_model: Option<String>,
    /// IP address to listen on; 0.0.0.0 for every interface
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<String>,
    /// Port to listen on; 0 for any that is free
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
    /// What computes: auto, cpu, cuda, cuda:N with the number of a GPU, or several such as cuda:0,cuda:1
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Threads of a worker that compute [default: physical cores, shared out among workers on the CPU]
    #[arg(long, value_name = "N")]
    pub threads: Option<String>,
    /// Most tokens of prompt and answer together, below the model's own limit
    #[arg(long, value_name = "TOKENS")]
    pub context_length: Option<String>,
    /// Requests that may wait; the next one is refused
    #[arg(long, value_name = "JOBS")]
    pub queue: Option<String>,
    /// Directory of the ONNX Runtime library
    #[arg(long, value_name = "DIR")]
    pub onnxruntime: Option<String>,
    /// error, warn, info, debug, trace, or a filter such as info,eka=debug
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
}

impl ConfigArgs {
    /// Flags of their own that were given: flag, setting, value.
    pub(super) fn direct(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        let flags = [
            ("--model", "model.path", &self.model),
            ("--models", "models.dir", &self.models),
            ("--model-id", "model.id", &self.model_id),
            ("--quantize", "model.quantize", &self.quantize),
            ("--draft-model", "engine.draft_model", &self.draft_model),
            ("--bind", "server.bind", &self.bind),
            ("--port", "server.port", &self.port),
            ("--device", "engine.device", &self.device),
            ("--threads", "engine.threads", &self.threads),
            ("--context-length", "engine.context_length", &self.context_length),
            ("--queue", "queue.max_jobs", &self.queue),
            ("--onnxruntime", "onnxruntime.dir", &self.onnxruntime),
            ("--log", "log.level", &self.log),
        ];
        flags.into_iter().filter_map(|(flag, path, value)| Some((flag, path, value.as_deref()?)))
    }

    /// The arguments that a program is started with to have the same settings, but for some flags (`("port", "0")`).
    #[must_use]
    pub fn arguments(&self, but: &[(&str, &str)]) -> Vec<OsString> {
        let given = self.direct().filter(|(flag, ..)| !but.iter().any(|(other, _)| flag[2..] == **other));
        let mut arguments: Vec<OsString> =
            given.map(|(flag, _, value)| format!("{flag}={value}").into()).collect();
        if let Some(file) = &self.config {
            arguments.extend(["--config".into(), file.clone().into_os_string()]);
        }
        arguments.extend(self.set.iter().map(|(path, value)| format!("--set={path}={value}").into()));
        arguments.extend(but.iter().map(|(flag, value)| format!("--{flag}={value}").into()));
        arguments
    }
}

fn split_setting(setting: &str) -> Result<(String, String), String> {
    let (path, value) =
        setting.split_once('=').ok_or("expected section.key=value, such as queue.max_jobs=8")?;
    Ok((path.trim().to_owned(), value.to_owned()))
}
