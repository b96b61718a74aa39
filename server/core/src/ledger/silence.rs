//! Whose silence is counted, and what it leads to.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::TimeDelta;

use super::{Applied, COORDINATOR, EndReport, Ledger, NewEvent};
use crate::attempt::AttemptEvent;
use crate::explain::span;
use crate::id::{Fence, WorkerId};
use crate::lease::{Lapse, Leases};
use crate::notice::job::About;
use crate::notice::{self, Wish};
use crate::outcome::{End, Facts};

/// An attempt that has not ended, as far as silence is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// The attempt.
    pub fence: Fence,
    /// Its worker.
    pub worker: WorkerId,
    /// It was assigned to the spool that its worker owns now.
    pub same_spool: bool,
    /// It is shown as unreachable.
    pub unreachable: bool,
    /// That its worker has no record of it any more is told.
    pub record_gone: bool,
}

/// Whose silence is counted: a worker, or an attempt that its worker knows nothing of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// A worker, for all its attempts.
    Worker(WorkerId),
    /// An attempt of a spool that its worker does not own any more.
    Orphan(Fence),
}

impl Current {
    /// Whose silence counts against it.
    pub fn holder(&self) -> Holder {
        match self.same_spool {
            true => Holder::Worker(self.worker),
            false => Holder::Orphan(self.fence),
        }
    }
}

/// What a look at the silence of all workers finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lapsed {
    /// Attempts to be shown as unreachable, because their workers are silent.
    pub unreachable: Vec<Fence>,
    /// Attempts to be shown as unreachable, because their workers have no record of them any more.
    pub record_gone: Vec<Fence>,
    /// Attempts that are heard of again.
    pub back: Vec<Fence>,
    /// Attempts to be given up.
    pub lost: Vec<Fence>,
}

/// Counts `elapsed` against everyone who holds one of the current attempts and is not heard of, as
/// [`Leases::tick`] does, and says what follows for the attempts. Nobody hears of an orphan.
pub fn lapsed(
    leases: &mut Leases<Holder>,
    current: &[Current],
    heard: impl Fn(WorkerId) -> bool,
    elapsed: Duration,
    healthy: bool,
) -> Lapsed {
    let heard = |holder: Holder| match holder {
        Holder::Orphan(_) => false,
        Holder::Worker(worker) => heard(worker),
    };
    let holders: BTreeSet<Holder> = current.iter().map(Current::holder).collect();
    let holders: Vec<(Holder, bool)> = holders
        .into_iter()
        .map(|holder| (holder, heard(holder)))
        .collect();
    let mut silent = BTreeSet::new();
    let mut lost = BTreeSet::new();
    for lapse in leases.tick(holders, elapsed, healthy) {
        match lapse {
            Lapse::Unreachable(holder) => silent.insert(holder),
            Lapse::Lost(holder) => lost.insert(holder),
        };
    }
    let those = |wanted: &dyn Fn(&Current) -> bool| -> Vec<Fence> {
        current
            .iter()
            .filter(|attempt| wanted(attempt))
            .map(|attempt| attempt.fence)
            .collect()
    };
    Lapsed {
        unreachable: those(&|one| {
            one.same_spool && !one.unreachable && silent.contains(&one.holder())
        }),
        record_gone: those(&|one| {
            !one.same_spool && !one.record_gone && silent.contains(&one.holder())
        }),
        back: those(&|one| one.unreachable && heard(one.holder())),
        lost: those(&|one| lost.contains(&one.holder())),
    }
}

impl Ledger {
    /// An attempt's worker has been silent for `after`: that is shown and told.
    pub fn unreachable(&mut self, fence: Fence, after: Duration) {
        if self.attempt_event(fence, AttemptEvent::WorkerSilent) != Applied::Recorded {
            return;
        }
        let Some(row) = self.attempts.get(&fence) else {
            return;
        };
        let silence = delta(after);
        let event = NewEvent {
            job: Some(row.job),
            attempt: Some(row.number),
            worker: row.worker_name.clone(),
            kind: "unreachable",
            message: format!(
                "worker `{}` has not been heard of for {}; the job may well be running",
                row.worker_name,
                span(silence)
            ),
            actor: COORDINATOR.to_owned(),
        };
        let about = About {
            job: row.job,
            attempt: Some(row.number),
            worker: &row.worker_name,
            wish: Wish::Default,
            success_after: self.success_after,
        };
        let since = self.now - silence;
        let notice = notice::job::unreachable(&about, since);
        self.notice(notice);
        self.tell(event);
    }

    /// An attempt has not been heard of for `after`, for its worker has no record of it any more: that
    /// is shown, and told once. It is given up after `lost_after`. Nothing is wrong with the worker.
    pub fn record_gone(&mut self, fence: Fence, after: Duration, lost_after: Duration) {
        if self.attempt_event(fence, AttemptEvent::RecordGone) != Applied::Recorded {
            return;
        }
        let Some(row) = self.attempts.get(&fence) else {
            return;
        };
        let Some(job) = self.jobs.get(&row.job) else {
            return;
        };
        let event = NewEvent {
            job: Some(row.job),
            attempt: Some(row.number),
            worker: row.worker_name.clone(),
            kind: "record_gone",
            message: format!(
                "worker `{}` has no record of it any more; it may well be running, and is given up \
                 unless it is heard of within {}",
                row.worker_name,
                span(delta(lost_after.saturating_sub(after)))
            ),
            actor: COORDINATOR.to_owned(),
        };
        let about = About {
            job: row.job,
            attempt: Some(row.number),
            worker: &row.worker_name,
            wish: job.wish,
            success_after: self.success_after,
        };
        let gone = notice::job::RecordGone {
            since: self.now - delta(after),
            given_up_at: self.now + delta(lost_after.saturating_sub(after)),
            goes_on: job.job.survives_loss(row.published > 0),
        };
        let notice = notice::job::record_gone(&about, &gone);
        self.notice(notice);
        self.tell(event);
    }

    /// An attempt is heard of again, with its worker or by its record.
    pub fn reachable(&mut self, fence: Fence) {
        self.attempt_event(fence, AttemptEvent::WorkerBack);
    }

    /// An attempt is given up because it has not been heard of for too long: its job may run
    /// elsewhere. What it occupies stays occupied, for nothing proves that its processes are gone.
    pub fn give_up(&mut self, fence: Fence) {
        let end = match self.attempt(fence) {
            Some(row) if row.attempt.record_gone => End::RecordGone,
            _ => End::GivenUp,
        };
        self.ended(fence, &Facts::of(end), EndReport::default());
    }
}

fn delta(length: Duration) -> TimeDelta {
    TimeDelta::from_std(length).unwrap_or_default()
}
