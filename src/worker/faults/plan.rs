//! Which fault strikes where: read from a line of text, and a pure function of a job's number.

use std::{fmt, num::NonZeroU32, num::NonZeroU64, path::PathBuf, str::FromStr};

use super::{Kind, Point};
use crate::job::JobId;

/// Decode steps among which a random fault chooses, and the first chunk of the prompt besides.
const RANDOM_STEPS: u32 = 7;

/// Which faults strike, proven. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// As it was written, to be handed on.
    spec: String,
    rules: Vec<Rule>,
}

/// One fault at one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What goes wrong.
    pub kind: Kind,
    /// Where.
    pub point: Point,
    /// A file that is made when it strikes, and keeps it from striking again.
    pub once: Option<PathBuf>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.kind, self.point)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// This fault in these jobs, in their first attempt or in each.
    Fixed { fault: Fault, jobs: Jobs, always: bool },
    /// Another fault in every so many jobs.
    Random { seed: u64, every: NonZeroU64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Jobs {
    All,
    One(JobId),
    Every(NonZeroU64),
}

impl Jobs {
    const fn include(self, job: JobId) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one.0 == job.0,
            Self::Every(n) => job.0.is_multiple_of(n.get()),
        }
    }
}

/// Why a text is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No point is named.
    #[error("{rule:?} names no point; write KIND@POINT, as in crash@decode:3, or random:SEED/N")]
    NoPoint {
        /// The rule.
        rule: String,
    },
    /// A kind that there is not.
    #[error("no fault is called {found:?}; there are {}", names())]
    Kind {
        /// What was found.
        found: String,
    },
    /// A value that the kind does not take.
    #[error("{found:?} has no such value; values are exit=CODE, slow=TIMES, leak=BYTES and flood=BYTES")]
    Value {
        /// What was found.
        found: String,
    },
    /// A point that there is not.
    #[error("{found:?} is no point; there are load, warm-up, prefill:K and decode:K, K from 1")]
    Point {
        /// What was found.
        found: String,
    },
    /// An option that there is not.
    #[error("{found:?} is no option; there are job=ID, every=N, always and once=FILE, N from 1")]
    Option {
        /// What was found.
        found: String,
    },
    /// Randomness that is not `random:SEED/N`.
    #[error("{found:?} should be random:SEED/N, both whole numbers and N at least 1")]
    Random {
        /// What was found.
        found: String,
    },
    /// Something of a job at a point where there is none.
    #[error(
        "{rule:?} asks for a job's fault at a point without a job; use prefill:K or decode:K, or leave job=, every=, \
         always and slow out"
    )]
    NoJob {
        /// The rule.
        rule: String,
    },
}

fn names() -> String {
    Kind::SAMPLES.map(Kind::name).join(", ")
}

impl Plan {
    /// Whether there is any fault in it.
    #[must_use]
    pub const fn is_off(&self) -> bool {
        self.rules.is_empty()
    }

    /// The faults of a job with which so many workers have been lost already, in the order of the rules.
    pub fn of_job(&self, job: JobId, lost: u32) -> impl Iterator<Item = Fault> {
        self.rules.iter().filter_map(move |rule| rule.of_job(job, lost))
    }

    /// The faults at a point that belongs to no job.
    pub fn at(&self, point: Point) -> impl Iterator<Item = Fault> {
        self.rules.iter().filter_map(move |rule| match rule {
            Rule::Fixed { fault, .. } if fault.point == point => Some(fault.clone()),
            _ => None,
        })
    }
}

impl Rule {
    fn of_job(&self, job: JobId, lost: u32) -> Option<Fault> {
        match self {
            Self::Fixed { fault, jobs, always } => {
                let strikes = fault.point.is_of_a_job() && jobs.include(job) && (lost == 0 || *always);
                strikes.then(|| fault.clone())
            }
            Self::Random { seed, every } => {
                (lost == 0 && job.0.is_multiple_of(every.get())).then(|| random(*seed, job))
            }
        }
    }
}

/// A kind that an answer survives, and a point, each as likely as any other.
fn random(seed: u64, job: JobId) -> Fault {
    let drawn = mixed(seed ^ mixed(job.0));
    let kinds: Vec<Kind> = Kind::survivable().collect();
    let kind = kinds[usize::try_from(drawn % kinds.len() as u64).unwrap_or(0)];
    let step = u32::try_from((drawn >> 32) % u64::from(RANDOM_STEPS + 1)).unwrap_or(0);
    let point = NonZeroU32::new(step).map_or(Point::Prefill(NonZeroU32::MIN), Point::Decode);
    Fault { kind, point, once: None }
}

/// The finishing steps of SplitMix64: neighbours come out far from each other.
const fn mixed(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.spec)
    }
}

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(spec: &str) -> Result<Self, PlanError> {
        let rules = spec.split(';').map(|rule| rule.trim().parse()).collect::<Result<_, _>>()?;
        Ok(Self { spec: spec.into(), rules })
    }
}

impl FromStr for Rule {
    type Err = PlanError;

