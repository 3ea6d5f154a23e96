//! A group that runs: its events, and what happens when its node is lost.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::mpsc::UnboundedSender,
    time::{Instant, sleep_until},
};

use super::{
    grant::EncodedGrant,
    mail::{Claim, Mail, Probed},
    owner::Owner,
    probe,
};
use crate::{
    cluster::{
        messages::{Batch, BatchAnswer, ClaimAnswer, ClaimRequest, ControlCommand, RunEnd, RunKey, encode},
        subjects::Class,
    },
    job::{EndReason, Event, Failure, Finish, GroupedJob, JobId, MemoryReport, Step, Timings, Usage},
    metrics::NodeLabel,
};

/// Two requests to replay are at least this far apart.
const REPLAY_AGAIN: Duration = Duration::from_millis(100);

/// Runs claimed jobs: grants the claim, and finds another node after a loss.
///
/// # Errors
/// [`Failure::WorkerLost`] for all jobs without a last event, when too many nodes were lost.
pub(super) async fn run_group(
    task: Option<(Owner, Claim)>,
    jobs: Vec<GroupedJob>,
    events: UnboundedSender<(JobId, Event)>,
) -> Result<(), Failure> {
    let Some((mut owner, first)) = task else { return Err(Failure::ShuttingDown) };
    let mut group = RunningGroup::new(jobs, events);
    let mut cancels = group.cancellations();
    let mut claim = Some(first);
    loop {
        let next = match claim.take() {
            Some(claim) => claim,
            None => tokio::select! {
                next = owner.claimed(Class::Resumed) => next.ok_or(Failure::ShuttingDown)?,
                () = group.all_cancelled(&mut cancels) => {
                    group.end_cancelled();
                    return Ok(());
                }
            },
        };
        let node = NodeLabel { node: next.node.clone() };
        let ended = Attempt::new(&mut owner, &mut group, &mut cancels).run(next).await;
        owner.end_run();
        match ended {
            AttemptEnd::Finished => return Ok(()),
            AttemptEnd::HandedOver => {
                group.moves += 1;
                owner.shared.metrics.cluster.handed_over.inc();
            }
            AttemptEnd::Lost(reason) => {
                owner.shared.metrics.cluster.node_losses.get_or_create(&node).inc();
                group.note_loss(&owner, &reason)?;
            }
        }
        if group.is_cancelled() {
            group.end_cancelled();
            return Ok(());
        }
    }
}

/// How a node's work on a group ended.
enum AttemptEnd {
    /// Every job has its last event.
    Finished,
    /// The node stops.
    HandedOver,
    /// The node is lost.
    Lost(String),
}

/// A job's place in the group and its cancellation, when it comes.
type Cancels = FuturesUnordered<std::pin::Pin<Box<dyn Future<Output = u16> + Send>>>;

/// The jobs of a group that have not ended.
struct RunningGroup {
    /// Jobs by their place in the group when it was claimed first.
    members: Vec<(u16, GroupedJob)>,
    cancelled: BTreeSet<u16>,
    events: UnboundedSender<(JobId, Event)>,
    began: Instant,
    first_token: Option<Instant>,
    /// Jobs of the group at first, which share its time.
    jobs: u32,
    losses: u32,
    /// Nodes that it has left: losses, and nodes that stopped.
    moves: u32,
}

impl RunningGroup {
    fn new(jobs: Vec<GroupedJob>, events: UnboundedSender<(JobId, Event)>) -> Self {
        let members: Vec<_> = (0_u16..).zip(jobs).collect();
        Self {
            jobs: u32::try_from(members.len()).unwrap_or(u32::MAX).max(1),
            members,
            cancelled: BTreeSet::new(),
            events,
            began: Instant::now(),
            first_token: None,
            losses: 0,
            moves: 0,
        }
    }

