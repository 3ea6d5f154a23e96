//! A growing key-value cache gives the same logits as a large one and is freed when it is not needed.

use std::{cell::RefCell, path::Path};

use eka::{
    device::DeviceErrorKind,
    engine::{EngineError, Forward, Timeline, TimelineOptions},
    export::{Layout, Options},
    manifest::Dtype,
    model::Model,
    units::Bytes,
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use rand::{SeedableRng, rngs::StdRng};

use crate::{
    soak::{self, SoakOptions},
    support::models::{OPTIONS, export_long, lock_host_pool, long_model, pool, runtime},
};

/// The rooms of a cache on its way to 2048 positions.
const STEPS: [usize; 17] =
    [64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, usize::MAX];

fn options(chunk: usize, keep: Bytes) -> TimelineOptions {
    TimelineOptions { chunk, keep, ..TimelineOptions::default() }
}

/// A cache that has the whole context from the start.
fn large(dir: &Path, chunk: usize) -> Timeline {
    let timeline =
        Timeline::new(Model::open(runtime(), dir, OPTIONS).unwrap(), options(chunk, Bytes(0))).unwrap();
    assert_eq!(timeline.room(), 2048);
    timeline
}

fn growing(pool: &eka::device::Pool, dir: &Path, chunk: usize, keep: Bytes) -> Timeline {
    Timeline::new(Model::open_in(pool, dir, OPTIONS).unwrap(), options(chunk, keep)).unwrap()
}

fn tokens(length: usize) -> Vec<u32> {
    soak::prompt(&mut StdRng::seed_from_u64(9), length)
}

/// Feeds `prompt` in chunks, then the most likely token `steps` times; returns the logits of each pass.
fn greedy(timeline: &mut Timeline, prompt: &[u32], steps: usize) -> Vec<Vec<f32>> {
    timeline.rewind(0);
    let chunk = timeline.chunk();
    let mut said: Vec<_> =
        prompt.chunks(chunk).map(|chunk| timeline.forward(chunk).unwrap().to_vec()).collect();
    for _ in 0..steps {
        let logits = said.last().unwrap();
        let top = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        said.push(timeline.forward(&[u32::try_from(top).unwrap()]).unwrap().to_vec());
    }
    said
}

#[test]
fn a_growing_cache_gives_the_same_logits_as_a_large_one() {
    let _lock = lock_host_pool();
    let genai = export_long("long-genai", |options| Options { layout: Layout::Genai, ..options });
    let half = export_long("long-half", |options| Options { dtype: Dtype::Float16, ..options });
    for (dir, around) in [(long_model(), &STEPS[..16]), (&*genai, &STEPS[..3]), (&*half, &STEPS[..2])] {
        let pool = pool(None);
        // A chunk that no step is a multiple of, so that chunks end before, at and behind it.
        let (mut large, mut growing) = (large(dir, 100), growing(&pool, dir, 100, Bytes(0)));
        for (length, steps) in around
            .iter()
            .flat_map(|room| [-2isize, -1, 0, 1].map(|by| (room.saturating_add_signed(by), 3)).into_iter())
        {
            let length = length.min(2045);
            growing.clear();
            assert_eq!(growing.room(), 0);
            let (expected, said) =
                (greedy(&mut large, &tokens(length), steps), greedy(&mut growing, &tokens(length), steps));
            assert!(said == expected, "{}: {length} and {steps}", dir.display());
            assert_eq!(growing.room(), *STEPS.iter().find(|room| **room >= length + steps).unwrap());
        }
    }
}

#[test]
fn an_answer_that_fills_the_context_grows_through_every_size() {
    let _lock = lock_host_pool();
    let pool = pool(None);
    let (mut large, mut growing) = (large(long_model(), 64), growing(&pool, long_model(), 64, Bytes(0)));
    let expected = greedy(&mut large, &tokens(1), 2047);
    assert!(greedy(&mut growing, &tokens(1), 2047) == expected);
    let refused = growing.forward(&[5]).unwrap_err();
    assert!(matches!(refused, EngineError::Context { used: 2048, asked: 1, capacity: 2048 }), "{refused}");
    let all = growing.room();
    growing.clear();
    assert_eq!((all, growing.room()), (2048, 0));
    assert_eq!(pool.stats().scratch, Bytes(0), "it was given back");
}

#[test]
fn a_reservation_allocates_its_room_at_once() {
    let _lock = lock_host_pool();
    let pool = pool(None);
    let mut timeline = growing(&pool, long_model(), 512, Bytes(0));
    timeline.reserve(1100).unwrap();
    assert_eq!(timeline.room(), 1280);
    let before = pool.stats().allocations;
    timeline.reserve(1280).unwrap();
    assert_eq!((timeline.room(), pool.stats().allocations), (1280, before), "it is there already");
    assert!(matches!(timeline.reserve(2049), Err(EngineError::Context { capacity: 2048, .. })));
    let all = timeline.forward_all(&tokens(1500)).unwrap();
    assert!(all == large(long_model(), 512).forward_all(&tokens(1500)).unwrap());
}

#[test]
fn between_requests_at_most_kv_keep_bytes_are_kept() {
    const KEEP: Bytes = Bytes::kib(700);
    let _lock = lock_host_pool();
    let pool = pool(None);
    let mut timeline = growing(&pool, long_model(), 512, KEEP);
    let (mut kept, mut given_back) = (0, 0);
    for length in [10, 300, 319, 320, 64, 700, 1, 2000] {
        greedy(&mut timeline, &tokens(length), 1);
        timeline.clear();
        let figures = pool.stats();
        assert!(figures.scratch <= KEEP, "{length}: {figures:?}");
        assert_eq!(figures.scratch == Bytes(0), timeline.room() == 0);
        *(if timeline.room() > 0 { &mut kept } else { &mut given_back }) += 1;
    }
    assert_eq!((kept, given_back), (5, 3), "one of 320 positions fits, one of 384 does not");
    greedy(&mut timeline, &tokens(10), 1);
    timeline.clear_to(Bytes(0));
    pool.trim(Bytes(0));
    assert_eq!(pool.stats().held, pool.stats().weights);
}

#[test]
fn a_cache_that_cannot_grow_fails_only_its_request() {
    let _lock = lock_host_pool();
    let max = {
        let pool = pool(None);
        greedy(&mut growing(&pool, long_model(), 64, Bytes(0)), &tokens(500), 1);
        pool.stats().in_use_peak
    };
    let pool = pool(Some(max));
    let mut timeline = growing(&pool, long_model(), 64, Bytes(0));
    let weights = pool.stats().in_use();
    for _ in 0..3 {
        greedy(&mut timeline, &tokens(450), 1);
        let refused = loop {
            if let Err(refused) = timeline.forward(&[7]) {
                break refused;
            }
        };
        assert_eq!(refused.fault(), DeviceErrorKind::OutOfMemory);
        let said = refused.to_string();
        let expected = "the key-value cache cannot grow: no room for ";
        assert!(said.starts_with(expected) && said.contains("a shorter prompt or answer"), "{said}");
        assert_eq!((timeline.length(), timeline.room()), (0, 0));
        assert_eq!(pool.stats().in_use(), weights, "all of it was given back");
    }
    assert_eq!(pool.stats().spills, 0);
}

#[test]
fn random_sequences_match_a_large_cache_and_memory_accounting_is_exact() {
    let _lock = lock_host_pool();
    let pool = pool(None);
    let keep = Bytes::kib(300);
    // proptest passes a shared reference.
    let both = RefCell::new((large(long_model(), 80), growing(&pool, long_model(), 80, keep)));
    let weights = pool.stats().weights;
    let requests = proptest::collection::vec((1usize..700, 0usize..70, any::<bool>()), 1..4);
    let mut runner = TestRunner::new(Config { cases: 12, failure_persistence: None, ..Config::default() });
    runner
        .run(&requests, |requests| {
            let (large, growing) = &mut *both.borrow_mut();
            for (prompt, answer, is_cleared) in requests {
                let prompt = tokens(prompt);
                let (a, b) = (greedy(large, &prompt, answer), greedy(growing, &prompt, answer));
                prop_assert!(a == b, "{} and {answer}", prompt.len());
                if is_cleared {
                    growing.clear();
                    prop_assert!(pool.stats().in_use() <= weights + keep);
                }
            }
            Ok(())
        })
        .unwrap();
    drop(both);
    pool.trim(Bytes(0));
    let closed = pool.stats();
    assert_eq!(
        (closed.blocks, closed.requested, closed.held, closed.reserved),
        (0, Bytes(0), Bytes(0), Bytes(0))
    );
    assert_eq!(closed.writes_after_free, 0);
}

#[test]
fn a_short_soak_of_all_lengths_leaks_nothing() {
    let _lock = lock_host_pool();
    let options = SoakOptions { requests: 40, seed: 3, kv_keep: Bytes::mib(1), captures: false };
    let report = soak::run(&pool(None), long_model(), options).unwrap();
    assert_eq!(report.wrong(), Vec::<String>::new(), "{report:?}");
    assert!((1..40).contains(&report.times_kept), "{report:?}");
    assert!(report.prompt_tokens > 40 * 500 && report.answer_tokens >= 40, "{report:?}");
}
