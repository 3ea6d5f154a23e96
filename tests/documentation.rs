//! The README's commands, run as they stand: in a folder that looks like a checkout after `cargo build --release`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use crate::support::program::{Program, cache, root, text};

/// The commands of all blocks of shell, lines that go on put together.
fn commands() -> Vec<String> {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let lines =
        blocks.flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| !line.trim().is_empty()).collect()
}

/// A checkout's folders, as far as commands write into them or the README's placeholders name them.
fn checkout(at: &Path) {
    fs::create_dir_all(at.join("target/release")).unwrap();
    symlink(env!("CARGO_BIN_EXE_eka"), at.join("target/release/eka")).unwrap();
    symlink(root().join("scripts"), at.join("scripts")).unwrap();
    for folder in ["models", "path"] {
        fs::create_dir(at.join(folder)).unwrap();
    }
    symlink(root().join("models/demo"), at.join("models/demo")).unwrap();
    symlink(root().join("models/demo"), at.join("path/to")).unwrap();
}

fn bash(at: &Path, command: &str) -> Command {
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", command]).current_dir(at).stdin(Stdio::null());
    bash.env("EKA_ONNXRUNTIME_DIR", root().join(".onnxruntime/cpu")).env("EKA_MODEL_CACHE_DIR", cache());
    bash
}

/// A server that serves until it is told not to: it has to come up.
fn serves(at: &Path, command: &str) -> Output {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = bash(at, &format!("exec {command} --port {port}")).stderr(Stdio::null()).spawn().unwrap();
    let health = format!("target/release/eka health ready --port {port}");
    let mut asked = bash(at, &health).output().unwrap();
    for _ in 0..600 {
        if asked.status.success() || child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
        asked = bash(at, &health).output().unwrap();
    }
    let _ = child.kill();
    let _ = child.wait();
    asked
}

#[tokio::test]
async fn every_command_of_the_readme_does_what_it_is_there_for() {
    let dir = tempfile::tempdir().unwrap();
    checkout(dir.path());
    let program = Program::start(&[]).await;
    let address = program.url.trim_start_matches("http://").to_owned();
    let mut ran = 0;
    for command in commands() {
        let command = command.replace("127.0.0.1:8110", &address);
        let done = match command.split_whitespace().next().unwrap() {
            // What builds, and what runs this very test, is asked whether it is there.
            "scripts/serve" | "scripts/test" => {
                bash(dir.path(), &format!("{} --help", command.split_whitespace().next().unwrap()))
                    .output()
                    .unwrap()
            }
            "cargo" => bash(dir.path(), "test -x target/release/eka").output().unwrap(),
            _ if command.starts_with("target/release/eka serve") => serves(dir.path(), &command),
            _ => bash(dir.path(), &command).output().unwrap(),
        };
        assert!(done.status.success(), "{command}\n{}{}", text(&done.stdout), text(&done.stderr));
        assert!(!text(&done.stdout).contains("\"error\""), "{command}\n{}", text(&done.stdout));
        ran += 1;
    }
    assert!(ran >= 12, "{ran} commands");
}
