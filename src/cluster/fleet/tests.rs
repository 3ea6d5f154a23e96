use std::path::PathBuf;

use super::*;
use crate::{
    cluster::messages::{PoolState, SlotState},
    job::{Memory, ModelId, RuntimeReport},
};

const POOL: &str = "m-01234567";

fn ready() -> Readiness {
    let runtime = RuntimeReport {
        runtime: "1".into(),
        library: PathBuf::new(),
        device: "the CPU".into(),
        gpu: None,
        fell_back: None,
        threads: 1,
        memory: Memory::default(),
    };
    Readiness::Ready(SlotReport { runtime, models: Vec::new(), memory: Memory::default() })
}

fn state(node: &str, instance: u64, kept: &[u64]) -> NodeState {
    let slot = |label: &str| SlotState { label: Some(label.into()), readiness: ready() };
    NodeState {
        node: node.into(),
        version: "1".into(),
        format: 1,
        instance,
        pools: vec![PoolState { pool: POOL.into(), model: ModelId::from("m") }],
        slots: vec![slot("a"), slot("b")],
        kept: vec![kept.to_vec()],
        tokens_per_second: Some(100.0),
        draining: false,
        leaving: false,
    }
}

#[test]
fn slots_keep_their_numbers_and_a_node_that_claims_before_its_first_report_has_one() {
    let (fleet, now) = (Fleet::new(), Instant::now());
    assert_eq!(fleet.slot_of("early", 0), 0);
    assert!(fleet.note(state("one", 1, &[]), now));
    assert!(fleet.note(state("early", 2, &[]), now));
    assert_eq!((fleet.slot_of("early", 0), fleet.slot_of("early", 1)), (0, 3));
    assert_eq!((fleet.slot_of("one", 0), fleet.slot_of("one", 1), fleet.slot_of("one", 7)), (1, 2, 1));
    assert_eq!(fleet.counts(), (4, 4));
    assert_eq!(fleet.devices()[3].0, "early/b");
}

#[test]
fn the_place_of_a_node_that_is_away_for_long_is_given_to_a_new_one() {
    let (fleet, now) = (Fleet::new(), Instant::now());
    fleet.note(state("one", 1, &[]), now);
    let later = now + FORGOTTEN + Duration::from_secs(1);
    assert_eq!(fleet.mark_away(later), ["one"]);
    assert!(fleet.serves(POOL), "it may come back");
    assert_eq!((fleet.counts(), fleet.present(Some(POOL)).len()), ((2, 0), 0));
    fleet.note(state("two", 1, &[]), later);
    assert_eq!((fleet.counts(), fleet.slot_of("two", 1)), ((2, 2), 1));
}

#[test]
fn two_processes_with_one_name_are_noticed_and_a_restart_is_not_taken_for_that() {
    let (fleet, now) = (Fleet::new(), Instant::now());
    let reports = [1, 1, 2, 2, 1, 2].map(|instance| fleet.note(state("one", instance, &[]), now));
    assert_eq!(reports, [true, true, true, true, false, false]);
}

#[test]
fn the_node_with_the_longest_beginning_is_found_if_it_takes_jobs() {
    let (fleet, now) = (Fleet::new(), Instant::now());
    fleet.note(state("one", 1, &[10]), now);
    assert!(!fleet.keeps_prompts(), "a single node leaves nothing to choose");
    fleet.note(state("two", 1, &[10, 11]), now);
    assert!(fleet.keeps_prompts());
    let found = fleet.holder(POOL, &[10, 11, 12]).unwrap();
    assert_eq!(found, Holder { node: "two".into(), saves: Some(Duration::from_millis(1280)) });
    assert_eq!(fleet.holder(POOL, &[99]), None);
    assert_eq!(fleet.holder("other", &[10]), None);
    fleet.note(NodeState { draining: true, ..state("two", 1, &[10, 11]) }, now);
    assert_eq!(fleet.holder(POOL, &[10, 11, 12]).unwrap().node, "one");
}

#[test]
fn speeds_that_make_no_sense_give_no_time() {
    assert_eq!(reading_time(64, &[]), None);
    for speed in [0.0, -5.0, f64::NAN] {
        assert_eq!(reading_time(64, &[speed]), None, "{speed}");
    }
}
