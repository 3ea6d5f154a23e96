//! Pulls tickets while a slot is free.
//!
//! First each class is asked for a ticket that is there, in the order of priority; when all are empty, a pull waits on each. All
//! answers come to one inbox for the life of the node: a ticket that arrives after its pull was given up would otherwise be lost
//! until its `ack_wait`. A ticket too many goes back at once.

use std::{sync::Arc, time::Duration};

use async_nats::{Message, StatusCode, Subscriber};
use futures_util::StreamExt;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{claim, shared::Shared, turns::Turns};
use crate::cluster::{
    connect_error::ConnectError,
    jetstream::{PULL_HEARTBEAT, StreamError},
    subjects::{Class, Pool},
};

/// Wait for the answer to a pull that does not wait.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Waiting pulls are given up after this silence: the server sends something every two seconds.
const SILENCE: Duration = PULL_HEARTBEAT.saturating_mul(2).saturating_add(Duration::from_millis(500));

/// Pause after a pull that failed.
const AGAIN: Duration = Duration::from_millis(200);

/// Pulls tickets and claims their jobs.
pub(super) struct Puller {
    shared: Arc<Shared>,
    inbox: String,
    answers: Subscriber,
    /// Pulls that wait for a ticket: at most one for each class of a pool.
    waiting: Vec<WaitingPull>,
    turns: Turns,
    /// Number of the next pull, which makes the subject of its answers unique.
    pulls: u64,
}

/// A pull that waits. The consumers of a cluster of NATS servers are on different ones, so each is watched by itself.
struct WaitingPull {
    /// Subject of its answers.
    inbox: String,
    /// Subject of the tickets.
    tickets: String,
    /// When the server was last heard of it.
    heard: Instant,
}

/// What a pull gave.
enum Answer {
    Ticket(Message),
    /// The pull with this subject has ended: there is no ticket, its time is over, or the server shuts down.
    Ended(String),
    /// There is no stream or consumer; the pull with this subject has ended.
    Missing(String),
    /// It still waits.
    Waiting,
}

impl Puller {
    /// Subscribes to the inbox.
    ///
    /// # Errors
    /// When the connection has ended.
    pub(super) async fn start(shared: Arc<Shared>) -> Result<Self, ConnectError> {
        let inbox = shared.broker.new_inbox();
        let answers = shared.broker.subscribe(format!("{inbox}.*")).await?;
        let turns = Turns::new(shared.pools.len(), shared.options.max_overtakes);
        Ok(Self { shared, inbox, answers, waiting: Vec::new(), turns, pulls: 0 })
    }

    /// Pulls as long as the node lives.
    pub(super) async fn run(mut self) {
        let mut connection = self.shared.broker.connection();
        self.create_consumers().await;
        loop {
            if connection.has_changed().unwrap_or_default() {
                // Pulls die with the broker.
                connection.mark_unchanged();
                self.waiting.clear();
            }
            self.shared.broker.wait_connected().await;
            if self.shared.free_slots() == 0 {
                self.wait_for_slot().await;
                continue;
            }
            if self.turns.offer_is_next() && self.claim_offered() {
                continue;
            }
            let ticket = match self.take_one_of_all().await {
                None if self.claim_offered() => None,
                None => self.wait_for_ticket(&mut connection).await,
                ticket => ticket,
            };
            if let Some(ticket) = ticket {
                self.claim(ticket).await;
            }
        }
    }

    /// Claims a job that was offered while no slot was free.
    fn claim_offered(&mut self) -> bool {
        let claimed = self.shared.offers.take().is_some_and(|job| claim::start_offered(&self.shared, &job));
        if claimed {
            self.turns.took_offer();
        }
        claimed
    }

    /// Waits until a slot is free, and gives back tickets that arrive meanwhile.
    async fn wait_for_slot(&mut self) {
        let shared = Arc::clone(&self.shared);
        let freed = shared.freed.notified();
        tokio::pin!(freed);
        freed.as_mut().enable();
        if shared.free_slots() > 0 {
            return;
        }
        loop {
            tokio::select! {
                () = &mut freed => return,
                Some(answer) = self.next() => {
                    if let Answer::Ticket(ticket) = answer {
                        claim::give_back(&shared, &ticket, Duration::ZERO).await;
                    }
                }
            }
        }
    }

    /// A ticket that is there.
    async fn take_one_of_all(&mut self) -> Option<Message> {
        let shared = Arc::clone(&self.shared);
        let loaded = shared.loaded();
        for class in self.turns.classes() {
            for pool in self.turns.pools(|pool| loaded[pool]) {
                if let Some(ticket) = self.take_one(&shared.pools[pool].0, class).await {
                    return Some(ticket);
                }
            }
        }
        None
    }

