//! Attention of a few rows of queries over a range of positions, in one pass over keys and values.
//!
//! A row is one query head of one token; rows that share a head of keys and values are computed together, sixteen side by
//! side in a tile, so that keys and values are read once for all of them. Over blocks of [`KEYS`] positions:
//!
//! ```text
//! scores[position][row]  = keys · queries      sixteen rows a register: no sum across one
//! scores[position][row]  = e^(scores - most)   the greatest so far; earlier sums are scaled to it
//! sums[row][..]         += scores · values     a few rows by a few registers of values
//! ```
//!
//! Up to eight rows, as a token has in most models, would leave half of a register empty: there each has two lanes, for two
//! numbers of a key. One to three use the whole register, as their scores are dot products. The softmax needs a single pass,
//! and parts of a range that several threads compute are combined by their greatest scores.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "vector instructions, all under one condition: that the processor has them"
)]

use std::{cell::Cell, mem, ops::Range};

use super::{
    super::{
        cpu_isa::{CpuIsa, Task},
        gemm_int4::Parts,
        simd_f32::{LANES, SimdF32},
        simd_i8::SimdI8,
    },
    format::Format,
    steps::{Matrix, accumulate, dots, exponentials, scores, soften},
};

/// Positions whose scores are computed before their values are read: few enough that all of it stays in the first cache.
pub(super) const KEYS: usize = 32;

/// Bytes that a processor reads at once.
const LINE: usize = 64;

/// Tiles of rows that a block of keys and values is read for.
const TILES: usize = 4;

/// Most rows of one share.
pub(super) const MAX_ROWS: usize = TILES * LANES;

/// Most rows whose scores are dots.
const FEW: usize = 3;

/// Most rows that fill a register in pairs.
const PAIRS: usize = LANES / 2;

/// The parameters of a node, the same in every pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Form {
    /// Query heads.
    pub(super) heads: usize,
    /// Heads of keys and values; `heads` is a multiple.
    pub(super) kv_heads: usize,
    /// Numbers of a head.
    pub(super) head_dim: usize,
    /// Positions that a token sees, its own included; all before it where there is none.
    pub(super) window: Option<usize>,
    /// What scores are multiplied by.
    pub(super) scale: f32,
    /// What scores stay below, smoothly.
    pub(super) cap: Option<f32>,
}

impl Form {
    /// Query heads that share a head of keys and values.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// `head_dim`, filled up to whole registers.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
}

/// Heads of every token, side by side with something else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads<'a> {
    pub(super) numbers: &'a [f32],
    /// Where the first token's begin.
    pub(super) start: usize,
    /// From one token to the next.
    pub(super) stride: usize,
}

impl Heads<'_> {
    fn of(&self, token: usize, head: usize, head_dim: usize) -> &[f32] {
        &self.numbers[self.start + token * self.stride + head * head_dim..][..head_dim]
    }
}

/// Cosines and sines of every position, `[positions, pairs]`: number `i` turns with number `i + pairs`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotary<'a> {
    pub(super) pairs: usize,
    pub(super) cosines: &'a [f32],
    pub(super) sines: &'a [f32],
}

impl Rotary<'_> {
    #[inline(always)]
    fn turn(&self, position: usize, head: &mut [f32]) {
        let pairs = self.pairs;
        let (first, rest) = head.split_at_mut(pairs);
        let cosines = &self.cosines[position * pairs..][..pairs];
        let sines = &self.sines[position * pairs..][..pairs];
        for (((x, y), cosine), sine) in first.iter_mut().zip(rest).zip(cosines).zip(sines) {
            (*x, *y) = (*x * cosine - *y * sine, *y * cosine + *x * sine);
        }
    }
}

/// One pass of a node: the keys and values of some tokens appended to the cache, and what their queries see there.
pub(super) struct Pass<'a> {
    pub(super) form: Form,
    pub(super) format: Format,
    /// Positions in the cache before.
    pub(super) past: usize,
    /// Tokens.
    pub(super) new: usize,
    /// Positions that the cache has room for.
    pub(super) capacity: usize,
    pub(super) queries: Heads<'a>,
    pub(super) new_keys: Heads<'a>,
    pub(super) new_values: Heads<'a>,
    pub(super) rotary: Option<Rotary<'a>>,
    /// `[kv_heads, capacity]` rows.
    pub(super) keys: Parts<'a, u8>,
    /// As `keys`.
    pub(super) values: Parts<'a, u8>,
    /// `[new, heads, head_dim]`.
    pub(super) output: Parts<'a, f32>,
    /// Of each share that does not see all that its rows see, [`Pass::part`] numbers.
    pub(super) parts: Parts<'a, f32>,
}

