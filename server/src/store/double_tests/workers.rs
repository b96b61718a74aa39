//! What workers do: greeting, reporting, being silent.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use qctl_server_core::attempt::AttemptState;
use qctl_server_core::checkpoint::{Damaged, Finding, Resumes, Told};
use qctl_server_core::ledger::{EndedReport, Ledger, Present, What as Reported};
use qctl_server_core::outcome::{End, Facts, StopCause};
use qctl_server_core::reconcile::Held;
use qctl_server_core::{Fence, WorkerId};
use qctl_simulation::double::{Mode, Worker};
use uuid::Uuid;

use super::pair::{Chosen, Decide, MACHINES, Machine, Pair, name, pick, refused, worker_id};
use super::steps::{Greeting, Pick, Silence, Told as Telling};
use super::view::{Differs, same};
use crate::store::read::{GpuRecord, WorkerMode};
use crate::store::workers;
use crate::store::workers::WorkerRow;

impl Pair {
    pub(super) async fn greet(&mut self, late: bool, greeting: &Greeting) -> Result<(), Differs> {
        let index = usize::from(greeting.worker) % MACHINES;
        let machine = &mut self.machines[index];
        machine.boot += u32::from(greeting.rebooted);
        machine.spool += u32::from(greeting.lost_its_spool);
        machine.greeting += 1;
        let machine = *machine;
        let worker = worker_id(index);
        let mut conn = self.pool.acquire().await.expect("a connection");
        let known = workers::known(&mut conn, worker, &name(index)).await;
        drop(conn);
        let known = known.expect("a worker");
        let real = known
            .first()
            .map(|known| (known.slots, known.greeting, known.spool_id));
        let ours = self.double.worker(worker).map(|known| &known.worker);
        let ours = ours.map(|known| (known.slots, known.greeting, known.spool_id));
        same("a known worker", &real, &ours)?;
        let row = Worker {
            id: worker,
            name: name(index),
            boot_id: machine.boot_id(index),
            spool_id: machine.spool_id(index),
            slots: ours.map_or(2, |(slots, _, _)| slots),
            gpus: (0..index).map(|gpu| format!("gpu-{index}-{gpu}")).collect(),
            memory_bytes: (index as i64) << 30,
            greeting: machine.greeting,
        };
        let theirs = worker_row(&row);
        let now = self.now;
        let real = self.in_store(late, move |conn| {
            Box::pin(async move { workers::upsert(conn, now, &theirs).await })
        });
        let real = real.await;
        let ours = self.check_term(late);
        let ours = ours.map(|()| self.double.upsert_worker(row.clone()));
        same("recording a worker", &real, &ours)?;
        if real.is_err() {
            return Ok(());
        }
        let own: Vec<Fence> = self
            .double
            .attempts()
            .values()
            .filter(|attempt| attempt.row.worker == worker)
            .map(|attempt| attempt.row.fence)
            .collect();
        let held: Vec<Held> = own
            .iter()
            .rev()
            .zip(&greeting.holds)
            .filter_map(|(fence, how)| Some((fence, (*how)?)))
            .map(|(fence, how)| Held {
                fence: *fence,
                state: match how % 3 {
                    0 => AttemptState::Assigned,
                    1 => AttemptState::Running,
                    _ => AttemptState::Ended,
                },
                slot_held: how % 3 != 2 || how % 2 == 0,
            })
            .collect();
        let checkpoints: Vec<(Fence, Told)> = greeting
            .checkpoints
            .iter()
            .filter_map(|(of, number)| Some((pick(&own, *of)?, *number)))
            .map(|(fence, number)| (fence, self.told(fence, number, false, false)))
            .collect();
        let mentioned = held.iter().map(|held| held.fence);
        let mentioned: Vec<Fence> = mentioned
            .chain(checkpoints.iter().map(|one| one.0))
            .collect();
        let fences = self.double.attempts_on(worker, &mentioned);
        let decide: Decide = Arc::new(move |ledger: &mut Ledger| {
            ledger.greet(&Present {
                worker,
                name: &row.name,
                boot_id: &row.boot_id,
                spool_id: row.spool_id,
                held: &held,
                checkpoints: &checkpoints,
            });
        });
        self.change(late, Chosen::Attempts(fences), decide).await
    }

