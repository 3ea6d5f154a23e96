//! The task that keeps a worker alive, with the right models in it, and runs one job at a time on it.

mod idle;
mod orders;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    WorkerCommand,
    boot::{Booted, Spare, Unbooted, Worker, boot, settle},
    conversation::Request,
    exchange::{self, Lost},
    figures::Figures,
    inbox::Inbox,
    models::{FAR, Models, device_room, is_returned},
    pace::Watchdogs,
    policy::{self, Action, AfterLoss, End, Service},
    restored::Restored,
};
use crate::{
    job::{
        Event, Failure, Memory, ModelId, ModelReport, Order, OrderReport, Readiness, RuntimeReport,
        SlotReport,
    },
    units::Bytes,
    wire::Up,
};

/// An order, and where its outcome is told.
pub(super) type OrderRequest = (Order, oneshot::Sender<Result<OrderReport, Failure>>);

/// A worker is not asked to make way again before this has passed, when its successor has failed.
const AFTER_A_FAILED_SPARE: Duration = Duration::from_secs(30);

/// And when it is another device's worker's turn to make way.
const AFTER_ANOTHER: Duration = Duration::from_secs(1);

/// A worker that lived for so long was no failure, whatever ended it.
const A_WHILE: Duration = Duration::from_secs(10);

pub(super) struct Keeper {
    command: Arc<WorkerCommand>,
    models: Models,
    restored: Restored,
    /// What the next worker loads before it is asked to.
    preload: Vec<ModelId>,
    /// The next worker, where it comes up beside this one.
    spare: Option<Spare>,
    watchdogs: Watchdogs,
    figures: Figures,
    inbox: Inbox,
    orders: mpsc::Receiver<OrderRequest>,
    readiness: watch::Sender<Readiness>,
    stop: CancellationToken,
    /// What workers that make way take turns by, and this one's turn from when it is due until its successor works.
    turns: Arc<Semaphore>,
    turn: Option<OwnedSemaphorePermit>,
    ever_ready: bool,
    /// Workers that ended, in a row, without a job finished in between.
    failures: u32,
    /// Workers that ended, in a row, while they loaded a model.
    load_losses: u32,
}

/// How the life of one worker ended.
enum Life {
    /// As it was told to.
    Stopped,
    /// It made way for the next one.
    Recycled,
    /// Of its own.
    Ended { end: End, lost: Lost },
}

/// What came next for a worker that was waiting.
enum Next {
    Something,
    Order(OrderRequest),
    Spare(Result<(), String>),
    /// It has been idle for a while.
    Look,
    Lost(Lost),
    Stop,
}

impl Keeper {
    pub(super) fn new(
        command: WorkerCommand,
        figures: Figures,
        turns: Arc<Semaphore>,
        requests: mpsc::Receiver<Request>,
        orders: mpsc::Receiver<OrderRequest>,
        readiness: watch::Sender<Readiness>,
        stop: CancellationToken,
    ) -> Self {
        let first = command.models.first().map(|place| place.id.clone()).unwrap_or_default();
        Self {
            models: Models::new(command.model_memory, command.keep_alive),
            restored: Restored::default(),
            preload: vec![first],
            spare: None,
            command: Arc::new(command),
            watchdogs: Watchdogs::default(),
            figures,
            inbox: Inbox::new(requests),
            orders,
            readiness,
            stop,
            turns,
            turn: None,
            ever_ready: false,
            failures: 0,
            load_losses: 0,
        }
    }

    /// Runs workers, one after another, until told to stop.
    pub(super) async fn keep(mut self) {
        loop {
            match self.live().await {
                Life::Stopped => break,
                Life::Recycled => self.figures.exit("recycled"),
                Life::Ended { end, lost } => {
                    self.figures.exit(lost.label);
                    // While there is no worker here, no other device's makes way.
                    self.has_turn();
                    self.failures = self.failures.saturating_add(1);
                    tracing::error!("the worker is gone: {lost}");
                    self.give_up_on_model(&lost.reason);
                    match policy::after(end, self.ever_ready, self.failures) {
                        Action::RestartAfter(wait) => self.wait(wait, end, lost.reason).await,
                        Action::GiveUp => return self.give_up(lost.reason).await,
                    }
                }
            }
            if self.stop.is_cancelled() {
                break;
            }
        }
        self.watchdogs.save(&self.command);
        self.readiness.send_replace(Readiness::Stopping);
        self.figures.exit("shutdown");
    }