    fn from_str(rule: &str) -> Result<Self, PlanError> {
        if let Some(numbers) = rule.strip_prefix("random:") {
            return random_rule(numbers).ok_or_else(|| PlanError::Random { found: rule.into() });
        }
        let no_point = || PlanError::NoPoint { rule: rule.into() };
        let (kind, rest) = rule.split_once('@').ok_or_else(no_point)?;
        let mut words = rest.split(',');
        let (kind, point) = (kind.parse()?, words.next().unwrap_or_default().parse::<Point>()?);
        let (mut once, mut jobs, mut always) = (None, None, false);
        for word in words {
            let wrong = || PlanError::Option { found: word.into() };
            match word.split_once('=') {
                None if word == "always" => always = true,
                Some(("job", id)) => jobs = Some(Jobs::One(JobId(id.parse().map_err(|_| wrong())?))),
                Some(("every", n)) => jobs = Some(Jobs::Every(n.parse().map_err(|_| wrong())?)),
                Some(("once", file)) if !file.is_empty() => once = Some(file.into()),
                _ => return Err(wrong()),
            }
        }
        let needs_a_job = jobs.is_some() || always || matches!(kind, Kind::Slow(_));
        if needs_a_job && !point.is_of_a_job() {
            return Err(PlanError::NoJob { rule: rule.into() });
        }
        Ok(Self::Fixed { fault: Fault { kind, point, once }, jobs: jobs.unwrap_or(Jobs::All), always })
    }
}

fn random_rule(numbers: &str) -> Option<Rule> {
    let (seed, every) = numbers.split_once('/')?;
    Some(Rule::Random { seed: seed.parse().ok()?, every: every.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn plan(spec: &str) -> Plan {
        spec.parse().unwrap()
    }

    fn struck(spec: &str, jobs: std::ops::RangeInclusive<u64>, lost: u32) -> Vec<u64> {
        jobs.filter(|id| plan(spec).of_job(JobId(*id), lost).next().is_some()).collect()
    }

    #[test]
    fn every_kind_and_point_is_read_as_it_is_written() {
        let places =
            ["load", "warm-up", "prefill:2", "decode:31"].map(|point| point.parse::<Point>().unwrap());
        for kind in Kind::SAMPLES {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!(places.map(|point| point.to_string()), ["load", "warm-up", "prefill:2", "decode:31"]);
        assert_eq!(plan("exit=7@decode:1").of_job(JobId(1), 0).next().unwrap().kind, Kind::Exit(7));
    }

    #[test]
    fn a_plan_is_handed_on_as_it_was_written() {
        let spec = "crash@decode:3,every=5; random:7/3";
        assert_eq!(plan(spec).to_string(), spec);
        assert!(!plan(spec).is_off() && Plan::default().is_off());
    }

    #[test]
    fn a_fault_strikes_the_jobs_that_it_is_for() {
        assert_eq!(struck("crash@decode:1", 1..=3, 0), [1, 2, 3]);
        assert_eq!(struck("crash@decode:1,job=2", 1..=3, 0), [2]);
        assert_eq!(struck("crash@prefill:1,every=3", 1..=9, 0), [3, 6, 9]);
        assert_eq!(struck("crash@load", 1..=3, 0), [0; 0]);
    }

    #[test]
    fn a_job_that_has_lost_a_worker_is_spared_unless_the_plan_says_always() {
        assert_eq!(struck("crash@decode:1", 1..=2, 1), [0; 0]);
        assert_eq!(struck("random:1/1", 1..=2, 1), [0; 0]);
        assert_eq!(struck("crash@decode:1,always", 1..=2, 1), [1, 2]);
    }

    #[test]
    fn a_fault_of_no_job_strikes_at_its_point_alone() {
        let plan = plan("exit=4@load,once=/tmp/mark;hang@warm-up");
        let faults: Vec<_> = plan.at(Point::Load).collect();
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].once, Some("/tmp/mark".into()));
        assert_eq!(plan.at(Point::WarmUp).next().unwrap().kind, Kind::Hang);
    }

    #[test]
    fn chance_is_the_same_each_time_and_reaches_every_kind_and_point() {
        let drawn = |seed: u64| (1..=3_000).map(move |id| random(seed, JobId(id)));
        assert!(drawn(7).eq(drawn(7)));
        assert!(drawn(7).ne(drawn(8)));
        assert_eq!(struck("random:7/3", 1..=9, 0), [3, 6, 9]);
        let kinds: BTreeSet<_> = drawn(7).map(|fault| fault.kind.name()).collect();
        let points: BTreeSet<_> = drawn(7).map(|fault| fault.point.to_string()).collect();
        assert_eq!((kinds.len(), points.len()), (Kind::survivable().count(), 8));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_way_out() {
        for (spec, says) in [
            ("", "names no point"),
            ("crash", "write KIND@POINT"),
            ("crahs@load", "\"crahs\"; there are hang, crash"),
            ("hang=3@load", "\"hang=3\" has no such value"),
            ("slow=0@decode:1", "slow=TIMES"),
            ("crash@decode:0", "K from 1"),
            ("crash@decode", "\"decode\" is no point"),
            ("crash@decode:1,every=0", "\"every=0\" is no option"),
            ("crash@decode:1,once=", "once=FILE"),
            ("crash@load,job=3", "a point without a job"),
            ("slow=2@load", "a point without a job"),
            ("random:1/0", "N at least 1"),
            ("crash@load;random:1", "\"random:1\" should be random:SEED/N"),
        ] {
            let error = spec.parse::<Plan>().unwrap_err().to_string();
            assert!(error.contains(says), "{spec:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(spec in "[a-z@:=,;/0-9 -]{0,40}") {
            let _ = spec.parse::<Plan>();
        }
    }
}
