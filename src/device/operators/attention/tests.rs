//! Attention against plain sums in double precision.

use std::ops::Range;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{CacheSegment, CpuIsa, Form, Format, Heads, Parts, Pass, Rotary, Share, pass::SPAN, plan::plan};

/// Every position in the cache's row of the same number.
const WHOLE: &[CacheSegment] = &[CacheSegment { position: 0, row: 0 }];

const FORMATS: [Format; 3] = [Format::Float32, Format::Float16, Format::Int8];

/// Some tokens, and all that attention needs to read them.
struct Case {
    form: Form,
    pairs: usize,
    capacity: usize,
    /// `[positions, heads + 2 kv_heads, head_dim]`.
    tokens: Vec<f32>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Case {
    fn random(form: Form, pairs: usize, positions: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let width = (form.heads + 2 * form.kv_heads) * form.head_dim;
        let tokens = (0..positions * width).map(|_| rng.random_range(-2.0..2.0)).collect();
        let angles: Vec<f32> = (0..positions * pairs).map(|_| rng.random_range(0.0..6.0)).collect();
        let (cosines, sines) =
            (angles.iter().map(|a| a.cos()).collect(), angles.iter().map(|a| a.sin()).collect());
        Self { form, pairs, capacity: positions + 3, tokens, cosines, sines }
    }

    fn width(&self) -> usize {
        (self.form.heads + 2 * self.form.kv_heads) * self.form.head_dim
    }

    fn positions(&self) -> usize {
        self.tokens.len() / self.width()
    }

    /// Head `head` of queries, then keys, then values, turned as queries and keys are.
    fn head(&self, position: usize, head: usize) -> Vec<f64> {
        let dim = self.form.head_dim;
        let numbers = &self.tokens[position * self.width() + head * dim..][..dim];
        let mut turned: Vec<f64> = numbers.iter().map(|x| f64::from(*x)).collect();
        if head < self.form.heads + self.form.kv_heads {
            for i in 0..self.pairs {
                let at = position * self.pairs + i;
                let (cosine, sine) = (f64::from(self.cosines[at]), f64::from(self.sines[at]));
                let (x, y) = (turned[i], turned[i + self.pairs]);
                (turned[i], turned[i + self.pairs]) = (x * cosine - y * sine, y * cosine + x * sine);
            }
        }
        turned
    }

    /// What every position puts out.
    fn exact(&self) -> Vec<f64> {
        let Form { heads, kv_heads, .. } = self.form;
        let rows = (0..self.positions()).flat_map(|position| (0..heads).map(move |head| (position, head)));
        rows.flat_map(|(position, head)| {
            let (query, of_head) = (self.head(position, head), head / (heads / kv_heads));
            let first = self.form.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let score = |at: usize| {
                let key = self.head(at, heads + of_head);
                let dot: f64 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
                let scaled = dot * f64::from(self.form.scale);
                self.form.cap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh())
            };
            let scores: Vec<f64> = (first..=position).map(score).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut sums = vec![0.0; self.form.head_dim];
            for (at, weight) in (first..=position).zip(weights) {
                let value = self.head(at, heads + kv_heads + of_head);
                sums.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight * value / total);
            }
            sums
        })
        .collect()
    }

    /// The same by an operator that is fed `passes` tokens at a time, for `threads` threads.
    fn computed(&self, kind: CpuIsa, format: Format, passes: &[usize], threads: usize) -> Vec<f32> {
        let form = self.form;
        // Memory that was never written may hold anything.
        let room = form.kv_heads * self.capacity * format.bytes(form.head_dim);
        let (mut keys, mut values) = (vec![0xFF; room], vec![0xFF; room]);
        let (mut all, mut past) = (Vec::new(), 0);
        for &new in passes {
            let width = self.width();
            let tokens = &self.tokens[past * width..][..new * width];
            let heads =
                |before: usize| Heads { numbers: tokens, start: before * form.head_dim, stride: width };
            let mut output = vec![f32::NAN; new * form.heads * form.head_dim];
            let mut pass = Pass {
                form,
                format,
                past,
                new,
                before: 0,
                segments: WHOLE,
                capacity: self.capacity,
                queries: heads(0),
                new_keys: heads(form.heads),
                new_values: heads(form.heads + form.kv_heads),
                rotary: (self.pairs > 0).then_some(Rotary {
                    pairs: self.pairs,
                    cosines: &self.cosines,
                    sines: &self.sines,
                }),
                bias: None,
                sinks: None,
                keys: Parts::of(&mut keys),
                values: Parts::of(&mut values),
                output: Parts::of(&mut output),
                parts: Parts::of(&mut []),
                part_stride: 0,
            };
            let mut shares = Vec::new();
            let mut parts = vec![f32::NAN; plan(&[pass], threads, &mut shares) * pass.part()];
            (pass.parts, pass.part_stride) = (Parts::of(&mut parts), pass.part());
            run(&pass, kind, &shares);
            all.extend(output);
            past += new;
        }
        all
    }
}