/// A part of a pass that one thread computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Head of keys and values.
    pub(super) head: usize,
    /// Of the rows of this head, token by token.
    pub(super) rows: Range<usize>,
    /// Positions.
    pub(super) keys: Range<usize>,
    /// Its place among the parts, unless it sees all that its rows see.
    pub(super) part: Option<usize>,
}

/// A share of a pass.
struct ShareOf<'a> {
    pass: &'a Pass<'a>,
    share: &'a Share,
}

impl Task for ShareOf<'_> {
    #[inline(always)]
    unsafe fn run<P: SimdI8>(self) {
        // SAFETY: as the caller promises.
        unsafe { self.pass.share_by::<P>(self.share) }
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Buffers of a share.
struct Scratch<'a> {
    /// `[tiles][head_dim][16]`, or `[rows][padded]` where scores are dots.
    queries: &'a mut [f32],
    /// `[KEYS][padded]`, where rows of the cache cannot be read as they are.
    keys: &'a mut [f32],
    values: &'a mut [f32],
    /// `[KEYS][16]`.
    scores: &'a mut [f32],
    /// `[rows][padded]`.
    sums: &'a mut [f32],
    /// `[rows]`: the greatest score, and what all of them add up to.
    tops: &'a mut [f32],
    totals: &'a mut [f32],
    /// What sums so far are multiplied by, `[16]`.
    factors: &'a mut [f32],
    /// One query.
    query: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn of(memory: &'a mut Vec<f32>, rows: usize, padded: usize) -> Self {
        let rows = rows.next_multiple_of(LANES);
        let (block, tiles) = (KEYS * padded, rows * padded);
        let sizes = [tiles, block, block, KEYS * LANES, tiles, rows, rows, LANES, padded];
        memory.clear();
        memory.resize(sizes.iter().sum(), 0.0);
        let mut rest = &mut memory[..];
        let [queries, keys, values, scores, sums, tops, totals, factors, query] = sizes.map(|size| {
            let (first, others) = mem::take(&mut rest).split_at_mut(size);
            rest = others;
            first
        });
        tops.fill(f32::MIN);
        Self { queries, keys, values, scores, sums, tops, totals, factors, query }
    }
}

