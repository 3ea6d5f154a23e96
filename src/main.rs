//! argv to exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    eka::cli::run()
}