fn run(pass: &Pass, kind: CpuIsa, shares: &[Share]) {
    // SAFETY: one call after the other, for a kind that this machine has.
    (0..pass.new).for_each(|token| unsafe { pass.append(token) });
    // SAFETY: as above.
    shares.iter().for_each(|share| unsafe { pass.share(kind, share) });
    for of_rows in shares.chunk_by(|a, b| (a.head, &a.rows) == (b.head, &b.rows)) {
        let parts: Vec<usize> = of_rows.iter().filter_map(|share| share.part).collect();
        if let [first, .., last] = parts[..] {
            // SAFETY: all shares have been computed.
            unsafe { pass.join(kind, of_rows[0].head, of_rows[0].rows.clone(), first..last + 1) };
        }
    }
}

fn worst(computed: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(computed.len(), exact.len());
    let apart = computed.iter().zip(exact).map(|(a, b)| (f64::from(*a) - b).abs());
    apart.fold(0.0, |worst, x| if x > worst || x.is_nan() { x } else { worst })
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

fn form(kv_heads: usize, group: usize, head_dim: usize) -> Form {
    Form { heads: kv_heads * group, kv_heads, head_dim, window: None, scale: 0.3, cap: None }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_processor_computes_the_plain_sum_however_it_is_fed(
        (kv_heads, group, head_dim) in (1usize..4, 1usize..10, 1usize..100),
        (window, cap) in (prop::option::of(1usize..80), prop::option::of(1.0f32..40.0)),
        (is_rotary, threads) in (any::<bool>(), 1usize..4),
        passes in prop::collection::vec(1usize..50, 1..5),
        seed: u64,
    ) {
        let form = Form { window, cap, ..form(kv_heads, group, head_dim) };
        let pairs = if is_rotary { head_dim / 2 } else { 0 };
        let case = Case::random(form, pairs, passes.iter().sum(), seed);
        let exact = case.exact();
        for kind in CpuIsa::all() {
            for (format, max) in FORMATS.into_iter().zip([4e-5, 0.02, 0.3]) {
                let pieces = case.computed(kind, format, &passes, threads);
                let off = worst(&pieces, &exact);
                prop_assert!(off <= max, "{kind:?} in {format:?}: off by {off}");
                let whole = case.computed(kind, format, &[case.positions()], 1);
                prop_assert!(bits(&whole) == bits(&pieces), "{kind:?} in {format:?}: other bits");
            }
        }
    }
}

#[test]
fn long_contexts_are_split_among_threads_and_put_together_again() {
    for (kv_heads, group, new, window) in
        [(1, 8, 1, None), (2, 1, 1, None), (1, 4, 9, Some(700)), (1, 2, 90, None)]
    {
        let form = Form { window, ..form(kv_heads, group, 16) };
        let case = Case::random(form, 8, 2 * SPAN + 17, 9);
        let exact = case.exact();
        let passes = [case.positions() - new, new];
        for kind in CpuIsa::all() {
            let alone = case.computed(kind, Format::Float32, &passes, 1);
            let shared = case.computed(kind, Format::Float32, &passes, 4);
            let other =
                case.computed(kind, Format::Float32, &[SPAN - 5, 200, case.positions() - SPAN - 195], 3);
            assert!(worst(&alone, &exact) <= 4e-5, "{kind:?}, {form:?}");
            assert!(bits(&alone) == bits(&shared), "{kind:?}, {form:?}: threads change bits");
            assert!(bits(&alone) == bits(&other), "{kind:?}, {form:?}: passes change bits");
        }
    }
}

#[test]
fn shares_cover_every_row_and_every_position_that_it_sees_once() {
    for (kv_heads, group, past, new, window) in [
        (1, 8, 0, 1, None),
        (1, 8, 3000, 1, None),
        (4, 8, 1500, 16, Some(1000)),
        (2, 3, 100, 300, None),
        (1, 1, 5000, 40, Some(64)),
    ] {
        let form = Form { window, ..form(kv_heads, group, 64) };
        let nothing = Heads { numbers: &[], start: 0, stride: 0 };
        let pass = Pass {
            form,
            format: Format::Float16,
            past,
            new,
            before: 0,
            segments: WHOLE,
            capacity: past + new,
            queries: nothing,
            new_keys: nothing,
            new_values: nothing,
            rotary: None,
            bias: None,
            sinks: None,
            keys: Parts::of(&mut []),
            values: Parts::of(&mut []),
            output: Parts::of(&mut []),
            parts: Parts::of(&mut []),
            part_stride: 0,
        };
        for threads in [1, 2, 7] {
            let mut shares = Vec::new();
            let parts = plan(&[pass], threads, &mut shares);
            let numbered: Vec<usize> = shares.iter().filter_map(|share| share.part).collect();
            assert_eq!(numbered, (0..parts).collect::<Vec<_>>());
            for (head, row) in (0..kv_heads).flat_map(|head| (0..pass.rows()).map(move |row| (head, row))) {
                let of_row = shares.iter().filter(|share| share.head == head && share.rows.contains(&row));
                let keys: Vec<Range<usize>> = of_row.map(|share| share.keys.clone()).collect();
                assert!(keys.windows(2).all(|pair| pair[0].end == pair[1].start), "{keys:?}");
                let seen = pass.visible(row);
                assert!(
                    keys[0].start <= seen.start && keys[keys.len() - 1].end >= seen.end,
                    "{keys:?}, {seen:?}"
                );
            }
        }
    }
}

#[test]
fn nan_does_not_spread_to_queries_that_do_not_see_it() {
    for format in FORMATS {
        for kind in CpuIsa::all() {
            for group in [1, 8] {
                let mut case = Case::random(form(1, group, 32), 0, 60, 4);
                let width = case.width();
                // A key of position 40.
                case.tokens[40 * width + group * 32 + 5] = f32::NAN;
                let output = case.computed(kind, format, &[60], 1);
                let (before, after) = output.split_at(40 * group * 32);
                assert!(before.iter().all(|x| x.is_finite()), "{kind:?}, {format:?}");
                assert!(after.iter().all(|x| x.is_nan()), "{kind:?}, {format:?}");
            }
        }
    }
}

#[test]
fn numbers_that_a_format_has_no_room_for_become_the_nearest_and_zeros_stay_zeros() {
    let numbers: Vec<f32> = [1e30, -1e30, 65_504.0, 0.0, 1e-9, -3.0].into_iter().cycle().take(40).collect();
    for format in FORMATS {
        let mut row = vec![0; format.bytes(40)];
        let mut decoded = vec![f32::NAN; 48];
        format.encode(&numbers, &mut row);
        // SAFETY: it uses no special instructions.
        unsafe { format.decode::<super::super::portable::Portable>(&row, 40, &mut decoded) };
        assert!(
            decoded.iter().all(|x| x.is_finite()) && decoded[40..].iter().all(|x| *x == 0.0),
            "{format:?}"
        );
        assert_eq!(
            (decoded[3], decoded[0].is_sign_positive(), decoded[1].is_sign_negative()),
            (0.0, true, true)
        );
        if format == Format::Float16 {
            assert_eq!(decoded[..3], [65_504.0, -65_504.0, 65_504.0]);
        }
        format.encode(&[0.0; 40], &mut row);
        // SAFETY: as above.
        unsafe { format.decode::<super::super::portable::Portable>(&row, 40, &mut decoded) };
        assert!(decoded.iter().all(|x| *x == 0.0));
    }
}

#[test]
fn int8_is_off_by_half_a_step_of_each_thirty_two_at_most() {
    let mut rng = StdRng::seed_from_u64(8);
    let numbers: Vec<f32> =
        (0..80).map(|i| rng.random_range(-1.0f32..1.0) * if i < 32 { 100.0 } else { 0.01 }).collect();
    let mut row = vec![0; Format::Int8.bytes(80)];
    assert_eq!(row.len(), 80 + 3 * 2);
    let mut decoded = vec![0.0; 80];
    Format::Int8.encode(&numbers, &mut row);
    // SAFETY: it uses no special instructions.
    unsafe { Format::Int8.decode::<super::super::portable::Portable>(&row, 80, &mut decoded) };
    for (i, (a, b)) in numbers.iter().zip(&decoded).enumerate() {
        let max = if i < 32 { 100.0 } else { 0.01 };
        assert!((a - b).abs() <= max / 127.0 * 0.55, "{i}: {a}, {b}");
    }
}
