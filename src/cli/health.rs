//! `eka health`: a health check for containers without curl.

use std::{net::SocketAddr, time::Duration};

use anyhow::ensure;
use serde_json::Value;

use super::{
    exit::{Exit, WithExit},
    output::{self, OutputFlags},
    ready_file::local_address,
};
use crate::{
    client::Client,
    config::{self, Config, ConfigArgs},
};

/// Check whether a server is alive or ready
///
/// The exit code is 0 or 1, as container health checks expect. Without --url, the address comes from the settings.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The state to check
    #[arg(value_name = "STATE", default_value = "alive")]
    state: State,

    /// URL of the server
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// Longest wait for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    timeout: u16,

    #[command(flatten)]
    pub(super) output: OutputFlags,

    #[command(flatten)]
    config: ConfigArgs,
}

/// State of a server, one per probe endpoint.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum State {
    /// The process responds
    Alive,
    /// A model is loaded and requests are processed
    Ready,
    /// Startup has completed
    Started,
}

impl State {
    const fn route(self) -> &'static str {
        match self {
            Self::Alive => "/livez",
            Self::Ready => "/readyz",
            Self::Started => "/startupz",
        }
    }
}

/// Sends the probe and prints the server's state.
///
/// # Errors
/// When the server is not in that state or cannot be reached.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let settings = config::Settings::load(&args.config)?;
    if args.config.print_config {
        return super::settings::print_config(&settings, args.output.json);
    }
    let url = args.url.clone().map_or_else(|| address(&settings.config), Ok).with_exit(Exit::Usage)?;
    let patience = Duration::from_secs(args.timeout.max(1).into());
    let client = Client::new(&url, None, patience).with_exit(Exit::Usage)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let health: Value = runtime.block_on(client.get_json(args.state.route())).with_exit(Exit::Failed)?;
    if args.output.json {
        return output::document(&health);
    }
    let status = health["status"].as_str().unwrap_or("ok");
    output::result(|out| writeln!(out, "{}", output::printable(status)))
}

/// URL of a server with these settings on this machine.
pub(super) fn address(config: &Config) -> anyhow::Result<String> {
    ensure!(config.tls.files().is_none(), "this command does not support TLS; use curl or another client");
    ensure!(config.server.port != 0, "server.port is 0, so the port is unknown; pass --url");
    let address = SocketAddr::new(config.server.bind, config.server.port);
    Ok(format!("http://{}", local_address(address)))
}
