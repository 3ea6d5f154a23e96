//! The simulation in bench/cluster_simulation against the laws of queues.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1};

use crate::simulation::{Cluster, Figures, Policy, Speeds, Times, Workload, run};

const REQUESTS: usize = 60_000;

fn conversations() -> Workload {
    Workload { times: Times::Speeds(Speeds::default()), turns: 4, think_s: 10.0 }
}

/// Requests that have nothing to do with each other and take an exponential time of 1 s on average.
fn exponential() -> Workload {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let times = (0..100_000).map(|_| (0.0, Exp1.sample(&mut random))).collect();
    Workload { times: Times::Measured(times), turns: 1, think_s: 1.0 }
}

fn of(policy: Policy, workload: &Workload, nodes: usize, load: f64) -> Figures {
    run(Cluster { nodes, policy, load, kept: 8 }, workload, REQUESTS, 1)
}

fn are_near(one: f64, other: f64, tolerance: f64) -> bool {
    (one - other).abs() <= tolerance * other.abs()
}

/// Mean wait in units of the mean service time where `nodes` share one queue: Erlang's C formula.
fn erlang_wait(nodes: u32, load: f64) -> f64 {
    let offered = f64::from(nodes) * load;
    let blocked = (1..=nodes).fold(1.0, |b, n| offered * b / (f64::from(n) + offered * b));
    let waits = blocked / (1.0 - load * (1.0 - blocked));
    waits / (f64::from(nodes) * (1.0 - load))
}

#[test]
fn the_same_seed_gives_the_same_figures() {
    let cluster = Cluster { nodes: 10, policy: Policy::PowerOfTwo, load: 0.8, kept: 8 };
    let with = |seed| run(cluster, &conversations(), 5_000, seed);
    assert_eq!(with(3), with(3));
    assert_ne!(with(3), with(4));
}

#[test]
fn waits_in_one_queue_follow_erlangs_formula() {
    let workload = exponential();
    for (nodes, load) in [(1, 0.5), (1, 0.7), (4, 0.8), (10, 0.8)] {
        let cluster = Cluster { nodes, policy: Policy::Pull, load, kept: 8 };
        let figures = run(cluster, &workload, 4 * REQUESTS, 1);
        let expected = erlang_wait(u32::try_from(nodes).unwrap(), load) * workload.mean_service_s();
        assert!(
            are_near(figures.wait_mean_s, expected, 0.08),
            "{nodes} nodes at {load}: {figures:?}, expected a mean wait of {expected}"
        );
    }
}

#[test]
fn the_laws_of_utilization_and_of_little_hold_for_every_policy() {
    let workload = conversations();
    for policy in Policy::ALL {
        let figures = of(policy, &workload, 10, 0.7);
        let utilization = figures.arrival_rate * figures.service_mean_s / 10.0;
        assert!(are_near(figures.utilization, utilization, 0.03), "{policy}: {figures:?}");
        let queue = figures.arrival_rate * figures.wait_mean_s;
        assert!(are_near(figures.queue_mean, queue, 0.1), "{policy}: {figures:?}");
    }
}

#[test]
fn one_queue_waits_less_than_queues_of_the_nodes() {
    let workload = conversations();
    let p99 = |policy| of(policy, &workload, 20, 0.85).wait_p99_s;
    let pull = p99(Policy::Pull);
    for policy in [Policy::LeastStale, Policy::PowerOfTwo, Policy::RoundRobin, Policy::Random] {
        assert!(p99(policy) > 2.0 * pull, "{policy}: {} against {pull}", p99(policy));
    }
}

#[test]
fn affinity_finds_prefixes_and_saves_the_time_to_read_them() {
    let workload = conversations();
    let [pull, idle, worth] = [Policy::Pull, Policy::AffinityIfIdle, Policy::AffinityWorth]
        .map(|policy| of(policy, &workload, 20, 0.7));
    assert!(idle.prefix_hits > pull.prefix_hits + 0.1, "{idle:?} {pull:?}");
    assert!(worth.prefix_hits > idle.prefix_hits, "{worth:?} {idle:?}");
    assert!(idle.utilization < pull.utilization, "{idle:?} {pull:?}");
    assert!(idle.ttft_p50_s < pull.ttft_p50_s, "{idle:?} {pull:?}");
}