    fn cancellations(&self) -> Cancels {
        let wait = |(member, grouped): &(u16, GroupedJob)| {
            let (member, cancel) = (*member, grouped.cancel.clone());
            let wait = async move {
                cancel.cancelled().await;
                member
            };
            Box::pin(wait) as std::pin::Pin<Box<dyn Future<Output = u16> + Send>>
        };
        self.members.iter().map(wait).collect()
    }

    fn is_cancelled(&self) -> bool {
        self.members.iter().all(|(_, grouped)| grouped.cancel.is_cancelled())
    }

    async fn all_cancelled(&mut self, cancels: &mut Cancels) {
        while !self.is_cancelled() {
            match cancels.next().await {
                Some(member) => drop(self.cancelled.insert(member)),
                None => std::future::pending().await,
            }
        }
    }

    /// Ends the jobs of clients that have left.
    fn end_cancelled(&mut self) {
        for (_, grouped) in self.members.drain(..) {
            let finish = Finish {
                reason: EndReason::Cancelled,
                usage: Usage {
                    prompt_tokens: grouped.job.prompt.len(),
                    completion_tokens: grouped.job.answer.len(),
                    cached_tokens: 0,
                },
                timings: Timings::default(),
                memory: MemoryReport::default(),
            };
            let _ = self.events.send((grouped.job.id, Event::Done(finish)));
        }
    }

    /// Counts a lost node.
    ///
    /// # Errors
    /// [`Failure::WorkerLost`] when it was one too many.
    fn note_loss(&mut self, owner: &Owner, reason: &str) -> Result<(), Failure> {
        self.losses += 1;
        self.moves += 1;
        owner.shared.metrics.cluster.losses.inc();
        let tokens: usize = self.members.iter().map(|(_, grouped)| grouped.job.answer.len()).sum();
        let job = owner.name();
        tracing::warn!(event = "node_lost", job, tokens, "{reason}; another node will continue the request");
        if self.losses < owner.shared.options.max_losses {
            return Ok(());
        }
        let message = format!("{} nodes in a row were lost while they ran it: {reason}", self.losses);
        Err(Failure::WorkerLost { message })
    }

    /// Takes an event of the job at this place.
    fn take(&mut self, member: u16, event: Event) {
        let Some(at) = self.members.iter().position(|(place, _)| *place == member) else { return };
        let id = self.members[at].1.job.id;
        let event = match event {
            Event::Step(Step::Token(token)) => {
                self.first_token.get_or_insert_with(Instant::now);
                self.members[at].1.job.answer.push(token);
                Event::Step(Step::Token(token))
            }
            Event::Done(mut finish) => {
                self.correct(&mut finish.timings);
                self.members.swap_remove(at);
                Event::Done(finish)
            }
            Event::Failed(failure) => {
                self.members.swap_remove(at);
                Event::Failed(failure)
            }
            event => event,
        };
        // A client that has left cancels the job through its token.
        let _ = self.events.send((id, event));
    }

    /// Corrects the times of a job that ran on several nodes: each measures only its own part.
    fn correct(&self, timings: &mut Timings) {
        if self.moves == 0 {
            return;
        }
        let first_token = self.first_token.unwrap_or_else(Instant::now);
        timings.prefill = (first_token - self.began) / self.jobs;
        timings.decode = first_token.elapsed() / self.jobs;
        timings.resumed += self.moves;
    }
}

/// A group on one node.
struct Attempt<'a> {
    owner: &'a mut Owner,
    group: &'a mut RunningGroup,
    cancels: &'a mut Cancels,
    run: RunKey,
    node: String,
    /// The process of that name which claimed the group.
    instance: u64,
    /// Counts the tokens of the node.
    tokens: Option<Counter>,
    grant: EncodedGrant,
    /// The group's jobs by their place in the grant.
    granted: Vec<u16>,
    /// Index of the next event.
    next: u64,
    heard: Instant,
    asked: Instant,
    replayed: Option<Instant>,
    /// A report of the node had a later index than the events so far.
    is_behind: bool,
}

