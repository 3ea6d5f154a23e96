//! Measures how many threads are fastest.

use std::time::{Duration, Instant};

/// With fewer cores all are used: two or three cores never saturate the memory.
const MIN_THREADS: usize = 4;

/// Measurements per thread count. The fastest one counts, because other processes can only slow a pass down.
const REPEATS: usize = 3;

/// A lower thread count must be faster by this factor; smaller differences are noise.
const MARGIN: f64 = 0.97;

/// From this factor on, even lower thread counts are not tried.
const GIVE_UP: f64 = 1.1;

/// No new thread count is tried after this time.
const TIME_LIMIT: Duration = Duration::from_millis(300);

/// The fastest of `all` threads, three quarters, half and a quarter of them. `pass` runs a pass with this many threads and returns
/// its time.
///
/// # Errors
/// Those of `pass`.
pub(super) fn fastest<E>(all: usize, mut pass: impl FnMut(usize) -> Result<Duration, E>) -> Result<usize, E> {
    if all < MIN_THREADS {
        return Ok(all);
    }
    let began = Instant::now();
    let mut best = (all, f64::INFINITY);
    for threads in [all, all * 3 / 4, all / 2, all / 4] {
        if began.elapsed() > TIME_LIMIT {
            break;
        }
        let took = shortest(|| pass(threads))?.as_secs_f64();
        if took > best.1 * GIVE_UP {
            break;
        }
        if took < best.1 * MARGIN {
            best = (threads, took);
        }
    }
    Ok(best.0)
}

/// The shortest time of a few runs of `pass`, which returns its own time.
///
/// # Errors
/// Those of `pass`.
pub(super) fn shortest<E>(mut pass: impl FnMut() -> Result<Duration, E>) -> Result<Duration, E> {
    (0..REPEATS).try_fold(Duration::MAX, |min, _| Ok(min.min(pass()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result if `threads` threads take `took(threads)` microseconds, and the thread counts that were tried.
    fn found(all: usize, took: impl Fn(usize) -> u64) -> (usize, Vec<usize>) {
        let mut tried = Vec::new();
        let fastest = fastest::<()>(all, |threads| {
            tried.push(threads);
            Ok(Duration::from_micros(took(threads)))
        });
        tried.dedup();
        (fastest.unwrap(), tried)
    }

    #[test]
    fn fewer_threads_are_chosen_if_they_are_faster() {
        assert_eq!(found(16, |threads| 1000 / threads.min(4) as u64), (16, vec![16, 12, 8, 4]));
        assert_eq!(
            found(16, |threads| 1000 / threads.min(8) as u64 + threads as u64),
            (8, vec![16, 12, 8, 4])
        );
        assert_eq!(found(8, |threads| 100 * threads as u64), (2, vec![8, 6, 4, 2]));
        assert_eq!(
            found(6, |threads| 1000 + threads as u64),
            (6, vec![6, 4, 3, 1]),
            "the difference is noise"
        );
    }

    #[test]
    fn hopeless_thread_counts_are_not_tried() {
        assert_eq!(found(16, |threads| 10_000 / threads as u64), (16, vec![16, 12]));
        assert_eq!(found(2, |_| unreachable!()), (2, vec![]));
    }

    #[test]
    fn slow_passes_are_measured_once() {
        let slow = |_| {
            std::thread::sleep(TIME_LIMIT / 2);
            Ok::<_, ()>(TIME_LIMIT / 2)
        };
        assert_eq!(fastest(16, slow), Ok(16));
    }

    #[test]
    fn errors_of_a_pass_are_returned() {
        assert_eq!(fastest(4, |_| Err("no")), Err("no"));
    }
}