    pub(super) async fn steer(
        &mut self,
        late: bool,
        worker: Pick,
        mode: Option<Pick>,
        slots: Option<i32>,
    ) -> Result<(), Differs> {
        let worker = worker_id(usize::from(worker) % MACHINES);
        let modes = [
            (WorkerMode::Active, Mode::Active),
            (WorkerMode::Paused, Mode::Paused),
            (WorkerMode::Draining, Mode::Draining),
        ];
        let mode = mode.and_then(|mode| pick(&modes, mode));
        let real = self.in_store(late, move |conn| {
            Box::pin(
                async move { workers::steer(conn, worker, mode.map(|mode| mode.0), slots).await },
            )
        });
        let real = real.await;
        let ours = self.check_term(late);
        let ours = ours.map(|()| self.double.steer(worker, mode.map(|mode| mode.1), slots));
        same("steering a worker", &real, &ours)
    }

    pub(super) async fn finish_drains(&mut self, late: bool) -> Result<(), Differs> {
        let drains = |mode| mode == Mode::Draining;
        let is_wanted = self
            .double
            .workers()
            .values()
            .any(|known| drains(known.mode));
        let real = self.led(late).0.finish_drains().await.map_err(refused);
        let real = real.map(|mut names| {
            names.sort_unstable();
            names
        });
        // Without a worker that drains, nothing is written that a term could forbid.
        let ours = match is_wanted {
            true => self.check_term(late),
            false => Ok(()),
        };
        let ours = ours.map(|()| self.double.finish_drains());
        same("ending drains", &real, &ours)
    }

    pub(super) fn told(&self, fence: Fence, number: i32, hashed: bool, removed: bool) -> Told {
        let id = fence.0;
        Told {
            number,
            step: (number % 2 == 0).then_some(100),
            note: "a note".repeat(usize::from(number == 3)),
            path: format!("/c/{id}.{number}"),
            files: 1,
            bytes: 10,
            hash: if hashed { "sha256:00" } else { "" }.to_owned(),
            created_at: self.now,
            removed,
        }
    }

