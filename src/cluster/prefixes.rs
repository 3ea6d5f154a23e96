//! Hashes of the beginnings of prompts: nodes report those that their prefix caches probably have, and gateways look for them.
//!
//! A chain has a hash for each block of [`BLOCK`] tokens, which depends on all tokens up to there, on the pool and on the salt that
//! separates the caches of clients. So equal hashes mean the same beginning for the same model and client.

use sha2::{Digest, Sha256};

use super::subjects::Pool;
use crate::job::Job;

/// Tokens of a block.
pub(super) const BLOCK: usize = 64;

/// Hashes of one sequence in a report. Those of longer sequences have gaps.
const REPORTED: usize = 64;

/// The hashes of a job's prompt, the longest beginning last; empty if the prefix cache is not for it.
pub(super) fn of_prompt(pool: &Pool, job: &Job) -> Vec<u64> {
    if !job.cache_prompt || job.embedding.is_some() || job.save.is_some() {
        return Vec::new();
    }
    chain(pool, job, &[])
}

/// The hashes of a job's prompt and answer, few enough for a report.
pub(super) fn of_finished(pool: &Pool, job: &Job, answer: &[u32]) -> Vec<u64> {
    if !job.cache_prompt || job.embedding.is_some() || job.save.is_some() {
        return Vec::new();
    }
    thinned(&chain(pool, job, answer))
}

fn chain(pool: &Pool, job: &Job, answer: &[u32]) -> Vec<u64> {
    let tokens: Vec<u8> = job.prompt.iter().chain(answer).flat_map(|token| token.to_le_bytes()).collect();
    let mut hash = Sha256::digest([pool.as_str().as_bytes(), &job.cache_salt.0].concat());
    let mut hashes = Vec::with_capacity(tokens.len() / (4 * BLOCK));
    for block in tokens.chunks_exact(4 * BLOCK) {
        hash = Sha256::new().chain_update(hash).chain_update(block).finalize();
        let (short, _) = hash.split_at(8);
        hashes.push(short.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    }
    hashes
}

/// At most [`REPORTED`] hashes at equal distances. Distances are powers of two, so that a longer sequence with the same beginning
/// keeps some of the same hashes.
fn thinned(chain: &[u64]) -> Vec<u64> {
    let step = chain.len().div_ceil(REPORTED).next_power_of_two();
    chain.iter().skip(step - 1).step_by(step).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{CacheSalt, JobId};

    fn pool() -> Pool {
        Pool::new("m", "01234567")
    }

    fn job(tokens: u32) -> Job {
        Job::new(JobId(1), (0..tokens).collect(), 8)
    }

    #[test]
    fn the_next_turn_of_a_conversation_has_the_hashes_of_the_last_one() {
        let (first, next) = (job(200), job(1000));
        let kept = of_finished(&pool(), &first, &(200..300).collect::<Vec<_>>());
        let wanted = of_prompt(&pool(), &next);
        assert_eq!((kept.len(), wanted.len()), (4, 15), "whole blocks of 300 and 1,000 tokens");
        assert_eq!(kept[..], wanted[..4]);
    }

    #[test]
    fn other_models_clients_and_beginnings_have_other_hashes() {
        let own = of_prompt(&pool(), &job(64));
        let other_client = Job { cache_salt: CacheSalt([1; 32]), ..job(64) };
        let other_start = Job::new(JobId(1), (1..65).collect(), 8);
        assert_ne!(own, of_prompt(&Pool::new("n", "01234567"), &job(64)));
        assert_ne!(own, of_prompt(&pool(), &other_client));
        assert_ne!(own, of_prompt(&pool(), &other_start));
        assert!(of_prompt(&pool(), &Job { cache_prompt: false, ..job(640) }).is_empty());
    }

    #[test]
    fn a_report_of_a_long_sequence_is_short_and_ends_near_its_end() {
        let all = of_prompt(&pool(), &job(100_000));
        let reported = of_finished(&pool(), &job(100_000), &[]);
        assert!((32..=REPORTED).contains(&reported.len()), "{}", reported.len());
        let last = all.iter().position(|hash| Some(hash) == reported.last()).unwrap();
        assert!(all.len() - last <= 64, "{last} of {}", all.len());
        assert!(thinned(&[]).is_empty());
    }
}
