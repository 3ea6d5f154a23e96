//! A fault plan: read from text, applied by job number. Pure.

use std::{fmt, num::NonZeroU32, num::NonZeroU64, path::PathBuf, str::FromStr};

use super::kind::{FaultKind, FaultKindError, FaultPoint, FaultPointError};
use crate::job::JobId;

/// A random fault strikes at the first prompt chunk or at one of this many decode steps.
const RANDOM_STEPS: u32 = 7;

/// A valid fault plan. The default has no faults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// Its text, which is passed to the workers.
    spec: String,
    rules: Vec<Rule>,
}

/// One fault at one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// Where.
    pub point: FaultPoint,
    /// Created when the fault strikes; while the file exists, the fault does not strike again.
    pub once: Option<PathBuf>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.kind, self.point)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// One fault in these jobs, at their first attempt or (`always`) at each.
    Fixed { fault: Fault, jobs: Jobs, always: bool },
    /// A random fault in every `every`th job.
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

/// Why a text is not a fault plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultPlanError {
    /// A rule without a point.
    #[error("{rule:?} has no point; write KIND@POINT, as in crash@decode:3, or random:SEED/N")]
    NoPoint {
        /// The rule.
        rule: String,
    },
    /// An unknown kind, or an invalid value.
    #[error(transparent)]
    Kind(#[from] FaultKindError),
    /// An unknown point.
    #[error(transparent)]
    Point(#[from] FaultPointError),
    /// An unknown option.
    #[error("unknown option {found:?}; expected job=ID, every=N, always or once=FILE, N from 1")]
    Option {
        /// The option.
        found: String,
    },
    /// An invalid random rule.
    #[error("invalid rule {found:?}; expected random:SEED/N, two whole numbers, N at least 1")]
    Random {
        /// The rule.
        found: String,
    },
    /// A job option at a point that belongs to no job.
    #[error(
        "{rule:?} has a job option at a point without a job; use prefill:K or decode:K, or leave job=, every=, always and \
         slow out"
    )]
    NoJob {
        /// The rule.
        rule: String,
    },
}

impl FaultPlan {
    /// Whether it has no faults.
    #[must_use]
    pub const fn is_off(&self) -> bool {
        self.rules.is_empty()
    }

    /// Faults of a job that has lost `lost` workers so far, in the order of the rules.
    pub fn of_job(&self, job: JobId, lost: u32) -> impl Iterator<Item = Fault> {
        self.rules.iter().filter_map(move |rule| rule.of_job(job, lost))
    }

    /// Faults at a point that belongs to no job.
    pub fn at(&self, point: FaultPoint) -> impl Iterator<Item = Fault> {
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

/// A survivable kind and a point, uniformly distributed.
fn random(seed: u64, job: JobId) -> Fault {
    let drawn = mixed(seed ^ mixed(job.0));
    let kinds: Vec<FaultKind> = FaultKind::survivable().collect();
    let kind = kinds[usize::try_from(drawn % kinds.len() as u64).unwrap_or(0)];
    let step = u32::try_from((drawn >> 32) % u64::from(RANDOM_STEPS + 1)).unwrap_or(0);
    let point = NonZeroU32::new(step).map_or(FaultPoint::Prefill(NonZeroU32::MIN), FaultPoint::Decode);
    Fault { kind, point, once: None }
}

/// The output function of SplitMix64, which spreads neighbouring numbers.
const fn mixed(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.spec)
    }
}

impl FromStr for FaultPlan {
    type Err = FaultPlanError;

    fn from_str(spec: &str) -> Result<Self, FaultPlanError> {
        let rules = spec.split(';').map(|rule| rule.trim().parse()).collect::<Result<_, _>>()?;
        Ok(Self { spec: spec.into(), rules })
    }
}

impl FromStr for Rule {
    type Err = FaultPlanError;

