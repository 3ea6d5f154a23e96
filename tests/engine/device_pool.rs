//! The memory pool on the host, used by real sessions: all memory is returned, and exceeding the limit is an error.

use std::path::PathBuf;

use eka::{
    device::{
        DeviceError, DeviceErrorKind, Pool, SessionOptions,
        pool::{PoolOptions, PoolStats},
    },
    engine::{EngineError, Forward, Timeline, TimelineOptions},
    model::{Model, ModelError},
    units::Bytes,
};

use crate::support::models::{OPTIONS, exported, lock_host_pool, pool, runtime};

fn directory() -> PathBuf {
    exported("llama").into()
}

fn timeline(model: Model, chunk: usize) -> Timeline {
    Timeline::new(model, TimelineOptions { chunk, ..TimelineOptions::default() }).unwrap()
}

fn in_pool(pool: &Pool, chunk: usize) -> Timeline {
    timeline(Model::open_in(pool, &directory(), OPTIONS).unwrap(), chunk)
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|n| 3 + n * 7 % 200).collect()
}

/// The logits after each of `steps` greedy tokens, from a fresh start.
fn generate(timeline: &mut Timeline, prompt: &[u32], steps: usize) -> Vec<Vec<f32>> {
    timeline.rewind(0);
    for chunk in prompt[..prompt.len() - 1].chunks(timeline.chunk()) {
        timeline.forward(chunk).unwrap();
    }
    let mut token = *prompt.last().unwrap();
    let step = |_| {
        let logits = timeline.forward(&[token]).unwrap().to_vec();
        let top = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        token = u32::try_from(top).unwrap();
        logits
    };
    (0..steps).map(step).collect()
}

#[test]
fn generation_in_a_pool_is_bit_identical_and_frees_every_byte() {
    let _lock = lock_host_pool();
    let prompt = prompt(20);
    let mut plain = timeline(Model::open(runtime(), &directory(), OPTIONS).unwrap(), 16);
    let expected = generate(&mut plain, &prompt, 10);

    let pool = pool(None);
    assert_eq!(pool.stats(), PoolStats::default());
    let mut timeline = in_pool(&pool, 16);
    let loaded = pool.stats();
    assert!(loaded.weights > Bytes::kib(1), "{loaded:?}");
    assert_eq!(loaded.scratch, Bytes(0), "a cache is made for a request: {loaded:?}");
    assert_eq!(generate(&mut timeline, &prompt, 10), expected);
    let ran = pool.stats();
    assert!(ran.allocations > loaded.allocations && ran.reuses > 0, "{ran:?}");
    assert!(ran.scratch > Bytes(0), "the cache is the pool's: {ran:?}");
    assert_eq!((ran.weights, ran.spills), (loaded.weights, 0), "{ran:?}");
    assert_eq!(ran.reserved, ran.held, "nothing but the pool's books");

    pool.trim(Bytes(0));
    let trimmed = pool.stats();
    assert_eq!((trimmed.cached, trimmed.held), (Bytes(0), ran.weights + ran.scratch));
    assert_eq!(generate(&mut timeline, &prompt, 10), expected, "after a trim");
    drop(timeline);
    let after = pool.stats();
    assert_eq!((after.blocks, after.in_use(), after.requested), (0, Bytes(0), Bytes(0)), "{after:?}");
    pool.trim(Bytes(0));
    let after = pool.stats();
    assert_eq!((after.held, after.reserved, after.writes_after_free), (Bytes(0), Bytes(0), 0), "{after:?}");
}

#[test]
fn peak_memory_is_reproducible_and_lower_for_shorter_generations() {
    let _lock = lock_host_pool();
    let pool = pool(None);
    let mut timeline = in_pool(&pool, 64);
    let mut peak = |length| {
        // Free blocks of another request could serve smaller requests.
        pool.trim(Bytes(0));
        pool.reset_peaks();
        generate(&mut timeline, &prompt(length), 3);
        let figures = pool.stats();
        assert!(figures.in_use_peak <= figures.held_peak && figures.held <= figures.held_peak);
        figures.in_use_peak
    };
    let long = peak(60);
    assert_eq!(long, peak(60));
    assert!(peak(10) < long);
}

