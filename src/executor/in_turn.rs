//! Runs the jobs of a group one after another.

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

use crate::job::{Event, Failure, Finish, GroupedJob, Job, JobId};

/// Where the events of a group go.
type GroupEvents = UnboundedSender<(JobId, Event)>;

/// A group that runs.
type Running = BoxFuture<'static, Result<(), Failure>>;

/// A run of groups, from a run of single jobs.
pub(super) fn one_by_one<R, F>(
    mut run: R,
) -> impl FnMut(Vec<GroupedJob>, GroupEvents) -> Running + Send + 'static
where
    R: FnMut(Job, UnboundedSender<Event>, CancellationToken) -> F + Send + 'static,
    F: Future<Output = Result<Finish, Failure>> + Send + 'static,
{
    move |jobs, events| {
        let begin = |GroupedJob { job, cancel }: GroupedJob| {
            let (sender, received) = unbounded_channel();
            (job.id, run(job, sender, cancel), received)
        };
        let runs: Vec<_> = jobs.into_iter().map(begin).collect();
        async move {
            for (id, work, received) in runs {
                let last = forward(id, work, received, &events).await;
                // The slot outlives its run.
                let _ = events.send((id, last.map_or_else(Event::Failed, Event::Done)));
            }
            Ok(())
        }
        .boxed()
    }
}

/// Awaits `work` and forwards what it says.
async fn forward(
    id: JobId,
    work: impl Future<Output = Result<Finish, Failure>>,
    mut received: UnboundedReceiver<Event>,
    events: &UnboundedSender<(JobId, Event)>,
) -> Result<Finish, Failure> {
    tokio::pin!(work);
    let last = loop {
        tokio::select! {
            biased;
            Some(event) = received.recv() => { let _ = events.send((id, event)); }
            last = &mut work => break last,
        }
    };
    while let Ok(event) = received.try_recv() {
        let _ = events.send((id, event));
    }
    last
}
