//! Trying how long passes take, and how many threads are fastest.

use std::time::{Duration, Instant};

/// Fewer threads than this are not tried without: two or three cores have never read all that memory gives.
const LEAST: usize = 4;

/// How many times a pass is tried: the fastest counts, as others of the machine only make it slower.
const TIMES: usize = 3;

/// How much faster fewer have to be. What is within it is chance.
const MARGIN: f64 = 0.97;

/// From how much slower on still fewer are not tried.
const HOPELESS: f64 = 1.1;

/// How long it may take until the last number is tried that has not been.
const LONGEST: Duration = Duration::from_millis(300);

/// Of `all` threads, three quarters, a half and a quarter of them, the number with which `pass` is done soonest. `pass` takes
/// a number and says how long it took.
///
/// # Errors
/// What `pass` fails with.
pub(super) fn fastest<E>(all: usize, mut pass: impl FnMut(usize) -> Result<Duration, E>) -> Result<usize, E> {
    if all < LEAST {
        return Ok(all);
    }
    let began = Instant::now();
    let mut best = (all, f64::INFINITY);
    for threads in [all, all * 3 / 4, all / 2, all / 4] {
        if began.elapsed() > LONGEST {
            break;
        }
        let took = least(|| pass(threads))?.as_secs_f64();
        if took > best.1 * HOPELESS {
            break;
        }
        if took < best.1 * MARGIN {
            best = (threads, took);
        }
    }
    Ok(best.0)
}

/// What a pass takes that nothing interrupts. `pass` says how long it took.
///
/// # Errors
/// What `pass` fails with.
pub(super) fn least<E>(mut pass: impl FnMut() -> Result<Duration, E>) -> Result<Duration, E> {
    (0..TIMES).try_fold(Duration::MAX, |least, _| Ok(least.min(pass()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found where so many threads take so many microseconds, and what was tried for it.
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
    fn fewer_are_chosen_where_they_are_faster() {
        assert_eq!(found(16, |threads| 1000 / threads.min(4) as u64), (16, vec![16, 12, 8, 4]));
        assert_eq!(
            found(16, |threads| 1000 / threads.min(8) as u64 + threads as u64),
            (8, vec![16, 12, 8, 4])
        );
        assert_eq!(found(8, |threads| 100 * threads as u64), (2, vec![8, 6, 4, 2]));
        assert_eq!(found(6, |threads| 1000 + threads as u64), (6, vec![6, 4, 3, 1]), "by chance alone");
    }

    #[test]
    fn what_cannot_be_is_not_tried() {
        assert_eq!(found(16, |threads| 10_000 / threads as u64), (16, vec![16, 12]));
        assert_eq!(found(2, |_| unreachable!()), (2, vec![]));
    }

    #[test]
    fn what_takes_long_is_tried_once() {
        let slow = |_| {
            std::thread::sleep(LONGEST / 2);
            Ok::<_, ()>(LONGEST / 2)
        };
        assert_eq!(fastest(16, slow), Ok(16));
    }

    #[test]
    fn what_a_pass_fails_with_is_said() {
        assert_eq!(fastest(4, |_| Err("no")), Err("no"));
    }
}
