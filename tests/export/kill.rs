//! An export that is killed at any moment leaves the old or the new model, complete, and the next one continues it.
//!
//! Tested twice: at random moments, and before every call that changes a file, which a preloaded library counts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use eka::manifest::Manifest;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::support::{
    export_sources::Sources,
    files::{content, names},
    program::{argument, run, text},
};

const KILLS: u32 = 50;

/// A model directory's files.
type Content = Vec<(String, Vec<u8>)>;

/// Six million weights, which take about half a second to export.
fn large() -> Sources {
    let sources = Sources::new();
    let base = sources.path().join("base");
    let mut config: Value = serde_json::from_slice(&fs::read(base.join("config.json")).unwrap()).unwrap();
    for (field, value) in
        [("num_hidden_layers", 2), ("hidden_size", 512), ("head_dim", 128), ("intermediate_size", 1376)]
    {
        config[field] = json!(value);
    }
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    let values = |len: usize| -> Vec<u8> {
        let value = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7 & 0xff) as f32 / 4096.0 - 0.03;
        (0..len).flat_map(|i| value(i).to_le_bytes()).collect()
    };
    let tensors = tensors();
    let bytes: Vec<_> = tensors.iter().map(|(_, shape)| values(shape.iter().product())).collect();
    let views = tensors.into_iter().zip(&bytes);
    let views =
        views.map(|((name, shape), bytes)| (name, TensorView::new(Dtype::F32, shape, bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &base.join("model.safetensors")).unwrap();
    sources
}

fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("model.embed_tokens.weight".into(), vec![320, 512]),
        ("model.norm.weight".into(), vec![512]),
        ("lm_head.weight".into(), vec![320, 512]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", &[512][..]),
            ("post_attention_layernorm", &[512]),
            ("self_attn.q_proj", &[512, 512]),
            ("self_attn.k_proj", &[256, 512]),
            ("self_attn.v_proj", &[256, 512]),
            ("self_attn.o_proj", &[512, 512]),
            ("mlp.gate_proj", &[1376, 512]),
            ("mlp.up_proj", &[1376, 512]),
            ("mlp.down_proj", &[512, 1376]),
        ] {
            all.push((format!("model.layers.{layer}.{name}.weight"), shape.into()));
        }
    }
    all
}

