//! Every command of the documentation runs, in a folder that looks like a checkout after `cargo build --release`.
//!
//! A command that needs more than this machine has ends with `# not run in tests: REASON`.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use crate::support::{
    pages::{Page, pages},
    program::{Program, argument, cache, eka, root, text},
};

const NOT_RUN: &str = "# not run in tests: ";
/// How a reason may begin.
const REASONS: [&str; 4] = ["needs ", "downloads ", "takes ", "installs "];

/// The commands of all `sh` blocks of a page, with continued lines joined.
fn commands(page: &Page) -> Vec<String> {
    let blocks = page.blocks().into_iter().filter(|block| block.language == "sh");
    let lines = blocks.flat_map(|block| {
        block.code.replace("\\\n", " ").lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    });
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// The folders of a checkout that commands write to or read from.
fn checkout(at: &Path) {
    fs::create_dir_all(at.join("target/release")).unwrap();
    symlink(env!("CARGO_BIN_EXE_eka"), at.join("target/release/eka")).unwrap();
    for part in ["scripts", "Cargo.toml", "bench", "tests"] {
        symlink(root().join(part), at.join(part)).unwrap();
    }
    for folder in ["models", "path"] {
        fs::create_dir(at.join(folder)).unwrap();
    }
    symlink(root().join("models/demo"), at.join("models/demo")).unwrap();
    symlink(root().join("models/demo"), at.join("path/to")).unwrap();
}

fn bash(at: &Path, command: &str) -> Command {
    let path = format!("{}:{}", at.join("target/release").display(), env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", command]).current_dir(at).stdin(Stdio::null()).env("PATH", path);
    bash.env("EKA_ONNXRUNTIME_DIR", root().join(".onnxruntime/cpu")).env("EKA_MODEL_CACHE_DIR", cache());
    bash
}

/// Starts a server, waits until it is ready and ends it.
fn serves(at: &Path, command: &str) -> Output {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let command = command.split('#').next().unwrap().replace("--port 8110", "");
    let mut child = bash(at, &format!("exec {command} --port {port}")).stderr(Stdio::null()).spawn().unwrap();
    let health = format!("eka health ready --port {port}");
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

/// A script is asked for its help, which must list the flags that the command uses.
fn script_has_flags(at: &Path, command: &str) -> Output {
    let words: Vec<&str> = command.split('#').next().unwrap().split_whitespace().collect();
    let help = bash(at, &format!("{} --help", words[0])).output().unwrap();
    for flag in words.iter().filter(|word| word.starts_with("--")) {
        assert!(text(&help.stdout).contains(flag), "{command}: {flag} is not in the script's help");
    }
    help
}

/// Cargo is not run from a test: the tests, benches and subcommands that a command names must exist.
fn cargo_finds(command: &str) {
    let words: Vec<&str> = command.split('#').next().unwrap().split_whitespace().collect();
    let before = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    let after_flag =
        |flag: &str| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1));
    match words[1] {
        "build" | "fmt" | "clippy" | "doc" | "check" => {}
        "bench" => {
            let bench = after_flag("--bench").unwrap_or_else(|| panic!("{command}: no --bench"));
            let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
            assert!(manifest.contains(&format!("name = \"{bench}\"")), "{command}: no such bench");
        }
        "test" if words.contains(&"--lib") => {
            for filter in words[..before].iter().skip(2).filter(|word| !word.starts_with('-')) {
                let module = filter.split("::").next().unwrap();
                let is_there = ["src/{}.rs", "src/{}/mod.rs"]
                    .iter()
                    .any(|path| root().join(path.replace("{}", module)).is_file());
                assert!(is_there, "{command}: no module {module}");
            }
        }
        "test" => {
            let filters =
                words[..before].iter().skip(2).filter(|word| !word.starts_with('-') && **word != "tests");
            for filter in filters {
                let listed =
                    Command::new(env::current_exe().unwrap()).args(["--list", filter]).output().unwrap();
                assert!(
                    text(&listed.stdout).contains(": test"),
                    "{command}: no test has {filter} in its name"
                );
            }
        }
        other => panic!("{command}: what does cargo {other} need?"),
    }
}

fn run(at: &Path, command: &str) -> Output {
    match command.split_whitespace().next().unwrap() {
        first if first.starts_with("scripts/") => script_has_flags(at, command),
        "cargo" => {
            cargo_finds(command);
            bash(at, "test -x target/release/eka").output().unwrap()
        }
        _ if command.starts_with("eka serve") && !command.contains("--print-config") => serves(at, command),
        _ => {
            if let Some(out) = command.strip_prefix("eka export").and_then(|rest| rest.split("--out ").nth(1))
            {
                let _ = fs::remove_dir_all(at.join(out.split_whitespace().next().unwrap()));
            }
            bash(at, command).output().unwrap()
        }
    }
}

#[tokio::test]
async fn every_command_of_the_documentation_runs() {
    let dir = tempfile::tempdir().unwrap();
    checkout(dir.path());
    let program = Program::start(&[]).await;
    let address = program.url.trim_start_matches("http://").to_owned();
    let mut ran = 0;
    for page in pages() {
        for command in commands(&page) {
            if let Some((_, reason)) = command.split_once(NOT_RUN) {
                assert!(REASONS.iter().any(|known| reason.starts_with(known)), "{}: {command}", page.path);
                continue;
            }
            let done = run(dir.path(), &command.replace("127.0.0.1:8110", &address));
            let (stdout, stderr) = (text(&done.stdout), text(&done.stderr));
            assert!(done.status.success(), "{}: {command}\n{stdout}{stderr}", page.path);
            assert!(!stdout.contains("\"error\""), "{}: {command}\n{stdout}", page.path);
            ran += 1;
        }
    }
    assert!(ran >= 40, "{ran} commands");
}

/// `eka.toml` is read as settings, `keys.toml` as API keys.
#[test]
fn every_settings_file_of_the_documentation_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let mut read = 0;
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.language == "toml") {
            let file = dir.path().join("file.toml");
            fs::write(&file, &block.code).unwrap();
            let keys = format!("auth.keys_file={}", argument(&file));
            let flags = if block.code.starts_with("# keys.toml") {
                ["--set", &keys]
            } else {
                ["--config", argument(&file)]
            };
            let done = eka(&["serve", "--print-config"]).args(flags).output().unwrap();
            assert!(done.status.success(), "{}: {}\n{}", page.path, block.code, text(&done.stderr));
            read += 1;
        }
    }
    assert!(read >= 2, "{read} files");
}

#[test]
fn every_json_document_of_the_documentation_is_valid() {
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.language == "json") {
            let document: Result<serde_json::Value, _> = serde_json::from_str(&block.code);
            assert!(document.is_ok(), "{}: {document:?}\n{}", page.path, block.code);
        }
    }
}
