//! A discrete-event simulation of a cluster: requests arrive, wait, occupy a node and end; time jumps from one event to the next.
//!
//! Conversations begin as a Poisson process, and a user's next message comes an exponential time after the answer. A node computes
//! one request at a time and keeps the prefixes of its most recent conversations. A prefix is found only at the node that computed the
//! turn before. Networks and brokers take no time. The same seed gives the same figures, and the same conversations to all policies.

mod events;
mod figures;
mod node;
mod policy;
mod workload;

use std::collections::VecDeque;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1};

use self::{
    events::{Event, Events},
    figures::{Integrals, Outcome},
    node::Node,
    policy::{METRICS_INTERVAL_S, Router},
};
pub(crate) use self::{
    figures::Figures,
    policy::Policy,
    workload::{Speeds, Times, Turn, Workload},
};

/// One in this many requests is warm-up, which the figures leave out.
const WARM_UP: usize = 5;

/// A cluster and its load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cluster {
    /// Nodes, 1 or more.
    pub(crate) nodes: usize,
    /// How requests find a node.
    pub(crate) policy: Policy,
    /// Share of the cluster's capacity without kept prefixes that the requests need, below 1.
    pub(crate) load: f64,
    /// Conversations whose prefix a node keeps.
    pub(crate) kept: usize,
}

/// A request: one turn of a conversation.
struct Request {
    conversation: usize,
    turn: Turn,
    turn_number: usize,
    arrived_s: f64,
    has_started: bool,
}

struct Conversation {
    turns: Vec<Turn>,
    /// Seconds from an answer to the next message. Drawn with the turns, so that all policies get the same.
    thinks_s: Vec<f64>,
    /// Where the last turn was computed.
    node: Option<usize>,
}

struct Simulation<'a> {
    cluster: Cluster,
    workload: &'a Workload,
    /// Seconds between two new conversations, on average.
    between_s: f64,
    /// Requests after which no new ones arrive.
    limit: usize,
    clients: ChaCha8Rng,
    router: Router,
    now_s: f64,
    events: Events,
    nodes: Vec<Node>,
    /// Idle nodes, the one that is idle for the longest time first: as a broker serves waiting pulls.
    idle: VecDeque<usize>,
    /// Requests that any node may take.
    queue: VecDeque<usize>,
    conversations: Vec<Conversation>,
    requests: Vec<Request>,
    waiting: usize,
    outcomes: Vec<Outcome>,
    over: Integrals,
}

/// Runs about `requests` requests, of which the first fifth is warm-up.
pub(crate) fn run(cluster: Cluster, workload: &Workload, requests: usize, seed: u64) -> Figures {
    let capacity = cluster.nodes as f64 / workload.mean_service_s();
    let mut simulation = Simulation {
        cluster,
        workload,
        between_s: workload.turns as f64 / (capacity * cluster.load),
        limit: requests,
        clients: ChaCha8Rng::seed_from_u64(seed),
        router: Router::new(cluster.nodes, ChaCha8Rng::seed_from_u64(!seed)),
        now_s: 0.0,
        events: Events::default(),
        nodes: (0..cluster.nodes).map(|_| Node::default()).collect(),
        idle: (0..cluster.nodes).collect(),
        queue: VecDeque::new(),
        conversations: Vec::new(),
        requests: Vec::with_capacity(requests),
        waiting: 0,
        outcomes: Vec::with_capacity(requests),
        over: Integrals::default(),
    };
    simulation.run();
    Figures::of(&simulation.outcomes, simulation.over, cluster.nodes)
}

