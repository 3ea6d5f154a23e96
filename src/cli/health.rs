//! `eka health`: asks a server how it is, for health checks where there is no curl.

use std::{net::SocketAddr, time::Duration};

use anyhow::ensure;
use serde_json::Value;

use super::{
    exit::{Exit, WithExit},
    output::{self, OutputFlags},
    ready_file::local_address,
    serve,
};
use crate::{
    client::Client,
    config::{self, Config, ConfigArgs},
};

/// Ask a server on this machine whether it lives, or is ready
///
/// Ends with 0 if so and with 1 if not, as health checks of containers want it. Without --url it asks where the settings
/// say that the server listens.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to ask for
    #[arg(value_name = "STATE", default_value = "alive")]
    state: State,

    /// The server
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// How long to wait for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    timeout: u16,

    #[command(flatten)]
    pub(super) output: OutputFlags,

    #[command(flatten)]
    config: ConfigArgs,
}

/// What the three probes tell apart.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum State {
    /// The process answers
    Alive,
    /// A request sent now would be worked on
    Ready,
    /// The model was loaded once
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

/// Asks, and says what the server says.
///
/// # Errors
/// When it is not so, or nobody answers.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let settings = config::Settings::load(&args.config)?;
    if args.config.print_config {
        return serve::print_config(&settings, args.output.json);
    }
    let url = args.url.clone().map_or_else(|| address(&settings.config), Ok).with_exit(Exit::Usage)?;
    let patience = Duration::from_secs(args.timeout.max(1).into());
    let client = Client::new(&url, None, patience).with_exit(Exit::Usage)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let told: Value = runtime.block_on(client.get_json(args.state.route())).with_exit(Exit::Failed)?;
    if args.output.json {
        return output::document(&told);
    }
    let status = told["status"].as_str().unwrap_or("ok");
    output::result(|out| writeln!(out, "{}", output::printable(status)))
}

/// Where a server with these settings is reached from its own machine.
fn address(config: &Config) -> anyhow::Result<String> {
    ensure!(
        config.tls.files().is_none(),
        "the server speaks TLS, and this does not: ask it with another client"
    );
    ensure!(config.server.port != 0, "server.port is 0, so it may be any: name the server with --url");
    let address = SocketAddr::new(config.server.bind, config.server.port);
    Ok(format!("http://{}", local_address(address)))
}
