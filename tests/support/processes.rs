//! Processes of this machine: signals, children, memory.

use std::process::Command;

pub(crate) fn send_signal(signal: &str, pid: u32) {
    let status = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{signal} {pid}");
}

/// The one child of a process that is a worker.
pub(crate) fn worker_of(parent: u32) -> Option<u32> {
    workers_of(parent).into_iter().next()
}

/// The children of a process that are workers.
pub(crate) fn workers_of(parent: u32) -> Vec<u32> {
    let is_worker = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == b"worker")
    };
    children(parent).into_iter().filter(is_worker).collect()
}

/// The children of a process whose command line has `words` in it.
pub(crate) fn subcommands_of(parent: u32, words: &str) -> Vec<u32> {
    let has_words = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(words)
    };
    children(parent).into_iter().filter(has_words).collect()
}

fn children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has_parent = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        line.is_some_and(|ppid| ppid.trim() == parent.to_string())
    };
    pids.filter(has_parent).collect()
}

/// Resident memory of a process, in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap()
}
