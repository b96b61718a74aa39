//! Loops on a timer that find the work no wake-up announced. Each takes no input, is idempotent, and
//! outlives any failure of the database.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;

use crate::app::{App, Doing, Duty, Error, QueueWatch};

/// Between two looks at the leases.
const LEASES: Duration = Duration::from_secs(1);
/// Between two writes of heartbeats and progress.
const LIVE: Duration = Duration::from_secs(1);
/// Between two searches for overlooked dependents.
const DEPENDENTS: Duration = Duration::from_secs(30);
/// Between two writes of what was measured.
const MEASURES: Duration = Duration::from_secs(10);
/// Between two writes of alarms.
const ALARMS: Duration = Duration::from_secs(2);
/// Between two deletions of old measures.
const THINNING: Duration = Duration::from_secs(60 * 60);
/// Between two looks for checkpoints that nobody needs any more, and for jobs that wait for theirs.
const CHECKPOINTS: Duration = Duration::from_secs(10);
/// Between two looks whether the queue stands still.
const QUEUE: Duration = Duration::from_secs(10);
/// Between two looks at what changes slowly.
const SLOW: Duration = Duration::from_secs(60);
/// Wait after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Longest wait after a failure of what is done seldom, so that one that lasts is told soon.
const LONGEST_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Starts every loop. They end when the coordinator stops.
pub(crate) fn start(app: &Arc<App>) {
    every(
        app,
        Duty::Live,
        LIVE,
        |app| async move { app.save_live().await },
    );
    every(app, Duty::Measures, MEASURES, |app| async move {
        app.save_measures().await
    });
    every(app, Duty::Alarms, ALARMS, |app| async move {
        app.save_alarms().await
    });
    every(app, Duty::OldMeasures, THINNING, |app| async move {
        app.thin_measures().await?;
        app.forget_alarms().await
    });
    every(
        app,
        Duty::OverlookedDependents,
        DEPENDENTS,
        |app| async move { app.resolve_overlooked().await },
    );
    every(app, Duty::Checkpoints, CHECKPOINTS, |app| async move {
        app.hold_for_checkpoints().await?;
        app.give_up_checkpoints().await
    });
    every(app, Duty::RequestIds, SLOW, |app| async move {
        app.forget_requests().await
    });
    let wake = app.settings.wake_interval;
    every(app, Duty::Drains, wake, |app| async move {
        app.wake_dispatcher();
        app.finish_drains().await
    });
    spawn(app, leases(Arc::clone(app)));
    spawn(app, standstill(Arc::clone(app)));
    spawn(app, dependents(Arc::clone(app)));
    spawn(app, waits(Arc::clone(app)));
}

fn spawn(app: &Arc<App>, work: impl Future<Output = ()> + Send + 'static) {
    let stop = app.stop().clone();
    app.spawn(async move {
        // Transactions under way are rolled back when the connection closes.
        stop.run_until_cancelled_owned(work).await;
    });
}

/// Runs `work` again and again, `period` after it ended, or sooner when it failed.
fn every<W, F>(app: &Arc<App>, duty: Duty, period: Duration, work: W)
where
    W: Fn(Arc<App>) -> F + Send + 'static,
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let shared = Arc::clone(app);
    spawn(app, async move {
        let mut doing = Doing::new(duty);
        loop {
            qctl_notify::panics::provoked(duty.as_str());
            let result = work(Arc::clone(&shared)).await;
            doing.note(&shared, &result).await;
            let longest = match result {
                Ok(()) => period,
                Err(_) => LONGEST_AFTER_FAILURE,
            };
            tokio::time::sleep(period.min(longest)).await;
        }
    });
}

async fn leases(app: Arc<App>) {
    let mut watch = app.lease_watch();
    let mut doing = Doing::new(Duty::Leases);
    loop {
        qctl_notify::panics::provoked("leases");
        let result = app.watch_leases(&mut watch).await;
        doing.note(&app, &result).await;
        tokio::time::sleep(LEASES).await;
    }
}

async fn standstill(app: Arc<App>) {
    let after = app.settings.standstill_after;
    let mut watch = QueueWatch::new(after);
    let mut doing = Doing::new(Duty::Standstill);
    loop {
        qctl_notify::panics::provoked(Duty::Standstill.as_str());
        let result = app.watch_queue(&mut watch).await;
        doing.note(&app, &result).await;
        tokio::time::sleep(QUEUE.min(after)).await;
    }
}

async fn dependents(app: Arc<App>) {
    let mut doing = Doing::new(Duty::Dependents);
    loop {
        qctl_notify::panics::provoked("dependents");
        let ended = app.next_ended().await;
        let result = app.resolve_dependents(&ended).await;
        if result.is_err() {
            app.ended_again(&ended);
            tokio::time::sleep(AFTER_FAILURE).await;
        }
        doing.note(&app, &result).await;
    }
}

async fn waits(app: Arc<App>) {
    let mut doing = Doing::new(Duty::Waits);
    loop {
        qctl_notify::panics::provoked("waits");
        let next = app.queue_due().await;
        let longest = app.clock.now() + TimeDelta::seconds(30);
        let until = match &next {
            Ok(next) => next.map_or(longest, |next| next.min(longest)),
            Err(_) => app.clock.now() + AFTER_FAILURE,
        };
        doing.note(&app, &next).await;
        app.time_passed(until).await;
    }
}
