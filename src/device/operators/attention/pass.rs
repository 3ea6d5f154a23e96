//! Attention of a few rows of queries over a range of positions, in one pass over keys and values.
//!
//! A row is one query head of one token; rows that share a head of keys and values are computed together, sixteen side by
//! side in a tile, so that keys and values are read once for all of them. Over blocks of [`KEYS`] positions:
//!
//! ```text
//! scores[position][row]  = keys · queries      four rows a register, each with four lanes
//! scores[position][row]  = e^(scores - most)   the greatest so far; earlier sums are scaled to it
//! sums[row][..]         += scores · values     a few rows by a few registers of values
//! ```
//!
//! # The same bits for a row, whatever it is computed beside
//! Blocks of [`KEYS`] and spans of [`SPAN`] positions are counted from position 0. Each span is summed up by itself, and spans
//! are added up in their order, so it does not matter which threads compute them. A score is summed up in the same order for
//! one row and for sixty-four, and a hidden position weighs exactly zero.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "vector instructions, all under one condition: that the processor has them"
)]

use std::{cell::Cell, mem, ops::Range};

use super::{
    super::{
        cpu_isa::{CpuIsa, Task},
        parts::Parts,
        simd_f32::{LANES, SimdF32},
        simd_i8::SimdI8,
    },
    format::Format,
    sequences::{CacheSegment, contiguous},
    steps::{FOUR, Matrix, State, Sums, accumulate, exponentials, scores, scores_of_one, soften},
};

/// Positions whose scores are computed before their values are read: few enough that all of it stays in the first cache.
pub(super) const KEYS: usize = 32;

/// Bytes that a processor reads at once.
const LINE: usize = 64;

/// Tiles of rows that a block of keys and values is read for.
const TILES: usize = 4;

/// Most rows of one share.
pub(super) const MAX_ROWS: usize = TILES * LANES;

/// Positions that are summed up by themselves. Threads share spans of a long context, and adding spans up costs each row as
/// much as one or two positions.
pub(super) const SPAN: usize = 16 * KEYS;

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

/// What is added to the scores, `[heads, new, total]`, or the same for all heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bias<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) is_shared: bool,
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

/// One pass of a node over a sequence: the keys and values of some tokens appended to the cache, and what their queries see
/// there.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) form: Form,
    pub(super) format: Format,
    /// Positions in the cache before.
    pub(super) past: usize,
    /// Tokens of this sequence, and those of other sequences before them.
    pub(super) new: usize,
    pub(super) before: usize,
    /// Where the cache has the positions of this sequence.
    pub(super) segments: &'a [CacheSegment],
    /// Positions that the cache has room for.
    pub(super) capacity: usize,
    pub(super) queries: Heads<'a>,
    pub(super) new_keys: Heads<'a>,
    pub(super) new_values: Heads<'a>,
    pub(super) rotary: Option<Rotary<'a>>,
    pub(super) bias: Option<Bias<'a>>,
    /// Of each query head, the score of a position without a value that every token sees too.
    pub(super) sinks: Option<&'a [f32]>,
    /// `[kv_heads, capacity]` rows.
    pub(super) keys: Parts<'a, u8>,
    /// As `keys`.
    pub(super) values: Parts<'a, u8>,
    /// `[tokens, heads, head_dim]`.
    pub(super) output: Parts<'a, f32>,
    /// Of each share that does not see all that its rows see, `part_stride` numbers, at least [`Pass::part`].
    pub(super) parts: Parts<'a, f32>,
    pub(super) part_stride: usize,
}

/// A part of a pass that one thread computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Its pass, by number: passes of several sequences are computed together.
    pub(super) pass: usize,
    /// Head of keys and values.
    pub(super) head: usize,
    /// Of the rows of this head, token by token.
    pub(super) rows: Range<usize>,
    /// Positions: all that its rows see, or those of one span.
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

/// Rows whose parts are put together.
struct Joined<'a> {
    pass: &'a Pass<'a>,
    head: usize,
    rows: Range<usize>,
    parts: Range<usize>,
}