    pub(super) async fn report(
        &mut self,
        late: bool,
        attempt: Pick,
        stranger: bool,
        what: Telling,
    ) -> Result<(), Differs> {
        let Some(row) = self.attempt(attempt) else {
            return Ok(());
        };
        let fence = row.fence;
        let worker = match stranger {
            true => WorkerId(Uuid::nil()),
            false => row.worker,
        };
        let what = match what {
            Telling::Started => Reported::Started {
                pid: i32::from(attempt),
                started_at: Some(self.now - TimeDelta::seconds(i64::from(attempt) % 7)),
                not_enforced: vec!["memory".to_owned(); usize::from(attempt % 3)],
            },
            Telling::Ended {
                end,
                code,
                stopped,
                output,
            } => {
                let ends = [
                    End::Waited,
                    End::Waited,
                    End::Waited,
                    End::CannotStart,
                    End::NeverStarted,
                    End::ShimLost,
                    End::MachineLost,
                ];
                let end = pick(&ends, end).unwrap_or(End::Waited);
                let waited = end == End::Waited;
                Reported::Ended(Box::new(EndedReport {
                    facts: Facts {
                        exit_code: code.filter(|_| waited),
                        signal: (waited && code.is_none()).then_some(9),
                        stopped: stopped.then_some(StopCause::Cancel),
                        ..Facts::of(end)
                    },
                    started_at: Some(self.now - TimeDelta::seconds(5)),
                    ended_at: Some(self.now),
                    duration: Some(Duration::from_micros(4_999_999)),
                    pid: Some(7),
                    log_end: output,
                    // What is stored here has the checksum 0, so every other one agrees.
                    log_crc32c: u32::from(attempt % 2),
                    not_enforced: Vec::new(),
                }))
            }
            Telling::Freed => Reported::SlotFreed,
            Telling::Returned(returned) => Reported::Returned {
                returned,
                message: "it had not started".to_owned(),
            },
            Telling::Paused(paused) => Reported::PauseChanged(paused),
            Telling::Stuck => Reported::SlotStuck { pids: vec![7, 8] },
            Telling::Checkpoint {
                number,
                hashed,
                removed,
            } => Reported::Checkpoint(Box::new(self.told(fence, number, hashed, removed))),
            Telling::Resumes { damaged } => {
                let offered = self.double.candidates(row.job, row.worker);
                let damaged = offered.first().filter(|_| damaged).map(|first| Damaged {
                    id: first.id,
                    job: Some(first.job),
                    attempt: first.attempt,
                    finding: match attempt % 3 {
                        0 => Finding::Unreadable,
                        1 => Finding::Mended,
                        _ => Finding::Damaged,
                    },
                    message: "its files are missing".to_owned(),
                });
                let from = offered.get(usize::from(damaged.is_some()));
                Reported::Resumes(Box::new(Resumes {
                    from: from.map(|from| (from.id, from.attempt)),
                    from_job: from.map(|from| from.job),
                    path: from.map(|_| "/c/whole".to_owned()).unwrap_or_default(),
                    damaged: damaged.into_iter().collect(),
                }))
            }
            Telling::NotSent => Reported::NotSent,
        };
        let decide: Decide = Arc::new(move |ledger: &mut Ledger| {
            // A refused report changes nothing.
            let _ = ledger.report(worker, fence, &what);
        });
        let which = Chosen::Attempts(vec![fence]);
        self.change(late, which, decide).await
    }

    pub(super) async fn silent(
        &mut self,
        late: bool,
        attempt: Pick,
        how: Silence,
    ) -> Result<(), Differs> {
        let Some(row) = self.attempt(attempt) else {
            return Ok(());
        };
        let fence = row.fence;
        let decide: Decide = Arc::new(move |ledger: &mut Ledger| match how {
            Silence::Unreachable => ledger.unreachable(fence, Duration::from_secs(60)),
            Silence::RecordGone => {
                ledger.record_gone(fence, Duration::from_secs(60), Duration::from_secs(1_800));
            }
            Silence::Back => ledger.reachable(fence),
            // Only what has not ended is given up.
            Silence::GivenUp if row.attempt.state == AttemptState::Ended => {}
            Silence::GivenUp => ledger.give_up(fence),
        });
        let which = Chosen::Attempts(vec![fence]);
        self.change(late, which, decide).await
    }
}

impl Machine {
    fn boot_id(self, index: usize) -> String {
        format!("m{index}-b{}", self.boot)
    }

    fn spool_id(self, index: usize) -> Uuid {
        Uuid::from_u128(((index as u128 + 1) << 32) + u128::from(self.spool))
    }
}

fn worker_row(worker: &Worker) -> WorkerRow {
    let gpu = |uuid: &String| GpuRecord {
        uuid: uuid.clone(),
        name: "a GPU".to_owned(),
        memory_bytes: 0,
        faulty: None,
    };
    WorkerRow {
        id: worker.id,
        name: worker.name.clone(),
        hostname: worker.name.clone(),
        boot_id: worker.boot_id.clone(),
        spool_id: worker.spool_id,
        version: "0.1.0".to_owned(),
        slots: worker.slots,
        gpus: worker.gpus.iter().map(gpu).collect(),
        memory_bytes: worker.memory_bytes,
        cpus: 4,
        greeting: worker.greeting,
    }
}