    fn from_str(rule: &str) -> Result<Self, FaultPlanError> {
        if let Some(numbers) = rule.strip_prefix("random:") {
            return random_rule(numbers).ok_or_else(|| FaultPlanError::Random { found: rule.into() });
        }
        let no_point = || FaultPlanError::NoPoint { rule: rule.into() };
        let (kind, rest) = rule.split_once('@').ok_or_else(no_point)?;
        let mut words = rest.split(',');
        let (kind, point) = (kind.parse()?, words.next().unwrap_or_default().parse::<FaultPoint>()?);
        let (mut once, mut jobs, mut always) = (None, None, false);
        for word in words {
            let wrong = || FaultPlanError::Option { found: word.into() };
            match word.split_once('=') {
                None if word == "always" => always = true,
                Some(("job", id)) => jobs = Some(Jobs::One(JobId(id.parse().map_err(|_| wrong())?))),
                Some(("every", n)) => jobs = Some(Jobs::Every(n.parse().map_err(|_| wrong())?)),
                Some(("once", file)) if !file.is_empty() => once = Some(file.into()),
                _ => return Err(wrong()),
            }
        }
        let needs_a_job = jobs.is_some() || always || matches!(kind, FaultKind::Slow(_));
        if needs_a_job && !point.is_of_a_job() {
            return Err(FaultPlanError::NoJob { rule: rule.into() });
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

    fn plan(spec: &str) -> FaultPlan {
        spec.parse().unwrap()
    }

    fn struck(spec: &str, jobs: std::ops::RangeInclusive<u64>, lost: u32) -> Vec<u64> {
        jobs.filter(|id| plan(spec).of_job(JobId(*id), lost).next().is_some()).collect()
    }

    #[test]
    fn every_kind_and_point_survives_its_text_form() {
        let points =
            ["load", "warm-up", "prefill:2", "decode:31"].map(|point| point.parse::<FaultPoint>().unwrap());
        for kind in FaultKind::SAMPLES {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!(points.map(|point| point.to_string()), ["load", "warm-up", "prefill:2", "decode:31"]);
        assert_eq!(plan("exit=7@decode:1").of_job(JobId(1), 0).next().unwrap().kind, FaultKind::Exit(7));
    }

    #[test]
    fn a_plan_keeps_its_text() {
        let spec = "crash@decode:3,every=5; random:7/3";
        assert_eq!(plan(spec).to_string(), spec);
        assert!(!plan(spec).is_off() && FaultPlan::default().is_off());
    }

    #[test]
    fn a_fault_strikes_the_jobs_of_its_rule() {
        assert_eq!(struck("crash@decode:1", 1..=3, 0), [1, 2, 3]);
        assert_eq!(struck("crash@decode:1,job=2", 1..=3, 0), [2]);
        assert_eq!(struck("crash@prefill:1,every=3", 1..=9, 0), [3, 6, 9]);
        assert_eq!(struck("crash@load", 1..=3, 0), [0; 0]);
    }

    #[test]
    fn a_job_that_has_lost_a_worker_is_spared_without_the_option_always() {
        assert_eq!(struck("crash@decode:1", 1..=2, 1), [0; 0]);
        assert_eq!(struck("random:1/1", 1..=2, 1), [0; 0]);
        assert_eq!(struck("crash@decode:1,always", 1..=2, 1), [1, 2]);
    }

    #[test]
    fn a_fault_without_a_job_strikes_only_at_its_point() {
        let plan = plan("exit=4@load,once=/tmp/mark;hang@warm-up");
        let faults: Vec<_> = plan.at(FaultPoint::Load).collect();
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].once, Some("/tmp/mark".into()));
        assert_eq!(plan.at(FaultPoint::WarmUp).next().unwrap().kind, FaultKind::Hang);
    }

    #[test]
    fn random_faults_are_reproducible_and_reach_every_kind_and_point() {
        let drawn = |seed: u64| (1..=3_000).map(move |id| random(seed, JobId(id)));
        assert!(drawn(7).eq(drawn(7)));
        assert!(drawn(7).ne(drawn(8)));
        assert_eq!(struck("random:7/3", 1..=9, 0), [3, 6, 9]);
        let kinds: BTreeSet<_> = drawn(7).map(|fault| fault.kind.name()).collect();
        let points: BTreeSet<_> = drawn(7).map(|fault| fault.point.to_string()).collect();
        assert_eq!((kinds.len(), points.len()), (FaultKind::survivable().count(), 8));
    }

    #[test]
    fn errors_name_the_problem_and_the_way_out() {
        for (spec, says) in [
            ("", "has no point"),
            ("crash", "write KIND@POINT"),
            ("crahs@load", "\"crahs\"; expected one of hang, crash"),
            ("hang=3@load", "invalid value in \"hang=3\""),
            ("slow=0@decode:1", "slow=TIMES"),
            ("crash@decode:0", "K from 1"),
            ("crash@decode", "unknown point \"decode\""),
            ("crash@decode:1,every=0", "unknown option \"every=0\""),
            ("crash@decode:1,once=", "once=FILE"),
            ("crash@load,job=3", "a point without a job"),
            ("slow=2@load", "a point without a job"),
            ("random:1/0", "N at least 1"),
            ("crash@load;random:1", "\"random:1\"; expected random:SEED/N"),
        ] {
            let error = spec.parse::<FaultPlan>().unwrap_err().to_string();
            assert!(error.contains(says), "{spec:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(spec in "[a-z@:=,;/0-9 -]{0,40}") {
            let _ = spec.parse::<FaultPlan>();
        }
    }
}