impl Pass<'_> {
    /// Rows of one head of keys and values.
    pub(super) fn rows(&self) -> usize {
        self.new * self.form.group()
    }

    /// Positions that a row sees.
    pub(super) fn visible(&self, row: usize) -> Range<usize> {
        let end = self.past + row / self.form.group() + 1;
        self.form.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Positions that any of `rows` sees.
    pub(super) fn seen(&self, rows: &Range<usize>) -> Range<usize> {
        self.visible(rows.start).start..self.visible(rows.end - 1).end
    }

    /// Numbers that a part takes.
    pub(super) fn part(&self) -> usize {
        self.rows().min(MAX_ROWS) * (self.form.padded() + 2)
    }

    /// Writes keys and values of a token into the cache.
    ///
    /// # Safety
    /// No two calls at once may be for the same token, and none while shares are computed.
    pub(super) unsafe fn append(&self, token: usize) {
        let (form, bytes) = (&self.form, self.format.bytes(self.form.head_dim));
        let mut key = SCRATCH.take();
        key.resize(form.head_dim, 0.0);
        for head in 0..form.kv_heads {
            key.copy_from_slice(self.new_keys.of(token, head, form.head_dim));
            if let Some(rotary) = &self.rotary {
                rotary.turn(self.past + token, &mut key);
            }
            let row = (head * self.capacity + self.past + token) * bytes;
            // SAFETY: the row of a token that no other call is about, as the caller promises.
            self.format.encode(&key, unsafe { self.keys.part(row, bytes) });
            let value = self.new_values.of(token, head, form.head_dim);
            // SAFETY: as above.
            self.format.encode(value, unsafe { self.values.part(row, bytes) });
        }
        SCRATCH.set(key);
    }

    /// Computes a share.
    ///
    /// # Safety
    /// The processor must be of `kind`, all tokens must have been appended, and no two calls at once may be for the same
    /// rows unless they are for different parts.
    pub(super) unsafe fn share(&self, kind: CpuIsa, share: &Share) {
        // SAFETY: as the caller promises.
        unsafe { kind.run(ShareOf { pass: self, share }) }
    }

    #[inline(always)]
    unsafe fn share_by<V: SimdF32>(&self, share: &Share) {
        let padded = self.form.padded();
        let mut memory = SCRATCH.take();
        let mut scratch = Scratch::of(&mut memory, share.rows.len(), padded);
        self.load_queries(share, &mut scratch);
        let mut start = share.keys.start;
        while start < share.keys.end {
            let block = start..(start + KEYS).min(share.keys.end);
            start = block.end;
            // SAFETY: as the caller promises.
            unsafe { self.block::<V>(share, &block, &mut scratch) };
        }
        // SAFETY: as the caller promises.
        unsafe { self.finish(share, &scratch) };
        SCRATCH.set(memory);
    }

    /// Queries, turned and scaled, in the order in which scores are computed.
    #[inline(always)]
    fn load_queries(&self, share: &Share, scratch: &mut Scratch) {
        let Form { head_dim, scale, .. } = self.form;
        let (group, padded) = (self.form.group(), self.form.padded());
        let (queries, query) = (&mut *scratch.queries, &mut scratch.query[..head_dim]);
        for (i, row) in share.rows.clone().enumerate() {
            let (token, head) = (row / group, share.head * group + row % group);
            query.copy_from_slice(self.queries.of(token, head, head_dim));
            if let Some(rotary) = &self.rotary {
                rotary.turn(self.past + token, query);
            }
            query.iter_mut().for_each(|number| *number *= scale);
            if share.rows.len() <= FEW {
                queries[i * padded..][..head_dim].copy_from_slice(query);
            } else if share.rows.len() <= PAIRS {
                for (lanes, pair) in queries.as_chunks_mut::<LANES>().0.iter_mut().zip(query.chunks(2)) {
                    lanes[2 * i..][..pair.len()].copy_from_slice(pair);
                }
            } else {
                let tile = &mut queries[i / LANES * head_dim * LANES..][..head_dim * LANES];
                for (lanes, number) in tile.as_chunks_mut::<LANES>().0.iter_mut().zip(&*query) {
                    lanes[i % LANES] = *number;
                }
            }
        }
    }

    /// Adds what the rows see of the positions in `block`.
    #[inline(always)]
    unsafe fn block<V: SimdF32>(&self, share: &Share, block: &Range<usize>, scratch: &mut Scratch) {
        let form = &self.form;
        // SAFETY: nothing writes to the cache while shares are computed; as the caller promises.
        let (keys, values) = unsafe {
            (
                self.rows_of::<V>(&self.keys, share.head, block, scratch.keys),
                self.rows_of::<V>(&self.values, share.head, block, scratch.values),
            )
        };
        let (rows, padded) = (share.rows.len(), form.padded());
        for first in (0..rows).step_by(LANES) {
            let tile = first..(first + LANES).min(rows);
            let of_pass = share.rows.start + tile.start..share.rows.start + tile.end;
            let seen = self.seen(&of_pass);
            if block.end <= seen.start || block.start >= seen.end {
                continue;
            }
            let count = block.len();
            // SAFETY: `count` rows of keys and values, scores of as many, and queries, sums, tops and totals of a tile;
            // as the caller promises.
            unsafe {
                if rows <= FEW {
                    dots::<V>(scratch.queries, keys, [rows, count, padded], scratch.scores);
                } else if rows <= PAIRS {
                    let queries = &scratch.queries[..form.head_dim.div_ceil(2) * LANES];
                    scores::<V, true>(queries, keys, count, scratch.scores);
                } else {
                    let queries = &scratch.queries[first * form.head_dim..][..form.head_dim * LANES];
                    scores::<V, false>(queries, keys, count, scratch.scores);
                }
                if let Some(cap) = form.cap {
                    soften::<V>(scratch.scores, count, cap);
                }
                let always = self.visible(of_pass.end - 1).start..self.visible(of_pass.start).end;
                if block.start < always.start || block.end > always.end {
                    self.hide::<V>(&of_pass, block, scratch.scores);
                }
                let state = [&mut scratch.tops[first..][..LANES], &mut scratch.totals[first..][..LANES]];
                exponentials::<V>(scratch.scores, count, state, scratch.factors);
                let sums = &mut scratch.sums[first * padded..][..tile.len() * padded];
                accumulate::<V>(sums, padded, scratch.factors, scratch.scores, values, count);
            }
        }
    }

    /// Rows of the cache as numbers, decoded into `room` unless they can be read where they are.
    ///
    /// # Safety
    /// Nothing may write to them, and as of [`SimdF32`].
    #[inline(always)]
    unsafe fn rows_of<'a, V: SimdF32>(
        &'a self,
        cache: &'a Parts<u8>,
        head: usize,
        block: &Range<usize>,
        room: &'a mut [f32],
    ) -> Matrix<'a> {
        let (head_dim, padded) = (self.form.head_dim, self.form.padded());
        let bytes = self.format.bytes(head_dim);
        let start = (head * self.capacity + block.start) * bytes;
        // SAFETY: as the caller promises.
        let rows = unsafe { cache.read(start, block.len() * bytes) };
        // The block after this one: rows are read in order, but not pages.
        for line in (0..rows.len()).step_by(LINE) {
            // SAFETY: nothing is read; as the caller promises.
            unsafe { V::fetch(rows.as_ptr().wrapping_add(rows.len() + line)) };
        }
        if self.format == Format::Float32
            && head_dim == padded
            && let Ok(numbers) = bytemuck::try_cast_slice(rows)
        {
            return Matrix { numbers, stride: padded };
        }
        for (row, numbers) in rows.chunks_exact(bytes).zip(room.chunks_exact_mut(padded)) {
            // SAFETY: as the caller promises.
            unsafe { self.format.decode::<V>(row, head_dim, numbers) };
        }
        Matrix { numbers: room, stride: padded }
    }

    /// Takes scores of positions that a row does not see.
    #[inline(always)]
    unsafe fn hide<V: SimdF32>(&self, rows: &Range<usize>, block: &Range<usize>, scores: &mut [f32]) {
        let (mut first, mut end) = ([0.0; LANES], [0.0; LANES]);
        #[expect(clippy::cast_precision_loss, reason = "no context is longer than 2^24")]
        for (lane, (first, end)) in first.iter_mut().zip(&mut end).enumerate() {
            let visible = self.visible((rows.start + lane).min(rows.end - 1));
            (*first, *end) = (visible.start as f32, visible.end as f32);
        }
        // SAFETY: sixteen numbers each; as the caller promises.
        let (first, end) = unsafe { (V::load(first.as_ptr()), V::load(end.as_ptr())) };
        for (position, scores) in block.clone().zip(scores.as_chunks_mut::<LANES>().0) {
            #[expect(clippy::cast_precision_loss, reason = "as above")]
            let at = position as f32;
            // SAFETY: sixteen scores; as the caller promises.
            unsafe {
                let shown = V::within(at, first, end, V::load(scores.as_ptr()));
                V::store(shown, scores.as_mut_ptr());
            }
        }
    }

    /// Stores the result.
    ///
    /// # Safety
    /// As of [`share`](Self::share).
    unsafe fn finish(&self, share: &Share, scratch: &Scratch) {
        let (head_dim, padded, rows) = (self.form.head_dim, self.form.padded(), share.rows.len());
        if let Some(part) = share.part {
            // SAFETY: only the part of this share, as the caller promises.
            let part = unsafe { self.parts.part(part * self.part(), rows * (padded + 2)) };
            let (sums, rest) = part.split_at_mut(rows * padded);
            let (tops, totals) = rest.split_at_mut(rows);
            sums.copy_from_slice(&scratch.sums[..rows * padded]);
            tops.copy_from_slice(&scratch.tops[..rows]);
            totals.copy_from_slice(&scratch.totals[..rows]);
            return;
        }
        for (i, row) in share.rows.clone().enumerate() {
            // SAFETY: only rows of this share, as the caller promises.
            let output = unsafe { self.output_of(share.head, row) };
            let factor = 1.0 / scratch.totals[i];
            for (output, sum) in output.iter_mut().zip(&scratch.sums[i * padded..][..head_dim]) {
                *output = sum * factor;
            }
        }
    }

    /// Where a row's result goes.
    ///
    /// # Safety
    /// It must not be in use elsewhere.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that rows do not overlap")]
    unsafe fn output_of(&self, head: usize, row: usize) -> &mut [f32] {
        let (group, head_dim) = (self.form.group(), self.form.head_dim);
        let (token, head) = (row / group, head * group + row % group);
        // SAFETY: as the caller promises.
        unsafe { self.output.part((token * self.form.heads + head) * head_dim, head_dim) }
    }

    /// Puts `parts`, which are all that `rows` see, together.
    ///
    /// # Safety
    /// Shares of these must have been computed, and none may be being so.
    pub(super) unsafe fn join(&self, head: usize, rows: &Range<usize>, parts: Range<usize>) {
        let (padded, count) = (self.form.padded(), rows.len());
        // SAFETY: nothing writes to them any more, as the caller promises.
        let part = |part: usize| unsafe { self.parts.read(part * self.part(), count * (padded + 2)) };
        for (i, row) in rows.clone().enumerate() {
            let top_of = |n: usize| part(n)[count * padded + i];
            let top = parts.clone().map(top_of).fold(f32::MIN, f32::max);
            let weight = |n: usize| (top_of(n) - top).exp();
            let total: f32 = parts.clone().map(|n| weight(n) * part(n)[count * (padded + 1) + i]).sum();
            // SAFETY: no share is being computed, as the caller promises.
            let output = unsafe { self.output_of(head, row) };
            output.fill(0.0);
            for n in parts.clone() {
                let factor = weight(n) / total;
                for (output, sum) in output.iter_mut().zip(&part(n)[i * padded..]) {
                    *output += sum * factor;
                }
            }
        }
    }
}