impl Task for Joined<'_> {
    #[inline(always)]
    unsafe fn run<P: SimdI8>(self) {
        // SAFETY: as the caller promises.
        unsafe { self.pass.join_by::<P>(self.head, &self.rows, self.parts) }
    }
}

/// Buffers of a share.
struct Scratch<'a> {
    /// `[tiles][dim / 4][registers][16]`.
    queries: &'a mut [f32],
    /// `[KEYS][padded]`, where rows of the cache cannot be read as they are.
    keys: &'a mut [f32],
    values: &'a mut [f32],
    /// `[KEYS][16]`.
    scores: &'a mut [f32],
    /// Over the span that is being read.
    span: Sums<'a>,
    /// Over the spans before.
    all: Sums<'a>,
    /// What sums so far are multiplied by, `[16]`.
    factors: &'a mut [f32],
    /// One query.
    query: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn of(memory: &'a mut Vec<f32>, rows: usize, padded: usize) -> Self {
        let rows = rows.next_multiple_of(LANES);
        let (block, tiles) = (KEYS * padded, rows * padded);
        let sizes = [tiles, block, block, KEYS * LANES, tiles, rows, rows, tiles, rows, rows, LANES, padded];
        memory.clear();
        memory.resize(sizes.iter().sum(), 0.0);
        let mut rest = &mut memory[..];
        let [
            queries,
            keys,
            values,
            scores,
            span_sums,
            span_tops,
            span_totals,
            all_sums,
            all_tops,
            all_totals,
            factors,
            query,
        ] = sizes.map(|size| {
            let (first, others) = mem::take(&mut rest).split_at_mut(size);
            rest = others;
            first
        });
        let span = Sums { sums: span_sums, tops: span_tops, totals: span_totals };
        let mut all = Sums { sums: all_sums, tops: all_tops, totals: all_totals };
        all.clear();
        Self { queries, keys, values, scores, span, all, factors, query }
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

    /// Numbers that a part takes: sums, and the greatest score and the total of each row, in whole tiles.
    pub(super) fn part(&self) -> usize {
        let rows = self.rows().min(MAX_ROWS);
        rows * self.form.padded() + 2 * rows.next_multiple_of(LANES)
    }

    /// Writes keys and values of a token into the cache.
    ///
    /// # Safety
    /// No two calls at once may be for the same token, and none while shares are computed.
    pub(super) unsafe fn append(&self, token: usize) {
        let (form, bytes) = (&self.form, self.format.bytes(self.form.head_dim));
        let mut key = SCRATCH.take();
        key.resize(form.head_dim, 0.0);
        let position = self.past + token;
        let row = contiguous(self.segments, &(position..position + 1)).next().map_or(0, |rows| rows.start);
        for head in 0..form.kv_heads {
            key.copy_from_slice(self.new_keys.of(self.before + token, head, form.head_dim));
            if let Some(rotary) = &self.rotary {
                rotary.turn(position, &mut key);
            }
            let row = (head * self.capacity + row) * bytes;
            // SAFETY: the row of a token that no other call is about, as the caller promises.
            self.format.encode(&key, unsafe { self.keys.part(row, bytes) });
            let value = self.new_values.of(self.before + token, head, form.head_dim);
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
        for span in spans(&share.keys) {
            scratch.span.clear();
            let first = span.start / KEYS * KEYS;
            for start in (first..span.end).step_by(KEYS) {
                let block = start..(start + KEYS).min(span.end);
                // SAFETY: as the caller promises.
                unsafe { self.block::<V>(share, &block, &mut scratch) };
            }
            if let Some(part) = share.part {
                // SAFETY: only the part of this share, as the caller promises.
                unsafe { self.keep(part, &scratch.span, share.rows.len()) };
            } else {
                let Sums { sums, tops, totals } = &scratch.span;
                // SAFETY: as the caller promises.
                unsafe { scratch.all.add::<V>([sums, tops, totals], share.rows.len(), padded) };
            }
        }
        if share.part.is_none() {
            // SAFETY: only rows of this share, as the caller promises.
            unsafe { self.finish(share.head, &share.rows, &scratch.all) };
        }
        SCRATCH.set(memory);
    }

    /// Queries, turned and scaled, in the order in which scores are computed.
    #[inline(always)]
    fn load_queries(&self, share: &Share, scratch: &mut Scratch) {
        let Form { head_dim, scale, .. } = self.form;
        let (group, padded) = (self.form.group(), self.form.padded());
        let (queries, query) = (&mut *scratch.queries, &mut scratch.query[..head_dim]);
        let registers = registers(share.rows.len());
        for (i, row) in share.rows.clone().enumerate() {
            let (token, head) = (row / group, share.head * group + row % group);
            query.copy_from_slice(self.queries.of(self.before + token, head, head_dim));
            if let Some(rotary) = &self.rotary {
                rotary.turn(self.past + token, query);
            }
            query.iter_mut().for_each(|number| *number *= scale);
            let tile = &mut queries[i / LANES * padded * LANES..][..padded * LANES];
            let (register, quarter) = (i % LANES % registers, i % LANES / registers);
            for (step, four) in query.chunks(FOUR).enumerate() {
                let at = (step * registers + register) * LANES + quarter * FOUR;
                tile[at..][..four.len()].copy_from_slice(four);
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
                let registers = registers(rows);
                let length = form.head_dim.div_ceil(FOUR) * registers * LANES;
                let queries = &scratch.queries[first * padded..][..length];
                match registers {
                    _ if rows == 1 => scores_of_one::<V>(queries, keys, count, scratch.scores),
                    1 => scores::<V, 1>(queries, keys, count, scratch.scores),
                    2 => scores::<V, 2>(queries, keys, count, scratch.scores),
                    _ => scores::<V, 4>(queries, keys, count, scratch.scores),
                }
                if let Some(cap) = form.cap {
                    soften::<V>(scratch.scores, count, cap);
                }
                if let Some(bias) = &self.bias {
                    self.add_bias(bias, share.head, (&of_pass, block), scratch.scores);
                }
                let always = self.visible(of_pass.end - 1).start..self.visible(of_pass.start).end;
                if block.start < always.start || block.end > always.end {
                    self.hide::<V>(&of_pass, block, scratch.scores);
                }
                let State { sums, tops, totals } = scratch.span.tile(first, tile.len(), padded);
                exponentials::<V>(scratch.scores, count, [tops, totals], scratch.factors);
                accumulate::<V>(sums, padded, scratch.factors, scratch.scores, values, count);
            }
        }
    }

    /// Adds `bias` to the scores of `rows` at the positions of a block.
    fn add_bias(
        &self,
        bias: &Bias,
        head: usize,
        (rows, block): (&Range<usize>, &Range<usize>),
        scores: &mut [f32],
    ) {
        let (group, total) = (self.form.group(), self.past + self.new);
        for (lane, row) in rows.clone().enumerate() {
            let (token, head) = (row / group, head * group + row % group);
            let head = if bias.is_shared { 0 } else { head };
            let numbers = &bias.numbers[(head * self.new + token) * total..][block.clone()];
            for (scores, number) in scores.as_chunks_mut::<LANES>().0.iter_mut().zip(numbers) {
                scores[lane] += number;
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
        let mut decoded = 0;
        for part in contiguous(self.segments, block) {
            let start = (head * self.capacity + part.start) * bytes;
            // SAFETY: as the caller promises.
            let rows = unsafe { cache.read(start, part.len() * bytes) };
            // The rows after these: rows are read in order, but not pages.
            for line in (0..rows.len()).step_by(LINE) {
                // SAFETY: nothing is read; as the caller promises.
                unsafe { V::fetch(rows.as_ptr().wrapping_add(rows.len() + line)) };
            }
            if self.format == Format::Float32
                && head_dim == padded
                && part.len() == block.len()
                && let Ok(numbers) = bytemuck::try_cast_slice(rows)
            {
                return Matrix { numbers, stride: padded };
            }
            let room = room[decoded * padded..].chunks_exact_mut(padded);
            for (row, numbers) in rows.chunks_exact(bytes).zip(room) {
                // SAFETY: as the caller promises.
                unsafe { self.format.decode::<V>(row, head_dim, numbers) };
            }
            decoded += part.len();
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

    /// Keeps the sums of `rows` rows over one span as a part.
    ///
    /// # Safety
    /// It must not be in use elsewhere.
    unsafe fn keep(&self, part: usize, span: &Sums, rows: usize) {
        // SAFETY: as the caller promises.
        let part = unsafe { self.parts.part(part * self.part_stride, self.part()) };
        let (sums, rest) = part.split_at_mut(rows * self.form.padded());
        sums.copy_from_slice(&span.sums[..sums.len()]);
        let (tops, totals) = rest.split_at_mut(span.tops.len());
        tops.copy_from_slice(span.tops);
        totals[..span.totals.len()].copy_from_slice(span.totals);
    }

    /// Stores the result of `rows`.
    ///
    /// # Safety
    /// They must not be in use elsewhere.
    unsafe fn finish(&self, head: usize, rows: &Range<usize>, all: &Sums) {
        let (head_dim, padded) = (self.form.head_dim, self.form.padded());
        for (i, row) in rows.clone().enumerate() {
            // SAFETY: as the caller promises.
            let output = unsafe { self.output_of(head, row) };
            let factor = self
                .share_of(head * self.form.group() + row % self.form.group(), [all.tops[i], all.totals[i]]);
            for (output, sum) in output.iter_mut().zip(&all.sums[i * padded..][..head_dim]) {
                *output = sum * factor;
            }
        }
    }

    /// What the sum of a row of query head `head` is multiplied by, whose exponentials, less its greatest score `top`, add up to
    /// `total`.
    fn share_of(&self, head: usize, [top, total]: [f32; 2]) -> f32 {
        let Some(sink) = self.sinks.and_then(|sinks| sinks.get(head)) else { return 1.0 / total };
        let most = top.max(*sink);
        let scaled = (top - most).exp();
        scaled / (total * scaled + (sink - most).exp())
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
        unsafe { self.output.part(((self.before + token) * self.form.heads + head) * head_dim, head_dim) }
    }

    /// Puts `parts`, which are all that `rows` see, together.
    ///
    /// # Safety
    /// The processor must be of `kind`. Shares of these rows must have been computed, and none may be being so.
    pub(super) unsafe fn join(&self, kind: CpuIsa, head: usize, rows: Range<usize>, parts: Range<usize>) {
        // SAFETY: as the caller promises.
        unsafe { kind.run(Joined { pass: self, head, rows, parts }) }
    }

    #[inline(always)]
    unsafe fn join_by<V: SimdF32>(&self, head: usize, rows: &Range<usize>, parts: Range<usize>) {
        let padded = self.form.padded();
        let mut memory = SCRATCH.take();
        let mut scratch = Scratch::of(&mut memory, rows.len(), padded);
        for part in parts {
            // SAFETY: nothing writes to it any more, as the caller promises.
            let part = unsafe { self.parts.read(part * self.part_stride, self.part()) };
            let (sums, rest) = part.split_at(rows.len() * padded);
            let (tops, totals) = rest.split_at(rows.len().next_multiple_of(LANES));
            // SAFETY: as the caller promises.
            unsafe { scratch.all.add::<V>([sums, tops, totals], rows.len(), padded) };
        }
        // SAFETY: no share of these rows is being computed, as the caller promises.
        unsafe { self.finish(head, rows, &scratch.all) };
        SCRATCH.set(memory);
    }
}

/// Registers for the rows of a tile, four rows each.
fn registers(rows: usize) -> usize {
    match rows {
        0..=4 => 1,
        5..=8 => 2,
        _ => 4,
    }
}

/// The parts of `keys` in each span.
pub(super) fn spans(keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let keys = keys.clone();
    (keys.start / SPAN..keys.end.div_ceil(SPAN))
        .map(move |span| keys.start.max(span * SPAN)..keys.end.min((span + 1) * SPAN))
}
