//! Progress bars of exports.

use std::{
    io::{self, IsTerminal},
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{exit::Exit, output, shutdown};
use crate::{
    export::{Progress, Stage},
    units::Bytes,
};

/// Progress: a bar per stage on a terminal, else a line per stage.
pub(super) struct Bars {
    bar: Mutex<ProgressBar>,
    /// Set when the export has to stop.
    cancelled: Arc<AtomicBool>,
}

impl Bars {
    pub(super) fn new() -> Self {
        Self { bar: Mutex::new(ProgressBar::hidden()), cancelled: Arc::default() }
    }

    /// Bars of an export that a signal such as Ctrl-C cancels. A second signal, or one that arrives after the export, ends the
    /// process at once.
    ///
    /// # Errors
    /// When the thread that waits for signals cannot be started.
    pub(super) fn until_signal() -> io::Result<Self> {
        let bars = Self::new();
        let cancelled = Arc::downgrade(&bars.cancelled);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                let name = shutdown::signal().await;
                if let Some(cancelled) = cancelled.upgrade() {
                    output::note(format_args!(
                        "{name}: removing what is written; send the signal again to exit at once"
                    ));
                    cancelled.store(true, Ordering::Relaxed);
                    drop(cancelled);
                    shutdown::signal().await;
                }
                process::exit(Exit::Interrupted.code().into());
            });
        })?;
        Ok(bars)
    }

    fn with_bar(&self, act: impl FnOnce(&mut ProgressBar)) {
        // Drawing continues after a panic in another thread.
        act(&mut self.bar.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Bars {
    fn begin(&self, stage: Stage, total: Bytes) {
        let title = match stage {
            Stage::Sources => "reading sources",
            Stage::Weights => "writing weights",
            Stage::Checksums => "computing checksums",
        };
        if !io::stderr().is_terminal() {
            return output::note(format_args!("{title}: {total}"));
        }
        if output::is_quiet() {
            return;
        }
        let style = ProgressStyle::with_template("{msg:16} {wide_bar} {bytes}/{total_bytes} {eta}");
        let bar = ProgressBar::with_draw_target(Some(total.0), ProgressDrawTarget::stderr());
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(title);
        self.with_bar(|old| {
            old.finish_and_clear();
            *old = bar;
        });
    }

    fn advance(&self, by: Bytes) {
        self.with_bar(|bar| bar.inc(by.0));
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Progress of a calibration.
pub(super) struct CalibrationBar {
    bar: ProgressBar,
}

impl CalibrationBar {
    /// Parts of the bar.
    const PARTS: u64 = 1000;

    /// For a text of `tokens` tokens.
    pub(super) fn new(tokens: usize) -> Self {
        let title = format!("calibrating on {tokens} tokens");
        if !io::stderr().is_terminal() {
            output::note(format_args!("{title}"));
            return Self { bar: ProgressBar::hidden() };
        }
        if output::is_quiet() {
            return Self { bar: ProgressBar::hidden() };
        }
        let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} % {eta}");
        let bar = ProgressBar::with_draw_target(Some(Self::PARTS), ProgressDrawTarget::stderr());
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(title);
        Self { bar }
    }

    /// Shows the share of the work that is done.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is between 0 and 1")]
    pub(super) fn advance(&self, share: f64) {
        self.bar.set_position((share * Self::PARTS as f64) as u64);
    }
}

impl Drop for CalibrationBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.with_bar(|bar| bar.finish_and_clear());
    }
}
