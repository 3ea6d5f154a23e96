//! `eka generate`: one answer, streamed to the terminal, or an interactive chat.

use std::process::ExitCode;

use anyhow::anyhow;
use tokio_util::sync::CancellationToken;

use super::{
    chat,
    exit::{Exit, WithExit},
    generate_args::Args,
    local_model::{LocalModel, interruptible},
    logging, output, settings,
    stdout_stream::StdoutStream,
    worker_configs,
};
use crate::config::{self, Config};

/// Generates and streams.
///
/// # Errors
/// When settings, model or prompt cannot be used, or the generation fails.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let loaded = config::Settings::load(&args.config)?;
    if args.config.print_config {
        return settings::print_config(&loaded, args.output.json).map(|()| Exit::Done.into());
    }
    let prompt = args.prompt().with_exit(Exit::Usage)?;
    logging::start_quiet()?;
    worker_configs::check_cache_dir(&loaded.config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(generate(args, &loaded.config, prompt))?;
    Ok(exit.into())
}

async fn generate(args: &Args, config: &Config, prompt: Option<String>) -> anyhow::Result<Exit> {
    let mut model = LocalModel::start(config, args.faults.as_ref()).await?;
    let answered = match prompt {
        Some(prompt) => once(&mut model, args, &prompt).await,
        None => chat::run(&mut model, args).await,
    };
    model.stop().await;
    answered
}

/// Generates one answer, streamed or as a JSON document.
async fn once(model: &mut LocalModel, args: &Args, prompt: &str) -> anyhow::Result<Exit> {
    let prompt = args.encode(&model.text, prompt).with_exit(Exit::Usage)?;
    let max_new = args.max_new(model, prompt.len()).with_exit(Exit::Usage)?;
    let cancel = CancellationToken::new();
    let mut stream = StdoutStream::new(!args.output.json);
    let generation = model.generate((prompt, max_new), &args.wanted, &cancel, |text| stream.write(text));
    let (answer, was_interrupted) = interruptible(generation, &cancel).await;
    let answer = match answer {
        Err(_) if stream.is_closed => return Ok(Exit::Done),
        answer => answer?,
    };
    if args.output.json {
        output::document(&answer.document(&model.text.card().id))?;
    } else {
        stream.write("\n").or_else(|e| if stream.is_closed { Ok(()) } else { Err(anyhow!(e)) })?;
        output::note(answer.summary());
    }
    Ok(if was_interrupted { Exit::Interrupted } else { Exit::Done })
}