#[test]
fn a_pass_over_the_limit_fails_and_a_smaller_one_succeeds() {
    let _lock = lock_host_pool();
    let (weights, small, large) = {
        let pool = pool(None);
        let mut timeline = in_pool(&pool, 64);
        let weights = pool.stats().in_use();
        let mut needs = |length| {
            pool.trim(Bytes(0));
            pool.reset_peaks();
            timeline.rewind(0);
            timeline.forward(&prompt(length)).unwrap();
            pool.stats().in_use_peak
        };
        (weights, needs(8), needs(60))
    };
    assert!(weights < small && small < large, "{weights} {small} {large}");

    let limit = Bytes(small.0 + (large.0 - small.0) / 4);
    let pool = pool(Some(limit));
    let mut timeline = in_pool(&pool, 64);
    for _ in 0..3 {
        timeline.rewind(0);
        let refused = timeline.forward(&prompt(60)).unwrap_err();
        let EngineError::Device(refused) = refused else { panic!("{refused}") };
        assert_eq!(refused.kind(), DeviceErrorKind::OutOfMemory);
        let said = refused.to_string();
        let expected = format!("of {limit} in use; raise device.memory_limit");
        assert!(said.starts_with("a run failed: no room for ") && said.contains(&expected), "{said}");
        let figures = pool.stats();
        assert!(figures.spills > 0 && figures.held_peak <= limit, "{figures:?}");
        assert_eq!(figures.spilled, Bytes(0), "it was given back");

        timeline.rewind(0);
        timeline.forward(&prompt(8)).unwrap();
    }
    assert_eq!(pool.stats().writes_after_free, 0);
}

#[test]
fn a_model_larger_than_the_limit_is_rejected_with_the_sizes() {
    let _lock = lock_host_pool();
    let pool = pool(Some(Bytes::kib(64)));
    // Eka's operators would read float weights where the file is mapped.
    let options = SessionOptions { own_operators: false, ..OPTIONS };
    let refused = Model::open_in(&pool, &directory(), options).unwrap_err();
    let ModelError::Load { source: DeviceError::NoRoom { source, .. }, .. } = &refused else {
        panic!("{refused}")
    };
    assert_eq!(source.limit, Some(Bytes::kib(64)));
    assert!(refused.to_string().contains("of 64.0 KiB in use; raise device.memory_limit"), "{refused}");
    assert_eq!(pool.stats().blocks, 0, "what it had taken is back");
}

#[test]
fn a_pool_is_released_with_its_last_session() {
    let _lock = lock_host_pool();
    let pool = pool(None);
    let mut timeline = in_pool(&pool, 16);
    let second = || Pool::on_host(runtime(), PoolOptions::default());
    let refused = second().unwrap_err().to_string();
    assert_eq!(refused, "a memory pool cannot be registered: device 0 (Cpu) has one; share it");
    drop(pool);
    generate(&mut timeline, &prompt(20), 2);
    assert!(second().is_err());
    drop(timeline);
    drop(second().unwrap());
}

#[test]
fn buffers_grow_and_are_freed_in_any_order_beside_a_session() {
    let _lock = lock_host_pool();
    let pool = pool(Some(Bytes::mib(64)));
    let mut timeline = in_pool(&pool, 16);
    let expected = generate(&mut timeline, &prompt(20), 3);
    let loaded = pool.stats();
    let mut buffers = Vec::new();
    for doubling in 0..6 {
        buffers.push(pool.buffer(Bytes::kib(64 << doubling)).unwrap());
        assert_eq!(generate(&mut timeline, &prompt(20), 3), expected);
        if doubling % 2 == 1 {
            drop(buffers.swap_remove(0));
        }
    }
    let refused = pool.buffer(Bytes::mib(65)).unwrap_err();
    assert!(refused.to_string().starts_with("a buffer: no room for 72.0 MiB"), "{refused}");
    drop(buffers);
    let after = pool.stats();
    assert_eq!((after.in_use(), after.spills), (loaded.in_use(), 0), "{after:?}");
}
