//! Connected workers: one session each, and a bounded queue of what to tell it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use qctl_server_core::checkpoint::ResumeCandidate;
use qctl_server_core::ledger::Message;
use qctl_server_core::pace::UsualItem;
use qctl_server_core::silence;
use qctl_server_core::{AttemptNumber, Fence, JobId, JobSpec, Term, WorkerId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Messages that wait for a worker. A worker that falls further behind is disconnected; after it
/// connected again its Hello settles what was missed.
const QUEUED: usize = 1_024;

/// Distinguishes the sessions of one run of the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(u64);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// What the coordinator says to a worker after the greeting.
#[derive(Clone, Debug)]
pub enum ToWorker {
    /// Answers a heartbeat.
    HeartbeatAck {
        /// The heartbeat's number.
        sequence: i64,
        /// The coordinator's term.
        term: Term,
    },
    /// Work, in order.
    Assign(Vec<Assignment>),
    /// Something about an attempt that it was given.
    Attempt(Message),
    /// How many slots to keep ready.
    SetSlots(i32),
    /// The checkpoints of these jobs are not wanted any more.
    RemoveCheckpoints(Vec<JobId>),
}

/// One attempt to run.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The attempt.
    pub fence: Fence,
    /// The job.
    pub job: JobId,
    /// The attempt's number within the job.
    pub number: AttemptNumber,
    /// What to run.
    pub spec: JobSpec,
    /// The term in which it was assigned.
    pub term: Term,
    /// Only a worker in this boot may start it.
    pub boot_id: String,
    /// Only the owner of this spool may start it.
    pub spool_id: Uuid,
    /// Directory with an earlier attempt's checkpoint; empty to begin afresh.
    pub resume_from: String,
    /// The GPUs that are given to it.
    pub gpus: Vec<String>,
    /// Start at once, beside the slots.
    pub beside_slots: bool,
    /// Checkpoints to resume from, the newest first.
    pub checkpoints: Vec<ResumeCandidate>,
    /// What holds about silence where neither job nor worker says anything.
    pub default_silence: silence::Rules,
    /// How long GPUs may be left unused where neither job nor worker says anything; zero for ever.
    pub default_gpu_idle: Option<Duration>,
    /// How long an item took in earlier runs with GPUs.
    pub usual_item: Option<UsualItem>,
}

/// Who is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The session.
    pub session: SessionId,
    /// The worker.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// The boot it runs in.
    pub boot_id: String,
    /// The spool it owns.
    pub spool_id: Uuid,
    /// When it was last heard of.
    pub last_contact: DateTime<Utc>,
}

/// The receiving end of a session.
#[derive(Debug)]
pub struct Outbox {
    /// The session.
    pub session: SessionId,
    /// What to tell the worker, in order.
    pub messages: mpsc::Receiver<ToWorker>,
    /// Cancelled when the session must end.
    pub closed: CancellationToken,
    /// Whoever drops the receiving end, also in the middle of a greeting, ends the session: one that
    /// nobody reads would keep its worker looking connected.
    _end: EndOnDrop,
}

#[derive(Debug)]
struct EndOnDrop {
    sessions: Sessions,
    worker: WorkerId,
    session: SessionId,
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.sessions.close(self.worker, self.session);
    }
}

#[derive(Debug)]
struct Entry {
    connected: Connected,
    messages: mpsc::Sender<ToWorker>,
    closed: CancellationToken,
}

/// Connected workers.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    entries: Arc<Mutex<HashMap<WorkerId, Entry>>>,
    /// When each worker was last heard of, in whichever session: one that lived between two looks at
    /// the silence counts as well.
    contacts: Arc<Mutex<HashMap<WorkerId, DateTime<Utc>>>>,
    opened: Arc<AtomicU64>,
}

impl Sessions {
    /// Opens a session and closes the worker's former one.
    pub(crate) fn open(
        &self,
        worker: WorkerId,
        name: String,
        boot_id: String,
        spool_id: Uuid,
        now: DateTime<Utc>,
    ) -> Outbox {
        let session = SessionId(self.opened.fetch_add(1, Ordering::Relaxed) + 1);
        let (sender, messages) = mpsc::channel(QUEUED);
        let closed = CancellationToken::new();
        let entry = Entry {
            connected: Connected {
                session,
                worker,
                name,
                boot_id,
                spool_id,
                last_contact: now,
            },
            messages: sender,
            closed: closed.clone(),
        };
        if let Some(former) = self.locked().insert(worker, entry) {
            former.closed.cancel();
        }
        self.contacts().insert(worker, now);
        Outbox {
            session,
            messages,
            closed,
            _end: EndOnDrop {
                sessions: self.clone(),
                worker,
                session,
            },
        }
    }