impl Simulation<'_> {
    fn run(&mut self) {
        self.events.at(0.0, Event::NewConversation);
        if self.cluster.policy == Policy::LeastStale {
            self.events.at(0.0, Event::ReadMetrics);
        }
        while let Some((at_s, event)) = self.events.next() {
            self.advance(at_s);
            match event {
                Event::NewConversation => self.begin_conversation(),
                Event::NextTurn { conversation, turn_number } => self.arrive(conversation, turn_number),
                Event::StopWaiting { request, node } => self.stop_waiting(request, node),
                Event::End { node } => self.end(node),
                Event::ReadMetrics => {
                    self.router.read_metrics(&self.nodes);
                    if self.is_open() {
                        self.events.at(self.now_s + METRICS_INTERVAL_S, Event::ReadMetrics);
                    }
                }
            }
        }
    }

    fn is_open(&self) -> bool {
        self.requests.len() < self.limit
    }

    fn is_warm(&self) -> bool {
        self.requests.len() > self.limit / WARM_UP
    }

    /// Moves the clock, and adds the time to the integrals if it counts.
    fn advance(&mut self, to_s: f64) {
        let passed_s = to_s - self.now_s;
        self.now_s = to_s;
        if self.is_warm() && self.is_open() {
            let busy = self.nodes.len() - self.idle.len();
            self.over.seconds += passed_s;
            self.over.busy_node_s += passed_s * busy as f64;
            self.over.waiting_request_s += passed_s * self.waiting as f64;
        }
    }

    /// A random time with this mean.
    fn exponential(&mut self, mean_s: f64) -> f64 {
        let unit: f64 = Exp1.sample(&mut self.clients);
        unit * mean_s
    }

    fn begin_conversation(&mut self) {
        if !self.is_open() {
            return;
        }
        let turns = self.workload.conversation(&mut self.clients);
        let thinks_s = turns.iter().map(|_| self.exponential(self.workload.think_s)).collect();
        self.conversations.push(Conversation { turns, thinks_s, node: None });
        let next_s = self.now_s + self.exponential(self.between_s);
        self.events.at(next_s, Event::NewConversation);
        self.arrive(self.conversations.len() - 1, 0);
    }

    fn arrive(&mut self, conversation: usize, turn_number: usize) {
        if !self.is_open() {
            return;
        }
        let request = self.requests.len();
        let turn = self.conversations[conversation].turns[turn_number];
        let arrived_s = self.now_s;
        self.over.arrivals += usize::from(self.is_warm());
        self.requests.push(Request { conversation, turn, turn_number, arrived_s, has_started: false });
        self.waiting += 1;
        if let Some(node) = self.router.choose(self.cluster.policy, &self.nodes) {
            return self.wait_for(node, request);
        }
        match self.holder(conversation) {
            Some(node) if self.cluster.policy != Policy::Pull && self.nodes[node].is_idle() => {
                self.start(node, request);
            }
            Some(node) if self.cluster.policy == Policy::AffinityWorth => {
                self.events.at(self.now_s + turn.prefix_s, Event::StopWaiting { request, node });
                self.nodes[node].queue.push_back(request);
            }
            _ => self.wait_for_any(request),
        }
    }

    /// The node that keeps the conversation's prefix.
    fn holder(&self, conversation: usize) -> Option<usize> {
        self.conversations[conversation].node.filter(|node| self.nodes[*node].keeps(conversation))
    }

    fn wait_for(&mut self, node: usize, request: usize) {
        if self.nodes[node].is_idle() {
            self.start(node, request);
        } else {
            self.nodes[node].queue.push_back(request);
        }
    }

    fn wait_for_any(&mut self, request: usize) {
        match self.idle.front() {
            Some(node) => self.start(*node, request),
            None => self.queue.push_back(request),
        }
    }

    /// The time for which a kept prefix is worth waiting is over.
    fn stop_waiting(&mut self, request: usize, node: usize) {
        if !self.requests[request].has_started {
            self.nodes[node].queue.retain(|waiting| *waiting != request);
            self.wait_for_any(request);
        }
    }

    fn start(&mut self, node: usize, request: usize) {
        let Request { conversation, turn, arrived_s, .. } = self.requests[request];
        let was_kept = self.holder(conversation) == Some(node);
        let read_s = turn.new_s + if was_kept { 0.0 } else { turn.prefix_s };
        let (wait_s, service_s) = (self.now_s - arrived_s, read_s + turn.write_s);
        if request > self.limit / WARM_UP {
            self.outcomes.push(Outcome { wait_s, ttft_s: wait_s + read_s, service_s, was_kept });
        }
        self.requests[request].has_started = true;
        self.waiting -= 1;
        self.idle.retain(|idle| *idle != node);
        self.nodes[node].running = Some(request);
        self.events.at(self.now_s + service_s, Event::End { node });
    }

    fn end(&mut self, node: usize) {
        let Some(request) = self.nodes[node].running.take() else { return };
        let Request { conversation, turn_number, .. } = self.requests[request];
        self.nodes[node].keep(conversation, self.cluster.kept);
        self.conversations[conversation].node = Some(node);
        self.idle.push_back(node);
        if turn_number + 1 < self.workload.turns {
            let next_s = self.now_s + self.conversations[conversation].thinks_s[turn_number];
            self.events.at(next_s, Event::NextTurn { conversation, turn_number: turn_number + 1 });
        }
        let next = self.nodes[node].queue.pop_front().or_else(|| self.queue.pop_front());
        next.into_iter().for_each(|request| self.start(node, request));
    }
}
