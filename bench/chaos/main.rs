//! Sends many requests to a server whose workers keep failing, and checks that each is answered once, correctly and in order.
//!
//! `scripts/chaos --requests 1000` starts it. A first server without faults gives the expected answer and duration of each
//! request. A second server has a fault in every third job; a hash of the job's number chooses the kind and the point, so that
//! this driver knows which fault hit which job. `verdict` has the checks; the table at the end shows the cost of each kind of
//! fault.

mod request;
mod server;
mod table;
mod verdict;

use std::{
    cell::{Cell, RefCell},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use eka::worker::faults::FaultPlan;

use request::{Answer, FinishedRequest, Question};
use server::{Memory, Server};

type BenchResult<T> = Result<T, Box<dyn std::error::Error>>;

/// Sends requests to a server whose workers keep failing, and checks every answer
#[derive(Debug, Parser)]
#[command(name = "scripts/chaos")]
struct Args {
    /// Requests to send
    #[arg(long, default_value_t = 300, value_name = "N")]
    requests: usize,
    /// Send requests for this many hours instead
    #[arg(long, value_name = "H")]
    hours: Option<f64>,
    /// Chooses the faults; the same seed, the same faults
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// One job in this many has a fault
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Number of parallel clients
    #[arg(long, default_value_t = 4, value_name = "C")]
    clients: usize,
    /// No faults: measure only the parent's memory
    #[arg(long)]
    plain: bool,
    /// Passed by `cargo bench`: run everything
    #[arg(long, hide = true)]
    bench: bool,
    /// Passed by cargo's test run: run once and short
    #[arg(long, hide = true)]
    test: bool,
}

impl Args {
    /// As cargo means it: a test run of the benches is short.
    fn meant(self) -> Self {
        let once = self.test || !self.bench;
        if once { Self { requests: 12, every: 2, clients: 2, hours: None, ..self } } else { self }
    }

    fn plan(&self) -> BenchResult<FaultPlan> {
        let spec = format!("random:{}/{}", self.seed, self.every);
        if self.plain { Ok(FaultPlan::default()) } else { Ok(spec.parse()?) }
    }
}

/// The results of a run.
struct Run {
    requests: Vec<FinishedRequest>,
    memory: Vec<Memory>,
    metrics: String,
    log: Vec<String>,
}

fn main() -> BenchResult<ExitCode> {
    let args = Args::parse().meant();
    let plan = args.plan()?;
    // One thread, so that what arrives first is noted first.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (answers, run) = runtime.block_on(async {
        let answers = undisturbed(&Question::all()?).await?;
        Ok::<_, Box<dyn std::error::Error>>((answers, disturbed(&args, &plan).await?))
    })?;
    let wrong = verdict::wrong(&run, &answers, &plan);
    table::print(&run, &answers, &plan);
    for line in wrong.iter().take(20) {
        println!("WRONG: {line}");
    }
    if wrong.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} things are wrong; the server's last words:", wrong.len());
    run.log.iter().for_each(|line| println!("  {line}"));
    Ok(ExitCode::FAILURE)
}

/// The expected answer of each question, and its median duration.
async fn undisturbed(questions: &[Question]) -> BenchResult<Vec<Answer>> {
    const TIMES: usize = 5;
    let server = Server::start(&FaultPlan::default()).await?;
    let mut answers = Vec::new();
    for question in questions {
        let mut tries = Vec::new();
        for _ in 0..TIMES {
            tries.push(request::send(&server, question, 0).await.answer.map_err(|e| e.why)?);
        }
        if tries.iter().any(|answer| answer.text != tries[0].text) {
            return Err(format!("undisturbed, {question:?} has more than one answer").into());
        }
        tries.sort_by_key(|answer| answer.served);
        answers.push(tries.swap_remove(TIMES / 2));
    }
    Ok(answers)
}

/// Sends requests until the limit is reached.
async fn disturbed(args: &Args, plan: &FaultPlan) -> BenchResult<Run> {
    let server = Server::start(plan).await?;
    let questions = Question::all()?;
    // Lets the watchdog measure this machine, and runs all code once.
    let first = request::send(&server, &questions[0], 0).await;
    let (begun, next) = (Instant::now(), Cell::new(0));
    let requests = RefCell::new(vec![first]);
    let memory = RefCell::new(vec![server.memory(0)?]);
    let is_over = |number: usize| match args.hours {
        Some(hours) => begun.elapsed() >= Duration::from_secs_f64(hours * 3_600.0),
        None => number >= args.requests,
    };
    let client = async || loop {
        let number = next.get();
        if is_over(number) {
            return Ok::<_, Box<dyn std::error::Error>>(());
        }
        next.set(number + 1);
        let question = request::question_of(number, questions.len());
        let finished = request::send(&server, &questions[question], question).await;
        requests.borrow_mut().push(finished);
        let done = requests.borrow().len() - 1;
        if done.is_multiple_of(25) {
            memory.borrow_mut().push(server.memory(done)?);
        }
        if done.is_multiple_of(1_000) {
            eprintln!("{done} answered after {:.0} s", begun.elapsed().as_secs_f64());
        }
    };
    for ended in futures_util::future::join_all((0..args.clients).map(|_| client())).await {
        ended?;
    }
    let metrics = server.metrics().await?;
    let (requests, memory) = (requests.into_inner(), memory.into_inner());
    Ok(Run { requests, memory, metrics, log: server.log() })
}
