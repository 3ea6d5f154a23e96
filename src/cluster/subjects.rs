//! The subjects of messages, and the names of pools.

use rand::distr::{Alphanumeric, SampleString};

use super::messages::VERSION;
use crate::job::Priority;

/// Characters of a pool's name that come from the model's name. A stream's consumers have names of limited length.
const MAX_POOL_NAME: usize = 48;

/// The class of a ticket, in the order in which nodes take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Jobs that have lost their node.
    Resumed,
    /// A user is waiting.
    Interactive,
    /// Throughput matters.
    Batch,
}

impl Class {
    pub(super) const ALL: [Self; 3] = [Self::Resumed, Self::Interactive, Self::Batch];

    const fn token(self) -> &'static str {
        match self {
            Self::Resumed => "r",
            Self::Interactive => "i",
            Self::Batch => "b",
        }
    }
}

impl From<Priority> for Class {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Interactive => Self::Interactive,
            Priority::Batch => Self::Batch,
        }
    }
}

/// The nodes that can run a job: those with the same export of the same model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pool(String);

impl Pool {
    /// The pool of a model. `digest` is the SHA-256 of its manifest, in hexadecimal digits, so that two exports of a model never
    /// mix.
    #[must_use]
    pub fn new(model: &str, digest: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let name: String = model.chars().map(plain).take(MAX_POOL_NAME).collect();
        let digest: String = digest.chars().take(8).collect();
        Self(format!("{name}-{digest}"))
    }

    /// Its name in subjects.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A name for a gateway or node that no other process has: the name of the host, and random characters.
#[must_use]
pub fn random_name(host: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let host: String = host.chars().map(plain).take(40).collect();
    format!("{}-{}", if host.is_empty() { "eka" } else { &host }, random(6))
}

/// Random lower-case letters and digits.
pub(super) fn random(length: usize) -> String {
    Alphanumeric.sample_string(&mut rand::rng(), length).to_ascii_lowercase()
}

/// The subjects of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Subjects {
    prefix: String,
}

impl Subjects {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Name of the stream, which may have neither dots nor spaces.
    pub(super) fn stream(&self) -> String {
        self.stream_of(VERSION)
    }

    /// Each version has its own stream: a stream has one list of subjects, and gateways of two versions would take it from each
    /// other.
    fn stream_of(&self, version: u32) -> String {
        let name = self.prefix.to_ascii_uppercase();
        if version == 1 { name } else { format!("{name}_{version}") }
    }

    pub(super) fn all_jobs(&self) -> String {
        format!("{}.{VERSION}.job.>", self.prefix)
    }

    pub(super) fn job(&self, pool: &Pool, class: Class) -> String {
        format!("{}.{VERSION}.job.{}.{}", self.prefix, pool.0, class.token())
    }

    /// Name of the durable consumer of a class.
    pub(super) fn consumer(pool: &Pool, class: Class) -> String {
        format!("{}_{}", pool.0, class.token())
    }

    /// A subject of a gateway: `claim`, `ev` or `beat`.
    pub(super) fn gateway(&self, gateway: &str, what: &str) -> String {
        format!("{}.{VERSION}.gw.{gateway}.{what}", self.prefix)
    }

    /// The commands to a node.
    pub(super) fn control(&self, node: &str) -> String {
        format!("{}.{VERSION}.node.{node}.ctl", self.prefix)
    }

    /// The reports of all nodes.
    pub(super) fn state(&self) -> String {
        format!("{}.{VERSION}.state", self.prefix)
    }

    /// The reports of nodes of all versions, to name those that cannot be used.
    pub(super) fn state_of_any_version(&self) -> String {
        format!("{}.*.state", self.prefix)
    }

    /// The version in a subject of this cluster.
    pub(super) fn version<'a>(&self, subject: &'a str) -> Option<&'a str> {
        subject.strip_prefix(&self.prefix)?.strip_prefix('.')?.split('.').next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_one_part_of_a_subject_and_differ_by_export() {
        let pool = Pool::new("Qwen 2.5>*é", "0123456789abcdef");
        assert_eq!(pool.as_str(), "Qwen_2_5___-01234567");
        assert_ne!(Pool::new("m", "0123456789"), Pool::new("m", "1123456789"));
        assert!(Pool::new(&"x".repeat(500), "0123456789").as_str().len() < 64);
    }

    #[test]
    fn names_of_two_processes_of_a_host_differ() {
        let [one, other] = [(); 2].map(|()| random_name("my host.local"));
        assert_ne!(one, other);
        assert!(one.starts_with("my_host_local-"), "{one}");
    }

    #[test]
    fn gateways_of_two_versions_have_two_streams() {
        let subjects = Subjects::new("eka");
        assert_eq!((subjects.stream_of(1).as_str(), subjects.stream_of(2).as_str()), ("EKA", "EKA_2"));
    }

    #[test]
    fn the_version_of_a_subject_is_found() {
        let subjects = Subjects::new("eka");
        assert_eq!(subjects.version("eka.7.state"), Some("7"));
        assert_eq!(subjects.version(&subjects.state()), Some(VERSION.to_string().as_str()));
        assert_eq!(subjects.version("other.1.state"), None);
    }
}
