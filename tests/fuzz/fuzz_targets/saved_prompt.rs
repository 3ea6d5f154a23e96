//! A saved prompt, from its header to its checksum.

#![no_main]

use std::sync::LazyLock;

/// A file in memory, where the system has such a folder.
static PATH: LazyLock<std::path::PathBuf> = LazyLock::new(|| {
    let memory = std::path::Path::new("/dev/shm");
    let folder = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    folder.join(format!("eka-fuzz-{}", std::process::id()))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::prompt_store::fuzzing::prompt(bytes, &PATH);
});
