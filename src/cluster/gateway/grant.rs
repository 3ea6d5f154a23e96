//! A grant in parts: messages have a limit, and prompts do not.

use serde_bytes::ByteBuf;
use tokio::time::Instant;

use crate::{
    cluster::messages::{ClaimAnswer, Grant, RunKey, encode},
    executor::AcceptedGroup,
    job::{GroupedJob, Job, Priority},
};

/// An encoded grant, kept until the node has all of it.
#[derive(Debug)]
pub(super) struct EncodedGrant {
    bytes: Vec<u8>,
    max_part: usize,
}

impl EncodedGrant {
    /// The jobs as they are now, with their answers so far.
    pub(super) fn new<'a>(
        group: &AcceptedGroup,
        jobs: impl Iterator<Item = &'a GroupedJob>,
        max_part: usize,
    ) -> Self {
        let until = group.accepted.checked_add(group.terms.deadlines.total);
        let remaining = until.map_or(group.terms.deadlines.total, |until| until - Instant::now());
        let grant = Grant {
            jobs: jobs.map(|grouped| portable(&grouped.job)).collect(),
            remaining_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
            is_batch: group.terms.priority == Priority::Batch,
            is_limited: group.terms.is_limited,
        };
        Self { bytes: encode(&grant), max_part }
    }

    /// The answer to a claim.
    pub(super) fn beginning(&self, run: RunKey) -> ClaimAnswer {
        ClaimAnswer::Grant { run, length: self.bytes.len(), part: self.slice(0) }
    }

    /// What follows the first `offset` bytes.
    pub(super) fn part(&self, offset: usize) -> ClaimAnswer {
        ClaimAnswer::Part(self.slice(offset))
    }

    fn slice(&self, from: usize) -> ByteBuf {
        let rest = self.bytes.get(from..).unwrap_or_default();
        ByteBuf::from(rest[..rest.len().min(self.max_part)].to_vec())
    }
}

/// A job as it may travel: directories of this machine mean nothing on another one.
fn portable(job: &Job) -> Job {
    Job { save: None, ..job.clone() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        cluster::messages::decode,
        executor::{Deadlines, Terms},
        job::{JobId, ModelId, SaveAs},
        units::Tokens,
    };

    #[test]
    fn a_long_prompt_arrives_in_parts_and_directories_do_not_travel() {
        let day = Duration::from_secs(86_400);
        let group = AcceptedGroup {
            group: JobId(1),
            model: ModelId::default(),
            terms: Terms::from(Deadlines { queue: day, total: day }),
            prompt: Tokens(0),
            accepted: Instant::now(),
            trace: None,
        };
        let save = Some(SaveAs { name: "n".into(), dir: "/home/someone".into() });
        let job = Job { save, ..Job::new(JobId(1), (0..50_000).collect(), 9) };
        let grouped = GroupedJob { job: job.clone(), cancel: CancellationToken::new() };
        let grant = EncodedGrant::new(&group, std::iter::once(&grouped), 10_000);
        let run = RunKey { job: 1, epoch: 1, fence: 1 };
        let ClaimAnswer::Grant { length, part, .. } = grant.beginning(run) else { panic!("a grant") };
        let mut bytes = part.into_vec();
        while bytes.len() < length {
            let ClaimAnswer::Part(part) = grant.part(bytes.len()) else { panic!("a part") };
            assert!(!part.is_empty() && part.len() <= 10_000);
            bytes.extend(part.into_vec());
        }
        assert_eq!(decode::<Grant>(&bytes).unwrap().jobs, [Job { save: None, ..job }]);
    }
}