impl<'a> Attempt<'a> {
    fn new(owner: &'a mut Owner, group: &'a mut RunningGroup, cancels: &'a mut Cancels) -> Self {
        let run = owner.next_run();
        let max_part = owner.shared.broker.max_part();
        let grant = EncodedGrant::new(&owner.group, group.members.iter().map(|(_, job)| job), max_part);
        let granted = group.members.iter().map(|(place, _)| *place).collect();
        let now = Instant::now();
        Self {
            owner,
            group,
            cancels,
            run,
            node: String::new(),
            instance: 0,
            tokens: None,
            grant,
            granted,
            next: 0,
            heard: now,
            asked: now,
            replayed: None,
            is_behind: false,
        }
    }

    async fn run(mut self, claim: Claim) -> AttemptEnd {
        (self.node, self.instance) = (claim.node, claim.instance);
        let shared = Arc::clone(&self.owner.shared);
        self.show_on_slot(0);
        let (cluster, label) = (&shared.metrics.cluster, NodeLabel { node: self.node.clone() });
        cluster.claims.inc();
        cluster.node_claims.get_or_create(&label).inc();
        self.tokens = Some(cluster.node_tokens.get_or_create_owned(&label));
        let granted = encode(&self.grant.beginning(self.run.clone()));
        shared.broker.answer(&claim.message, granted).await;
        // Those that were cancelled while the job waited for this node.
        if !self.group.cancelled.is_empty() {
            self.send_cancels();
        }
        loop {
            let look = self.heard.max(self.asked) + shared.options.probe;
            tokio::select! {
                mail = self.owner.mailbox.recv() => {
                    let Some(mail) = mail else { return AttemptEnd::Lost("the gateway is stopping".into()) };
                    if let Some(end) = self.handle(mail).await {
                        return end;
                    }
                }
                Some(member) = self.cancels.next() => {
                    self.group.cancelled.insert(member);
                    self.send_cancels();
                }
                () = sleep_until(look) => {
                    // This process was stopped, or had no processor: what nodes have sent meanwhile is not read yet.
                    if look.elapsed() > shared.options.probe {
                        self.heard = Instant::now();
                    }
                    if let Some(end) = self.look() {
                        return end;
                    }
                }
            }
        }
    }

    async fn handle(&mut self, mail: Mail) -> Option<AttemptEnd> {
        let shared = Arc::clone(&self.owner.shared);
        match mail {
            Mail::Claim(ClaimRequest::Part { run, offset }, message) if run == self.run => {
                self.heard = Instant::now();
                shared.broker.answer(&message, encode(&self.grant.part(offset))).await;
            }
            // The answer was lost: the node asks once more.
            Mail::Claim(ClaimRequest::Claim { node, instance, .. }, message)
                if (node.as_str(), instance, self.next) == (self.node.as_str(), self.instance, 0) =>
            {
                let granted = encode(&self.grant.beginning(self.run.clone()));
                shared.broker.answer(&message, granted).await;
            }
            Mail::Claim(_, message) => shared.broker.answer(&message, encode(&ClaimAnswer::Taken)).await,
            Mail::Batch(batch, message) if batch.run == self.run => {
                let (answer, end) = self.take(batch);
                if message.reply.is_some() {
                    shared.broker.answer(&message, encode(&answer)).await;
                }
                return end;
            }
            Mail::Batch(_, message) => {
                shared.metrics.cluster.stale.inc();
                shared.broker.answer(&message, encode(&BatchAnswer::Unknown)).await;
            }
            Mail::Alive(report) if report.run == self.run => {
                self.show_on_slot(report.slot.into());
                self.note_alive(report.next);
            }
            Mail::Probed(run, Probed::Running(next)) if run == self.run => self.note_alive(next),
            Mail::Probed(run, probed) if run == self.run => return self.note_probe(probed),
            Mail::Alive(..) | Mail::Probed(..) | Mail::Withdrawn | Mail::TicketLost => {}
        }
        None
    }

