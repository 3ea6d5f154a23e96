//! How a pass is split into shares.

use super::pass::{MAX_ROWS, Pass, Share, spans};

/// Numbers multiplied in scores that are worth a thread's being asked.
const WORTH_A_THREAD: usize = 1 << 16;

/// Splits a pass into shares, of one thread where there is little to do; how many parts they have. A row has the same bits
/// however it is split.
pub(super) fn plan(pass: &Pass, threads: usize, shares: &mut Vec<Share>) -> usize {
    shares.clear();
    let (rows, form) = (pass.rows(), &pass.form);
    let groups = rows.div_ceil(MAX_ROWS);
    let seen = pass.seen(&(0..rows)).len();
    let work = (rows * seen * form.kv_heads).saturating_mul(form.head_dim);
    let wanted = if work < threads * WORTH_A_THREAD { 1 } else { threads * SHARES_PER_THREAD };
    let is_split = wanted > form.kv_heads * groups;
    let mut parts = 0;
    for head in 0..form.kv_heads {
        for group in 0..groups {
            let rows = group * MAX_ROWS..((group + 1) * MAX_ROWS).min(rows);
            let seen = pass.seen(&rows);
            if !is_split || spans(&seen).nth(1).is_none() {
                shares.push(Share { head, rows, keys: seen, part: None });
                continue;
            }
            for keys in spans(&seen) {
                shares.push(Share { head, rows: rows.clone(), keys, part: Some(parts) });
                parts += 1;
            }
        }
    }
    parts
}

/// Shares for each thread, so that one that has been interrupted does not make the others wait.
const SHARES_PER_THREAD: usize = 4;