fn export(sources: &Sources, out: &Path, quantize: &str) -> Command {
    let base = sources.path().join("base");
    let mut command =
        crate::support::program::eka(&["export", "--base", argument(&base), "--out", argument(out)]);
    command.args(["--quantize", quantize, "--force"]).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// An undisturbed export, and how long it took.
fn whole(sources: &Sources, quantize: &str) -> (Content, Duration) {
    let (out, started) = (sources.path().join(quantize), Instant::now());
    assert!(export(sources, &out, quantize).status().unwrap().success());
    (content(&out), started.elapsed())
}

fn kill_after(command: &mut Command, moment: Duration) {
    let mut child = command.spawn().unwrap();
    thread::sleep(moment);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Random moments from the first of `duration` to a little after its last.
fn moments(duration: Duration) -> impl Iterator<Item = Duration> {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    (0..KILLS).map(move |_| duration * (random.next_u32() >> 16) / (1 << 16) * 21 / 20)
}

/// Every directory that a server would take, also a hidden one, must be one of `whole`.
fn all_are_whole(out: &Path, whole: &[&Content]) {
    let parent = out.parent().unwrap();
    for name in names(parent) {
        let dir = parent.join(name);
        if Manifest::read(&dir).is_ok() {
            let found = content(&dir);
            assert!(whole.iter().any(|whole| **whole == found), "{} is half a model", dir.display());
        }
    }
    // One at most: the next export continues or removes what the one before left.
    assert!(names(parent).len() <= 2, "{:?}", names(parent));
}

fn answers(model: &Path) {
    let said = run(&["generate", "a", "--model", argument(model), "--max-new-tokens", "2"]);
    assert!(said.status.success(), "{}", text(&said.stderr));
}

#[test]
fn an_export_killed_at_any_moment_leaves_no_model_or_a_complete_one() {
    let sources = large();
    let (int4, duration) = whole(&sources, "int4");
    let out = sources.out("model");
    let mut made = 0;
    for moment in moments(duration) {
        kill_after(&mut export(&sources, &out, "int4"), moment);
        all_are_whole(&out, &[&int4]);
        if out.exists() {
            assert!(content(&out) == int4, "half a model after {moment:?}");
            if made == 0 {
                answers(&out);
            }
            made += 1;
            fs::remove_dir_all(&out).unwrap();
        }
    }
    eprintln!("killed {KILLS} times within {duration:?}: {made} models, all whole");
    assert!(export(&sources, &out, "int4").status().unwrap().success());
    assert_eq!(names(out.parent().unwrap()), ["model"], "what was left is removed");
}

#[test]
fn an_export_killed_while_replacing_leaves_the_old_or_the_new_model() {
    let sources = large();
    let ((int8, _), (int4, duration)) = (whole(&sources, "int8"), whole(&sources, "int4"));
    let out = sources.out("model");
    assert!(export(&sources, &out, "int8").status().unwrap().success());
    let (mut is_int4, mut replaced) = (false, 0);
    for (number, moment) in moments(duration).enumerate() {
        // Exports alternate between two kinds, so that old and new can be distinguished.
        let (format, new, old) = if is_int4 { ("int8", &int8, &int4) } else { ("int4", &int4, &int8) };
        kill_after(&mut export(&sources, &out, format), moment);
        all_are_whole(&out, &[new, old]);
        let found = content(&out);
        assert!(found == *new || found == *old, "neither the old nor the new model after {moment:?}");
        if found == *new {
            is_int4 = !is_int4;
            replaced += 1;
        }
        if number % 20 == 0 {
            answers(&out);
        }
    }
    eprintln!("killed {KILLS} times within {duration:?}: {replaced} new, {} old", KILLS - replaced);
    assert!(export(&sources, &out, "int4").status().unwrap().success());
    assert_eq!(names(out.parent().unwrap()), ["model"], "what was left is removed");
}

/// The hidden directory of an unfinished export to `out`.
fn unfinished(out: &Path) -> Option<PathBuf> {
    let parent = out.parent().unwrap();
    let name = names(parent).into_iter().find(|name| name.contains(".partial-"))?;
    Some(parent.join(name))
}

/// Pieces of the weights that an unfinished export to `out` has noted as written.
fn noted(out: &Path) -> usize {
    let file = unfinished(out).and_then(|dir| fs::read(dir.join("export.progress")).ok()).unwrap_or_default();
    let entries = file.iter().position(|byte| *byte == b'\n').map_or(&[][..], |end| &file[end + 1..]);
    entries.chunks(8).filter(|entry| entry.iter().any(|byte| *byte != 0)).count()
}

/// Kills an export when it has noted more than `pieces` pieces of the weights.
fn kill_beyond(sources: &Sources, out: &Path, quantize: &str, pieces: usize) {
    let mut child = export(sources, out, quantize).env("RAYON_NUM_THREADS", "1").spawn().unwrap();
    let begun = Instant::now();
    while noted(out) <= pieces {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        assert!(begun.elapsed() < Duration::from_secs(60), "it hangs");
        thread::sleep(Duration::from_micros(100));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Exports to the end, and gives the bytes that earlier runs had written.
fn continued(sources: &Sources, out: &Path, quantize: &str) -> u64 {
    let done = export(sources, out, quantize).arg("--json").stdout(Stdio::piped()).output().unwrap();
    assert!(done.status.success());
    assert_eq!(names(out.parent().unwrap()).len(), 1, "nothing else is left");
    serde_json::from_slice::<Value>(&done.stdout).unwrap()["continued_bytes"].as_u64().unwrap()
}

#[test]
fn an_export_that_was_killed_continues_where_it_stopped_and_gives_the_same_bytes() {
    let sources = large();
    for (quantize, name) in [("int4", "a"), ("none", "b")] {
        let (expected, _) = whole(&sources, quantize);
        let out = sources.path().join(name).join("model");
        let mut pieces = 0;
        for _ in 0..4 {
            kill_beyond(&sources, &out, quantize, pieces);
            assert!(noted(&out) > pieces, "a killed run keeps what earlier ones had written");
            pieces = noted(&out);
        }
        let bytes = continued(&sources, &out, quantize);
        let weights = expected.iter().find(|(name, _)| name == "model.onnx.data").unwrap().1.len() as u64;
        assert!((1..weights).contains(&bytes), "{bytes} of {weights} after {pieces} pieces");
        assert!(content(&out) == expected, "another model after four kills");
    }
}

#[test]
fn weights_that_changed_after_a_kill_are_written_again() {
    let sources = large();
    let (expected, _) = whole(&sources, "int4");
    let out = sources.path().join("damaged/model");
    kill_beyond(&sources, &out, "int4", 3);
    let data = unfinished(&out).unwrap().join("model.onnx.data");
    let mut bytes = fs::read(&data).unwrap();
    bytes[..3 << 20].fill(0);
    fs::write(&data, bytes).unwrap();
    continued(&sources, &out, "int4");
    assert!(content(&out) == expected, "damaged weights were kept");
}

#[test]
fn another_export_to_the_same_place_starts_over() {
    let sources = large();
    let (expected, _) = whole(&sources, "int8");
    let out = sources.path().join("other/model");
    kill_beyond(&sources, &out, "int4", 1);
    assert_eq!(continued(&sources, &out, "int8"), 0);
    assert!(content(&out) == expected, "it has weights of the other export");
}

/// Kills the process before the `KILL_AT`-th call that changes a file.
const COUNTER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>
static void step(void) {
    static atomic_int calls;
    const char *at = getenv("KILL_AT");
    if (at && atomic_fetch_add(&calls, 1) + 1 == atoi(at)) kill(getpid(), SIGKILL);
}
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define STEP(type, name, parameters, ...) type name parameters { step(); return NEXT(name)(__VA_ARGS__); }
STEP(int, mkdir, (const char *path, mode_t mode), path, mode)
STEP(int, rmdir, (const char *path), path)
STEP(int, unlink, (const char *path), path)
STEP(int, unlinkat, (int dir, const char *path, int flags), dir, path, flags)
STEP(int, rename, (const char *from, const char *to), from, to)
STEP(int, fsync, (int file), file)
STEP(int, flock, (int file, int operation), file, operation)
STEP(ssize_t, write, (int file, const void *bytes, size_t count), file, bytes, count)
STEP(ssize_t, pwrite64, (int file, const void *bytes, size_t count, off_t at), file, bytes, count, at)
STEP(ssize_t, copy_file_range, (int in, off_t *from, int out, off_t *to, size_t count, unsigned flags),
    in, from, out, to, count, flags)
long syscall(long number, ...) {
    va_list a;
    va_start(a, number);
    long v[6];
    for (int i = 0; i < 6; i++) v[i] = va_arg(a, long);
    va_end(a);
    step();
    return NEXT(syscall)(number, v[0], v[1], v[2], v[3], v[4], v[5]);
}
int open64(const char *path, int flags, ...) {
    va_list a;
    va_start(a, flags);
    mode_t mode = va_arg(a, mode_t);
    va_end(a);
    if (flags & 0100) step();
    return NEXT(open64)(path, flags, mode);
}
"#;

/// The library that counts, in `dir`.
fn counter(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("counter.c"), dir.join("counter.so"));
    fs::write(&source, COUNTER).unwrap();
    let built = Command::new("cc")
        .args(["-w", "-shared", "-fPIC", "-o", argument(&library), argument(&source), "-ldl"])
        .status()
        .unwrap();
    assert!(built.success(), "a C compiler links every Rust program");
    library
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn an_export_killed_before_any_file_operation_leaves_a_complete_model_or_none() {
    let sources = Sources::new();
    let library = counter(sources.path());
    let (int4, _) = whole(&sources, "int4");
    let (int8, _) = whole(&sources, "int8");
    let out = sources.out("model");
    let (mut old, mut steps) = (None, 0);
    // The last two rounds continue what the run before left.
    for round in 0..4 {
        let new = if round % 2 == 1 { (&int4, "int4") } else { (&int8, "int8") };
        for at in 1.. {
            if round < 2
                && let Some(left) = unfinished(&out)
            {
                fs::remove_dir_all(left).unwrap();
            }
            let mut command = export(&sources, &out, new.1);
            command.env("LD_PRELOAD", &library).env("KILL_AT", at.to_string()).env("RAYON_NUM_THREADS", "1");
            let is_done = command.status().unwrap().success();
            all_are_whole(&out, &[&int4, &int8]);
            let found = out.exists().then(|| content(&out));
            let is_new = found.as_ref() == Some(new.0);
            assert!(is_new || found.as_ref() == old, "neither the old nor the new model before call {at}");
            steps += 1;
            if is_done {
                assert!(is_new && at > if round < 2 { 20 } else { 8 }, "only {at} calls were counted");
                break;
            }
            if is_new {
                restore(&sources, &out, (round > 0).then_some(if round % 2 == 1 { "int8" } else { "int4" }));
            }
        }
        old = Some(new.0);
    }
    eprintln!("killed before each of {steps} calls: the old or the new model, whole");
    assert_eq!(names(out.parent().unwrap()), ["model"]);
}

/// The content before an export that was killed after it had finished.
fn restore(sources: &Sources, out: &Path, old: Option<&str>) {
    fs::remove_dir_all(out).unwrap();
    if let Some(quantize) = old {
        assert!(export(sources, out, quantize).status().unwrap().success());
    }
}