    /// One worker, from its start to its end.
    async fn live(&mut self) -> Life {
        if let Some(spare) = self.spare.take() {
            match self.meanwhile(spare.ready()).await {
                None => return Life::Stopped,
                Some(Ok(booted)) => return self.serve(*booted).await,
                Some(Err(reason)) => tracing::warn!("the next worker did not come up: {reason}"),
            }
        }
        self.figures.starts.inc();
        let loading = self.to_load();
        match self.meanwhile(boot(Arc::clone(&self.command), loading.clone())).await {
            None => Life::Stopped,
            Some(Ok(booted)) => self.serve(booted).await,
            Some(Err(Unbooted { end, lost })) => {
                self.load_losses += u32::from(!loading.is_empty());
                Life::Ended { end, lost }
            }
        }
    }

    /// Waits for `work` while jobs may arrive or be cancelled; `None` when told to stop first.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                () = self.stop.cancelled() => return None,
                () = self.inbox.receive() => {}
            }
        }
    }

    /// What a new worker loads before it is asked to: the model of the job that waits, else what the last one had. When
    /// loading has ended several workers, another model's job finds one that has loaded nothing.
    fn to_load(&self) -> Vec<ModelId> {
        match &self.inbox.waiting {
            Some(request) => vec![request.job.model.clone()],
            None if policy::gives_up_on_model(self.load_losses, self.has_others()) => Vec::new(),
            None => self.preload.clone(),
        }
    }

    fn has_others(&self) -> bool {
        self.command.models.len() > 1
    }

    /// Answers the job whose model ends every worker that loads it, when other models' jobs wait behind it.
    fn give_up_on_model(&mut self, reason: &str) {
        if policy::gives_up_on_model(self.load_losses, self.has_others())
            && let Some(request) = self.inbox.waiting.take()
        {
            let model = request.job.model.clone();
            let message =
                format!("{} workers in a row ended while they loaded it: {reason}", self.load_losses);
            request.answer(Err(Failure::Model { model, message }));
        }
    }

    /// Runs jobs on a worker until it ends or makes way.
    async fn serve(&mut self, booted: Booted) -> Life {
        let Booted { process, runtime, loaded, failed } = booted;
        let mut worker = Worker::new(process, runtime, &self.command.budgets);
        for (model, report) in loaded {
            self.now_loaded(&mut worker, model, report);
        }
        if let Some((model, message)) = failed {
            // A server of one model has nothing to go on with, but what loaded once may load again.
            if !self.ever_ready || !self.has_others() {
                worker.process.kill().await;
                return Life::Ended { end: End::LoadFailed, lost: Lost::new("load_failed", message) };
            }
            tracing::error!("model {model} cannot be loaded: {message}");
        }
        self.now_ready(&worker);
        let life = self.work(&mut worker).await;
        if worker.since.elapsed() >= A_WHILE {
            self.failures = 0;
        }
        self.figures.ready.set(0);
        self.preload = self.models.take_all();
        self.restored.lost(None);
        match life {
            Life::Ended { end, lost } => {
                return Life::Ended { end, lost: lost.see_off(worker.process).await };
            }
            // Its successor does not need its room, and a driver that hangs may take its time to let go.
            Life::Recycled if self.spare.is_some() => drop(tokio::spawn(worker.process.shut_down())),
            Life::Recycled | Life::Stopped => worker.process.shut_down().await,
        }
        life
    }

    /// The worker's working life: whatever comes first is done next. Nobody else talks to it meanwhile.
    async fn work(&mut self, worker: &mut Worker) -> Life {
        let lost = loop {
            if self.makes_way(worker) {
                return Life::Recycled;
            }
            let done = if let Some(request) = self.inbox.waiting.take() {
                self.run(worker, request).await
            } else if let Some(model) = self.models.expired(Instant::now()) {
                self.unload(worker, &model).await
            } else if self.lost_prompt(None).is_some() {
                self.restore_lost(worker, None).await
            } else {
                match self.next(worker).await {
                    Next::Something => continue,
                    Next::Order(order) => self.obey(worker, order).await,
                    Next::Spare(Ok(())) => return Life::Recycled,
                    Next::Spare(Err(reason)) => {
                        tracing::error!("the next worker did not come up, this one goes on: {reason}");
                        worker.settled_until = Instant::now() + AFTER_A_FAILED_SPARE;
                        self.turn = None;
                        Ok(())
                    }
                    Next::Look => self.look(worker).await,
                    Next::Lost(lost) => Err(lost),
                    Next::Stop => return Life::Stopped,
                }
            };
            if let Err(lost) = done {
                break lost;
            }
            worker.look_at = Instant::now() + self.command.budgets.ping_interval();
        };
        Life::Ended { end: End::AfterReady, lost }
    }

    /// Waits for something to happen.
    async fn next(&mut self, worker: &mut Worker) -> Next {
        let ages = self.command.recycle.after.map(|most| worker.since + most);
        let idles = worker.due_at.map(|_| worker.idle_since + policy::IDLE);
        let wakes = [self.models.next_expiry(), ages, idles, Some(worker.settled_until)];
        // What is due already is being seen to: only something new can change that.
        let wake = wakes.into_iter().flatten().filter(|at| *at > Instant::now()).min();
        let wake = wake.unwrap_or_else(|| Instant::now() + FAR);
        tokio::select! {
            () = self.stop.cancelled() => Next::Stop,
            () = self.inbox.receive() => Next::Something,
            Some(order) = self.orders.recv() => Next::Order(order),
            frame = worker.process.next() => match frame {
                Some(Ok(Up::Held { memory, .. })) => {
                    worker.memory = memory;
                    self.figures.show_memory(memory);
                    Next::Something
                }
                Some(Ok(Up::Pong)) => Next::Something,
                other => Next::Lost(Lost::by(other)),
            },
            settled = settle(&mut self.spare) => Next::Spare(settled),
            () = sleep_until(worker.look_at) => Next::Look,
            () = sleep_until(wake) => Next::Something,
        }
    }

    /// Loads the job's model if need be and runs the job. A job whose worker is lost meanwhile waits for the next one.
    async fn run(&mut self, worker: &mut Worker, mut request: Request) -> Result<(), Lost> {
        if request.cancel.is_cancelled() {
            request.answer_cancelled();
            return Ok(());
        }
        request.history.began.get_or_insert_with(Instant::now);
        let model = request.job.model.clone();
        if !self.models.is_loaded(&model) {
            // A listener who has left cancels the job by other means.
            let _ = request.events.send(Event::Loading);
            request.history.is_loading = true;
            match self.load(worker, &model).await {
                Ok(Ok(())) => {}
                Ok(Err(message)) => {
                    request.answer(Err(Failure::Model { model, message }));
                    return Ok(());
                }
                Err(lost) => {
                    self.load_losses += 1;
                    self.inbox.waiting = Some(request);
                    return Err(lost);
                }
            }
        }
        // One that another worker has begun does not wait for what it may not need: it is read again at once.
        if request.job.lost == 0
            && let Err(lost) = self.restore_lost(worker, Some(&model)).await
        {
            self.inbox.waiting = Some(request);
            return Err(lost);
        }
        if self.command.recycle.between_requests {
            self.start_spare(worker);
        }
        self.talk(worker, request).await
    }

    /// Runs a job whose model is loaded.
    async fn talk(&mut self, worker: &mut Worker, mut request: Request) -> Result<(), Lost> {
        if std::mem::take(&mut request.history.is_loading) {
            let _ = request.events.send(Event::Loaded);
        }
        let model = request.job.model.clone();
        let watchdog = self.watchdogs.of(&model, &self.command);
        let ended = request.converse(&mut worker.process, watchdog, self.command.spec.prefill_chunk).await;
        self.models.touch(&model, Instant::now());
        if let Some(keep_alive) = request.job.keep_alive {
            self.models.keep(&model, keep_alive);
        }
        match ended {
            Ok(mut end) => {
                if let Ok(finish) = &mut end {
                    request.correct(&mut finish.timings);
                    self.failures = 0;
                    worker.jobs += 1;
                    worker.idle_since = Instant::now();
                    worker.memory = finish.memory.after;
                    self.figures.show_job(&finish.memory);
                }
                request.answer(end);
                Ok(())
            }
            Err(lost) => {
                self.after_loss(request, &lost);
                Err(lost)
            }
        }
    }

    fn after_loss(&mut self, mut request: Request, lost: &Lost) {
        request.job.lost += 1;
        match policy::after_loss(request.job.lost) {
            AfterLoss::Resume => {
                self.figures.resumed.inc();
                let (job, tokens) = (request.job.id.0, request.job.answer.len());
                tracing::warn!(job, tokens, "its worker is gone; the next one goes on with it");
                self.inbox.waiting = Some(request);
            }
            AfterLoss::Fail => {
                let lost_workers = request.job.lost;
                let message =
                    format!("{lost_workers} workers in a row ended while they ran it: {}", lost.reason);
                request.answer(Err(Failure::WorkerLost { message }));
            }
        }
    }

    /// Loads a model, after those have left that must; the inner error is the model's own.
    async fn load(&mut self, worker: &mut Worker, model: &ModelId) -> Result<Result<(), String>, Lost> {
        let on_disk = self.command.place(model).map_or(Bytes(0), |place| place.on_disk);
        let room = device_room(self.command.spec.device_memory, worker.memory);
        for leaving in self.models.leaving_for(model, on_disk, room) {
            self.unload(worker, &leaving).await?;
        }
        tracing::info!("loading {model}");
        match exchange::load(&mut worker.process, &self.command, model).await? {
            Ok(report) => {
                self.load_losses = 0;
                self.now_loaded(worker, model.clone(), report);
                self.tell_ready(worker);
                Ok(Ok(()))
            }
            Err(message) => {
                tracing::error!("model {model} cannot be loaded: {message}");
                Ok(Err(message))
            }
        }
    }

    /// Gives a model's memory back, by a new worker if it does not come back otherwise.
    async fn unload(&mut self, worker: &mut Worker, model: &ModelId) -> Result<(), Lost> {
        let Some(report) = self.models.remove(model) else { return Ok(()) };
        self.restored.lost(Some(model));
        let before = worker.memory;
        worker.memory = exchange::unload(&mut worker.process, &self.command, model).await?;
        tracing::info!("{model} is unloaded: {} held", shown(worker.memory));
        self.tell_ready(worker);
        if self.models.ids().is_empty() && !is_returned(report.took(), before, worker.memory) {
            tracing::warn!("unloading {model} left memory behind; a new worker takes over");
            worker.is_spoilt = true;
        }
        Ok(())
    }

    /// Whether a worker that works is replaced now. If that is due, its successor is started beside it where there is room,
    /// and takes over when it is up; otherwise it has to go first, at a moment when nobody waits for it.
    fn makes_way(&mut self, worker: &mut Worker) -> bool {
        if !worker.is_spoilt && worker.settled_until > Instant::now() {
            return false;
        }
        let service = self.service(worker);
        let due = policy::recycle(&self.command.recycle, &service);
        if (worker.is_spoilt || due.is_some()) && !self.has_turn() {
            worker.settled_until = Instant::now() + AFTER_ANOTHER;
            return false;
        }
        if worker.is_spoilt {
            return true;
        }
        let Some(why) = due else { return false };
        if worker.due_at.is_none() {
            tracing::info!("the worker is replaced: {why}");
            worker.due_at = Some(worker.jobs);
            self.start_spare(worker);
        }
        if self.command.recycle.between_requests {
            return true;
        }
        let waited = worker.jobs - worker.due_at.unwrap_or(worker.jobs);
        let leaves = self.spare.is_none() && policy::may_leave(worker.idle_since.elapsed(), waited);
        if leaves {
            self.readiness.send_replace(Readiness::Restarting { reason: format!("it is replaced {why}") });
        }
        leaves
    }

    /// Whether this device's worker may make way now: not while another's does, unless every job is to have its own.
    fn has_turn(&mut self) -> bool {
        if self.turn.is_none() {
            self.turn = Arc::clone(&self.turns).try_acquire_owned().ok();
        }
        self.turn.is_some() || self.command.recycle.between_requests
    }

    fn service(&self, worker: &Worker) -> Service {
        let runtime = worker.runtime.memory.anonymous;
        let expected =
            runtime.zip(self.models.anonymous()).map(|(runtime, models)| Bytes(runtime.0 + models.0));
        Service { jobs: worker.jobs, age: worker.since.elapsed(), expected, held: worker.memory.lasting() }
    }

    /// Starts the next worker beside this one, where there is room for both.
    fn start_spare(&mut self, worker: &Worker) {
        if self.spare.is_none() && policy::fits_twice((self.command.available_memory)(), worker.memory) {
            self.figures.starts.inc();
            self.spare = Some(Spare::start(Arc::clone(&self.command), self.models.by_use()));
        }
    }

    fn now_loaded(&mut self, worker: &mut Worker, model: ModelId, report: ModelReport) {
        tracing::info!(
            load_ms = u64::try_from(report.load_time.as_millis()).unwrap_or(u64::MAX),
            placement = %report.placement,
            decode_threads = report.decode_threads,
            prefill_threads = report.prefill_threads,
            "{model} is loaded: {} held",
            shown(report.after)
        );
        self.figures.load_seconds.set(report.load_time.as_secs_f64());
        worker.memory = report.after;
        self.models.add(model, report, Instant::now());
    }

    fn now_ready(&mut self, worker: &Worker) {
        let RuntimeReport { runtime, library, device, fell_back, threads, .. } = &worker.runtime;
        let why = fell_back.as_ref().map(|why| format!(", as {why}")).unwrap_or_default();
        tracing::info!(threads, "the worker is ready: {runtime} ({}) on {device}{why}", library.display());
        self.ever_ready = true;
        self.turn = None;
        self.figures.ready.set(1);
        self.tell_ready(worker);
    }

    fn tell_ready(&self, worker: &Worker) {
        self.figures.show_memory(worker.memory);
        self.figures.show_nodes(&self.models.reports());
        self.readiness.send_replace(Readiness::Ready(SlotReport {
            runtime: worker.runtime.clone(),
            models: self.models.reports(),
            memory: worker.memory,
        }));
    }

    async fn wait(&mut self, wait: Duration, end: End, reason: String) {
        let is_down = self.ever_ready && policy::is_down(self.failures);
        let gives_back = is_down && policy::gives_jobs_back(end, self.failures);
        let why = Failure::NoWorker { message: reason.clone(), retry_in: Some(wait) };
        let state = if is_down {
            Readiness::Down { reason, retry_in: Some(wait) }
        } else if self.ever_ready {
            Readiness::Restarting { reason }
        } else {
            Readiness::Starting
        };
        self.readiness.send_replace(state);
        let over = sleep(wait);
        tokio::pin!(over);
        loop {
            if gives_back && let Some(request) = self.inbox.waiting.take() {
                request.give_back(Some(why.clone()));
            }
            tokio::select! {
                () = &mut over => return,
                () = self.stop.cancelled() => return,
                () = self.inbox.receive() => {}
                Some((_, reply)) = self.orders.recv(), if gives_back => {
                    let _ = reply.send(Err(why.clone()));
                }
            }
        }
    }

    /// Answers every job with the reason until told to stop.
    async fn give_up(mut self, reason: String) {
        self.turn = None;
        self.readiness.send_replace(Readiness::Down { reason: reason.clone(), retry_in: None });
        let failure = || Failure::NoWorker { message: reason.clone(), retry_in: None };
        loop {
            if let Some(request) = self.inbox.waiting.take() {
                request.give_back(Some(failure()));
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.inbox.receive() => {}
                Some((_, reply)) = self.orders.recv() => {
                    let _ = reply.send(Err(failure()));
                }
            }
        }
    }
}

fn shown(memory: Memory) -> String {
    memory.anonymous.or(memory.resident).map_or_else(|| "an unknown amount".into(), |bytes| bytes.to_string())
}