    /// Ends a worker's session, whichever it is.
    pub(crate) fn close_any(&self, worker: WorkerId) {
        if let Some(entry) = self.locked().remove(&worker) {
            entry.closed.cancel();
        }
    }

    /// Ends every session. Returns how many there were.
    pub(crate) fn close_all(&self) -> usize {
        let entries = std::mem::take(&mut *self.locked());
        for entry in entries.values() {
            entry.closed.cancel();
        }
        entries.len()
    }

    /// Ends a session; false when it had been replaced or ended already.
    pub(crate) fn close(&self, worker: WorkerId, session: SessionId) -> bool {
        let mut entries = self.locked();
        if entries
            .get(&worker)
            .is_none_or(|entry| entry.connected.session != session)
        {
            return false;
        }
        if let Some(entry) = entries.remove(&worker) {
            entry.closed.cancel();
        }
        true
    }

    /// Notes a sign of life. Returns how long the worker had not been heard of; `None` when the session is not its current one.
    pub(crate) fn heard(
        &self,
        worker: WorkerId,
        session: SessionId,
        now: DateTime<Utc>,
    ) -> Option<Duration> {
        let mut entries = self.locked();
        let entry = entries
            .get_mut(&worker)
            .filter(|entry| entry.connected.session == session)?;
        let last = std::mem::replace(&mut entry.connected.last_contact, now);
        self.contacts().insert(worker, now);
        Some((now - last).to_std().unwrap_or_default())
    }

    /// True while this session is the worker's current one.
    pub(crate) fn is_current(&self, worker: WorkerId, session: SessionId) -> bool {
        self.locked()
            .get(&worker)
            .is_some_and(|entry| entry.connected.session == session)
    }

    /// When a worker was last heard of, whether or not it still has that session.
    pub(crate) fn last_contact(&self, worker: WorkerId) -> Option<DateTime<Utc>> {
        self.contacts().get(&worker).copied()
    }

    /// True while the worker has a session.
    pub fn is_connected(&self, worker: WorkerId) -> bool {
        self.locked().contains_key(&worker)
    }

    /// The worker's session, when it has one.
    pub fn get(&self, worker: WorkerId) -> Option<Connected> {
        self.locked()
            .get(&worker)
            .map(|entry| entry.connected.clone())
    }

    /// Everyone who is connected, in no particular order.
    pub fn connected(&self) -> Vec<Connected> {
        self.locked()
            .values()
            .map(|entry| entry.connected.clone())
            .collect()
    }

    /// Queues a message for a worker; false when it is not connected. A worker whose queue is full
    /// is disconnected.
    pub(crate) fn send(&self, worker: WorkerId, message: ToWorker) -> bool {
        self.send_if(worker, None, message)
    }

    /// The same, only to this very session.
    pub(crate) fn send_to(&self, worker: WorkerId, session: SessionId, message: ToWorker) -> bool {
        self.send_if(worker, Some(session), message)
    }

    fn send_if(&self, worker: WorkerId, session: Option<SessionId>, message: ToWorker) -> bool {
        let mut entries = self.locked();
        let Some(entry) = entries.get(&worker) else {
            return false;
        };
        if session.is_some_and(|session| session != entry.connected.session) {
            return false;
        }
        if entry.messages.try_send(message).is_ok() {
            return true;
        }
        tracing::warn!(
            worker = %entry.connected.name,
            session = %entry.connected.session,
            "worker `{}` does not read its messages; closing its session",
            entry.connected.name,
        );
        if let Some(entry) = entries.remove(&worker) {
            entry.closed.cancel();
        }
        false
    }

    fn contacts(&self) -> MutexGuard<'_, HashMap<WorkerId, DateTime<Utc>>> {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<WorkerId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(sessions: &Sessions, worker: WorkerId) -> Outbox {
        sessions.open(
            worker,
            "box".to_owned(),
            "boot".to_owned(),
            Uuid::nil(),
            DateTime::UNIX_EPOCH,
        )
    }

    #[test]
    fn a_session_that_nobody_reads_is_none() {
        let sessions = Sessions::default();
        let worker = WorkerId(Uuid::from_u128(1));
        drop(open(&sessions, worker));
        assert!(!sessions.is_connected(worker));
    }

    #[test]
    fn the_end_of_a_replaced_session_leaves_its_successor_alone() {
        let sessions = Sessions::default();
        let worker = WorkerId(Uuid::from_u128(1));
        let former = open(&sessions, worker);
        let present = open(&sessions, worker);
        assert!(former.closed.is_cancelled());
        drop(former);
        assert!(sessions.is_current(worker, present.session));
    }
}