    async fn take_one(&mut self, pool: &Pool, class: Class) -> Option<Message> {
        let subject = self.shared.broker.subjects.job(pool, class);
        if self.waiting.iter().any(|pull| pull.tickets == subject) {
            // It would have been delivered.
            return None;
        }
        let inbox = self.next_inbox();
        self.shared.stream.pull(pool, class, &inbox, false).await;
        let until = Instant::now() + AT_ONCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match timeout(left, self.next()).await.ok()?? {
                Answer::Ticket(ticket) => return Some(ticket),
                Answer::Missing(ended) if ended == inbox => {
                    self.create_consumers().await;
                    return None;
                }
                Answer::Ended(ended) if ended == inbox => return None,
                Answer::Missing(_) | Answer::Ended(_) | Answer::Waiting => {}
            }
        }
    }

    /// Waits on all classes of all pools until a ticket arrives. `None` when they should be pulled anew.
    async fn wait_for_ticket(
        &mut self,
        connection: &mut watch::Receiver<Option<Instant>>,
    ) -> Option<Message> {
        self.pull_all().await;
        let shared = Arc::clone(&self.shared);
        loop {
            let silent = self.waiting.iter().map(|pull| pull.heard + SILENCE).min();
            let answer = tokio::select! {
                answer = self.next() => answer,
                _ = connection.changed() => {
                    self.waiting.clear();
                    return None;
                }
                () = sleep_until(silent.unwrap_or_else(Instant::now)) => {
                    // A server that is killed says nothing.
                    self.waiting.retain(|pull| pull.heard.elapsed() < SILENCE);
                    return None;
                }
                () = shared.freed.notified() => {
                    if shared.free_slots() == 0 {
                        return None;
                    }
                    continue;
                }
            };
            match answer? {
                Answer::Ticket(ticket) => return Some(ticket),
                Answer::Missing(_) => {
                    sleep(AGAIN).await;
                    self.create_consumers().await;
                    return None;
                }
                Answer::Ended(_) => return None,
                Answer::Waiting => {}
            }
        }
    }

    /// Lets a pull wait on every class that has none.
    async fn pull_all(&mut self) {
        let shared = Arc::clone(&self.shared);
        for (pool, _) in &shared.pools {
            for class in Class::ALL {
                let subject = shared.broker.subjects.job(pool, class);
                if self.waiting.iter().all(|pull| pull.tickets != subject) {
                    let inbox = self.next_inbox();
                    shared.stream.pull(pool, class, &inbox, true).await;
                    self.waiting.push(WaitingPull { inbox, tickets: subject, heard: Instant::now() });
                }
            }
        }
    }

    /// The next answer to any pull. Cancel safe.
    async fn next(&mut self) -> Option<Answer> {
        let message = self.answers.next().await?;
        let subject = message.subject.to_string();
        Some(match message.status {
            None => {
                if let Some(at) = self.waiting.iter().position(|pull| pull.tickets == subject) {
                    self.waiting.remove(at);
                }
                Answer::Ticket(message)
            }
            Some(StatusCode::IDLE_HEARTBEAT) => {
                let pull = self.waiting.iter_mut().find(|pull| pull.inbox == subject);
                pull.into_iter().for_each(|pull| pull.heard = Instant::now());
                Answer::Waiting
            }
            Some(status) => {
                self.waiting.retain(|pull| pull.inbox != subject);
                if status == StatusCode::NO_RESPONDERS {
                    Answer::Missing(subject)
                } else {
                    Answer::Ended(subject)
                }
            }
        })
    }

    /// Claims in a task, so that tickets for other slots are not kept waiting.
    async fn claim(&mut self, ticket: Message) {
        let shared = Arc::clone(&self.shared);
        if shared.free_slots() == 0 {
            return claim::give_back(&shared, &ticket, Duration::ZERO).await;
        }
        let (subjects, subject) = (&shared.broker.subjects, ticket.subject.as_str());
        let of_pool =
            |pool: &Pool| Class::ALL.into_iter().find(|class| subjects.job(pool, *class) == subject);
        let pools = shared.pools.iter().enumerate();
        let found = pools.filter_map(|(at, (pool, _))| Some((at, of_pool(pool)?))).next();
        let is_loaded = found.is_none_or(|(at, _)| shared.loaded()[at]);
        self.turns.took(found.map(|(_, class)| class), found.map(|(at, _)| at), is_loaded);
        claim::start(&shared, ticket);
    }

    async fn create_consumers(&self) {
        for (pool, _) in &self.shared.pools {
            match self.shared.stream.create_consumers(pool).await {
                Ok(()) => {}
                Err(StreamError::Refused { message, .. }) => {
                    tracing::error!(
                        event = "consumer_refused",
                        "the NATS server gives this node no requests of {}: {message}",
                        pool.as_str()
                    );
                    sleep(AT_ONCE).await;
                }
                // Gateways create the stream.
                Err(_) => sleep(AGAIN).await,
            }
        }
    }

    fn next_inbox(&mut self) -> String {
        self.pulls += 1;
        format!("{}.{}", self.inbox, self.pulls)
    }
}
