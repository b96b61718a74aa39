//! Workers that connect, report and leave: what the coordinator does about each message.

use std::time::Duration;

use qctl_server_core::ledger::{Present, What, Which};
use qctl_server_core::{Fence, WorkerId};

use super::{Incoming, Session, Task, Trouble};
use crate::double::{Refused, Worker};
use crate::world::network::{Down, Hello, Up, Welcome};
use crate::world::{World, tell};

impl World {
    pub(super) fn close_session(&mut self, coordinator: usize, worker: WorkerId, connection: u32) {
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        if lead
            .sessions
            .get(&worker)
            .is_some_and(|session| session.connection == connection)
        {
            lead.sessions.remove(&worker);
            self.coordinator_closes(connection);
        }
    }

    pub(in crate::world) fn farewell(
        &mut self,
        coordinator: usize,
        machine: usize,
        connection: u32,
    ) {
        let worker = self.machines[machine].worker;
        self.close_session(coordinator, worker, connection);
    }

    pub(in crate::world) fn coordinator_hears(
        &mut self,
        coordinator: usize,
        machine: usize,
        connection: u32,
        message: Up,
    ) {
        let worker = self.machines[machine].worker;
        let trusted = self.is_trusted(coordinator);
        let Some(lead) = self.coordinators[coordinator].lead.as_mut() else {
            return self.coordinator_closes(connection);
        };
        match message {
            Up::Hello(hello) => {
                if let Some(session) = lead.sessions.get(&worker)
                    && session.spool_id != hello.spool_id
                {
                    return self.coordinator_closes(connection);
                }
                self.soon(
                    coordinator,
                    Task::Greet(machine, connection, Box::new(hello)),
                );
            }
            Up::Heartbeat(sequence) => {
                if !trusted {
                    return;
                }
                let now = self.now;
                if let Some(session) = lead.sessions.get(&worker)
                    && session.connection == connection
                {
                    lead.contacts.insert(worker, now);
                    let term = lead.term;
                    self.truth.heard(machine, now);
                    self.acknowledges(term, "a heartbeat");
                    self.send_down(connection, Down::Ack(sequence, term));
                }
            }
            Up::Report(fence, what) => {
                self.incoming(coordinator, worker, connection, fence, *what);
            }
            Up::End => self.farewell(coordinator, machine, connection),
        }
    }

    pub(super) fn incoming(
        &mut self,
        coordinator: usize,
        worker: WorkerId,
        connection: u32,
        fence: Fence,
        what: What,
    ) {
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        lead.inbox.push(Incoming {
            worker,
            connection,
            fence,
            what,
        });
        if !lead.writing {
            lead.writing = true;
            self.soon(coordinator, Task::Write);
        }
    }

    pub(super) fn write_reports(&mut self, coordinator: usize) {
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        let batch = std::mem::take(&mut lead.inbox);
        // What an old connection still had to say is said again in the new one's greeting.
        let is_current = |report: &&Incoming| {
            matches!(report.what, What::NotSent)
                || lead
                    .sessions
                    .get(&report.worker)
                    .is_some_and(|session| session.connection == report.connection)
        };
        let reports: Vec<Incoming> = batch.iter().filter(is_current).cloned().collect();
        let fences: Vec<Fence> = reports.iter().map(|report| report.fence).collect();
        let written = self.change(coordinator, Which::Attempts(&fences), |ledger, _| {
            for report in &reports {
                // A refused report is dropped, as the shell does.
                let _ = ledger.report(report.worker, report.fence, &report.what);
            }
            Ok(())
        });
        match written {
            Err(Trouble::Gone) => {}
            Err(Trouble::Unavailable | Trouble::Refused(_)) => {
                if let Some(lead) = self.lead_of(coordinator) {
                    let since = std::mem::replace(&mut lead.inbox, batch);
                    lead.inbox.extend(since);
                    self.task_after(coordinator, Duration::from_millis(500), Task::Write);
                }
            }
            Ok(()) => {
                for report in &reports {
                    tell!(self, "written: fence {} {:?}", report.fence.0, report.what);
                }
                if let Some(lead) = self.lead_of(coordinator) {
                    lead.writing = !lead.inbox.is_empty();
                    if lead.writing {
                        self.soon(coordinator, Task::Write);
                    }
                }
            }
        }
    }

    pub(super) fn greet(
        &mut self,
        coordinator: usize,
        machine: usize,
        connection: u32,
        hello: &Hello,
    ) {
        let there = &self.machines[machine];
        let (worker, name) = (there.worker, there.name.clone());
        let (slots, gpus) = (there.slots, there.gpus.clone());
        let known = self.database.double.worker(worker);
        let slots = known.map_or(slots, |known| known.worker.slots);
        let row = Worker {
            id: worker,
            name: name.clone(),
            boot_id: hello.boot_id.clone(),
            spool_id: hello.spool_id,
            slots,
            gpus,
            memory_bytes: 0,
            greeting: hello.greeting,
        };
        let unguarded = self.flips.late_greeting;
        let recorded = self.transaction(coordinator, |double| {
            // A connection that was given up long ago may still carry a greeting.
            if let Some(known) = double.worker(worker).map(|known| &known.worker)
                && known.spool_id == row.spool_id
                && known.greeting >= row.greeting
                && !unguarded
            {
                return Err(Refused::Stale);
            }
            double.upsert_worker(row);
            Ok(())
        });
        if recorded.is_err() {
            return self.coordinator_closes(connection);
        }
        if let Some(lead) = self.lead_of(coordinator)
            && let Some(former) = lead.sessions.remove(&worker)
        {
            self.coordinator_closes(former.connection);
        }
        let mentioned = hello.held.iter().map(|held| held.fence);
        let published = hello.checkpoints.iter().map(|(fence, _)| *fence);
        let mentioned: Vec<Fence> = mentioned.chain(published).collect();
        let fences = self.database.double.attempts_on(worker, &mentioned);
        let greeted = self.change_then(coordinator, Which::Attempts(&fences), |ledger| {
            ledger.greet(&Present {
                worker,
                name: &name,
                boot_id: &hello.boot_id,
                spool_id: hello.spool_id,
                held: &hello.held,
                checkpoints: &hello.checkpoints,
            })
        });
        let Ok((greeted, after)) = greeted else {
            return self.coordinator_closes(connection);
        };
        let now = self.now;
        self.truth.heard(machine, now);
        let Some(lead) = self.lead_of(coordinator) else {
            return;
        };
        lead.sessions.insert(
            worker,
            Session {
                connection,
                name: name.clone(),
                boot_id: hello.boot_id.clone(),
                spool_id: hello.spool_id,
            },
        );
        lead.contacts.insert(worker, now);
        let term = lead.term;
        self.acknowledges(term, "a greeting");
        tell!(
            self,
            "coordinator {coordinator} greets {name}: {:?} -> {:?}",
            hello.held,
            greeted.verdicts
        );
        self.send_down(
            connection,
            Down::Welcome(Welcome {
                term,
                slots,
                verdicts: greeted.verdicts,
            }),
        );
        for message in greeted.messages {
            self.send_down(connection, Down::About(message));
        }
        self.carry_out(coordinator, after);
        self.want_dispatch(coordinator);
    }
}