    /// Takes events that are next, and asks for those that are missing.
    fn take(&mut self, batch: Batch) -> (BatchAnswer, Option<AttemptEnd>) {
        self.heard = Instant::now();
        if batch.first > self.next {
            self.replay();
            return (BatchAnswer::ReplayFrom(self.next), None);
        }
        let known = usize::try_from(self.next - batch.first).unwrap_or(usize::MAX);
        for (place, event) in batch.events.into_iter().skip(known) {
            self.next += 1;
            self.is_behind = false;
            if let (Event::Step(Step::Token(_)), Some(tokens)) = (&event, &self.tokens) {
                tokens.inc();
            }
            if let Some(member) = self.granted.get(usize::from(place)) {
                self.group.take(*member, event);
            }
        }
        let end = match batch.end {
            None => None,
            Some(RunEnd::Done) if !self.group.members.is_empty() => {
                Some(AttemptEnd::Lost("the node did not report how the request ended".into()))
            }
            Some(RunEnd::Done) => Some(AttemptEnd::Finished),
            Some(RunEnd::HandOver) => Some(AttemptEnd::HandedOver),
            Some(RunEnd::Lost { reason }) => Some(AttemptEnd::Lost(reason)),
        };
        (BatchAnswer::Taken, end)
    }

    /// The node runs the jobs. Events may be on their way, so only a second report of missing ones counts.
    fn note_alive(&mut self, next: u64) {
        self.heard = Instant::now();
        if next > self.next && std::mem::replace(&mut self.is_behind, true) {
            self.replay();
        }
    }

    fn note_probe(&self, probed: Probed) -> Option<AttemptEnd> {
        match probed {
            // It takes its connection up again after the gateway, when the broker was away.
            Probed::Absent if self.connected_for() < self.owner.shared.options.lost => None,
            Probed::Absent => Some(AttemptEnd::Lost(format!("node {} has no connection", self.node))),
            Probed::Unknown => Some(AttemptEnd::Lost(format!("node {} does not run the request", self.node))),
            Probed::Running(_) | Probed::Silent => None,
        }
    }

    fn replay(&mut self) {
        let now = Instant::now();
        if self.replayed.is_some_and(|at| now - at < REPLAY_AGAIN) {
            return;
        }
        self.replayed = Some(now);
        self.owner.shared.metrics.cluster.replays.inc();
        self.send(ControlCommand::Replay(self.next));
    }

    /// The node was silent: asks it, or gives it up.
    fn look(&mut self) -> Option<AttemptEnd> {
        let options = &self.owner.shared.options;
        let silent = self.heard.elapsed().min(self.connected_for());
        if silent >= options.lost {
            let reason = format!("node {} was silent for {} ms", self.node, silent.as_millis());
            return Some(AttemptEnd::Lost(reason));
        }
        self.asked = Instant::now();
        if self.group.cancelled.is_empty() {
            self.send(ControlCommand::Probe);
        } else {
            self.send_cancels();
        }
        None
    }

    /// For how long this gateway could have heard the node.
    fn connected_for(&self) -> Duration {
        self.owner.shared.broker.connected_since().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Shows the jobs on a slot of the node.
    fn show_on_slot(&self, number: usize) {
        let shared = &self.owner.shared;
        let jobs: Vec<JobId> = self.group.members.iter().map(|(_, grouped)| grouped.job.id).collect();
        shared.queue.move_to(&jobs, shared.fleet.slot_of(&self.node, number));
    }

    fn send_cancels(&self) {
        let places = (0_u16..).zip(&self.granted);
        let cancelled = places.filter(|(_, member)| self.group.cancelled.contains(member));
        self.send(ControlCommand::Cancel(cancelled.map(|(place, _)| place).collect()));
    }

    fn send(&self, command: ControlCommand) {
        probe::send(&self.owner.shared, &self.node, self.run.clone(), command);
    }
}
