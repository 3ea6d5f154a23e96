//! How passes are split into shares.

use super::pass::{MAX_ROWS, Pass, Share, spans};

/// Numbers multiplied in scores that are worth a thread's being asked.
const WORTH_A_THREAD: usize = 1 << 16;

/// Splits passes into shares, of one thread where there is little to do; how many parts they have. A row has the same bits
/// however it is split.
pub(super) fn plan(passes: &[Pass], threads: usize, shares: &mut Vec<Share>) -> usize {
    shares.clear();
    let work = passes.iter().map(work).fold(0, usize::saturating_add);
    let wanted = if work < threads * WORTH_A_THREAD { 1 } else { threads * SHARES_PER_THREAD };
    let whole: usize = passes.iter().map(|pass| pass.form.kv_heads * groups(pass)).sum();
    let is_split = wanted > whole;
    let mut parts = 0;
    for (number, pass) in passes.iter().enumerate() {
        for (head, group) in
            (0..pass.form.kv_heads).flat_map(|head| (0..groups(pass)).map(move |g| (head, g)))
        {
            let rows = group * MAX_ROWS..((group + 1) * MAX_ROWS).min(pass.rows());
            let seen = pass.seen(&rows);
            if !is_split || spans(&seen).nth(1).is_none() {
                shares.push(Share { pass: number, head, rows, keys: seen, part: None });
                continue;
            }
            for keys in spans(&seen) {
                shares.push(Share { pass: number, head, rows: rows.clone(), keys, part: Some(parts) });
                parts += 1;
            }
        }
    }
    parts
}

/// Groups of rows of a head.
fn groups(pass: &Pass) -> usize {
    pass.rows().div_ceil(MAX_ROWS)
}

/// Numbers multiplied in the scores of a pass.
fn work(pass: &Pass) -> usize {
    let (rows, form) = (pass.rows(), &pass.form);
    let seen = pass.seen(&(0..rows)).len();
    (rows * seen * form.kv_heads).saturating_mul(form.head_dim)
}

/// Shares for each thread, so that one that has been interrupted does not make the others wait.
const SHARES_PER_THREAD: usize = 4;
