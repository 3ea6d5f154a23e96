//! How the cache of a timeline grows.
//!
//! In a memory pool, the cache has room for the current job only and is freed when the job ends. It starts with the size of the
//! prompt, which is known, and grows with the answer, whose length is not. Sizes are rounded up to one of four steps between two
//! powers of two, and to multiples of [`MIN_STEP`] positions.
//!
//! So at most a quarter of it, or one small step, is unused. Each step grows it by a seventh or more, so the copies on the way
//! to `n` positions are less than `7 n` positions, compared to `n² / 2` that the decode steps read. Steps of a constant size
//! would copy about `n²`, and doubling would leave half unused. Each step also binds the inputs again, hence the minimum of
//! [`MIN_STEP`], and captures CUDA graphs again, hence [`MIN_STEP_CAPTURED`]. The cache consists of a few blocks that grow
//! one after the other, so growing needs only the new cache and one block of the old one.
//!
//! Host memory outside of a pool is mapped, and pages that are never written cost nothing. A smaller cache would save nothing, so
//! the first step is the whole context, on the same code path.

/// Fewest positions by which a cache in a pool grows: a fraction of a megabyte in most models.
pub(super) const MIN_STEP: usize = 64;

/// The same with captured steps, because each larger cache has to be captured again.
pub(super) const MIN_STEP_CAPTURED: usize = 256;

/// The cache size for `positions`: a multiple of the step size, which is at least `min`, and at most `max`.
pub(super) fn step(positions: usize, max: usize, min: usize) -> usize {
    let step = (positions.next_power_of_two() / 8).max(min);
    positions.next_multiple_of(step).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_sizes_have_room_and_leave_at_most_a_quarter_unused() {
        assert_eq!(
            [1, 64, 65, 512, 513, 1024, 1025].map(|n| step(n, 4096, MIN_STEP)),
            [64, 64, 128, 512, 640, 1024, 1280]
        );
        assert_eq!(
            [1, 100, 101].map(|n| step(n, 101, MIN_STEP)),
            [64, 101, 101],
            "never more than there may be"
        );
        let mut moved = 0;
        for n in 1..100_000 {
            let (room, before) = (step(n, usize::MAX, MIN_STEP), step(n - 1, usize::MAX, MIN_STEP));
            assert!(room >= n && (room - n < MIN_STEP || (room - n) * 4 <= n), "{n}: {room}");
            moved += if room > before { n - 1 } else { 0 };
            assert!(moved < 7 * n, "{n}: {moved} were copied");
        }
    }
}
