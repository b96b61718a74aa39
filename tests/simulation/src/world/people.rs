//! People: their command lines ask again with the same request id until they are answered, unless
//! they are killed.

use std::time::Duration;

use qctl_server_core::dependency::{Standing, standing};
use qctl_server_core::job::{Job, JobEffect, JobEvent, JobState};
use qctl_server_core::ledger::{Message, Which};
use qctl_server_core::{AttemptState, Condition, Demand, Dependency, JobId, JobSpec};

use super::coordinator::Trouble;
use super::network::Down;
use super::{Happening, World, tell};
use crate::double::{Double, Mode, NewJob, Refused};

/// What people have asked for.
#[derive(Debug, Default)]
pub(super) struct People {
    calls: Vec<Call>,
}

#[derive(Clone, Debug)]
struct Call {
    wish: Wish,
    answered: Option<Vec<JobId>>,
    over: bool,
}

/// What a person wants.
#[derive(Clone, Debug)]
enum Wish {
    Submit(Vec<JobSpec>),
    Cancel(JobId),
    Hold(JobId),
    Release(JobId),
    /// From its newest checkpoint, when it is wanted and there is one.
    Retry(JobId, bool),
    Delete(JobId),
    Execute(JobId, usize),
    Freeze(JobId, bool),
    PauseQueue(bool),
    Steer(usize, Mode),
    Slots(usize, i32),
}

impl World {
    pub(super) fn plan_wishes(&mut self) {
        let many = 3 + self.random.below(10) as usize;
        let span = self.settings.calm_at.as_millis() as u64;
        for index in 0..many {
            let at = match index {
                0 => self.random.millis(0, 10_000),
                _ => self.random.millis(0, span),
            };
            self.later(at, Happening::Wish(index));
        }
    }

    /// A person makes up their mind, and calls.
    pub(super) fn person_wishes(&mut self, index: usize) {
        let wish = self.any_wish(index);
        let Some(wish) = wish else { return };
        self.people.calls.push(Call {
            wish,
            answered: None,
            over: false,
        });
        let call = self.people.calls.len() - 1;
        self.person_calls(call);
    }

    fn any_wish(&mut self, index: usize) -> Option<Wish> {
        let known: Vec<JobId> = self.truth.acked.iter().copied().collect();
        let job = self.random.pick(&known);
        let machine = self.random.below(self.machines.len() as u64) as usize;
        if index == 0 || job.is_none() {
            return Some(Wish::Submit(self.some_specs()));
        }
        let job = job?;
        Some(match self.random.below(20) {
            0..=6 => Wish::Submit(self.some_specs()),
            7..=9 => Wish::Cancel(job),
            10 => Wish::Hold(job),
            11 => Wish::Release(job),
            12 => Wish::Retry(job, self.random.chance(50)),
            13 => Wish::Delete(job),
            14 => Wish::Execute(job, machine),
            15 => Wish::Freeze(job, self.random.chance(60)),
            16 => Wish::PauseQueue(self.random.chance(50)),
            17 | 18 => {
                let mode = self
                    .random
                    .pick(&[Mode::Active, Mode::Paused, Mode::Draining]);
                Wish::Steer(machine, mode.unwrap_or(Mode::Active))
            }
            _ => Wish::Slots(machine, self.random.between(1, 4) as i32),
        })
    }

    fn some_specs(&mut self) -> Vec<JobSpec> {
        let count = 1 + self.random.below(4);
        let (slots, gpus) = {
            let roomy = &self.machines[0];
            (roomy.slots, roomy.gpus.len() as i64)
        };
        let mut earlier: Vec<JobId> = self.truth.acked.iter().copied().collect();
        (0..count)
            .map(|position| {
                let mut spec = JobSpec {
                    name: String::new(),
                    command: vec!["job".to_owned()],
                    demand: Demand {
                        slots: match self.random.chance(80) {
                            true => 1,
                            false => self.random.between(1, slots.into()) as i32,
                        },
                        gpus: match self.random.chance(70) {
                            true => 0,
                            false => self.random.between(0, gpus) as i32,
                        },
                        memory_bytes: 0,
                    },
                    priority: self.random.between(-1, 1) as i32,
                    retries: Some(self.random.below(4) as i32),
                    resumes: Some(self.random.below(5) as i32),
                    exclusive: self.random.chance(35),
                    hold: self.random.chance(6),
                    ..JobSpec::default()
                };
                if self.random.chance(15) {
                    spec.time_limit = Some(self.random.seconds(5, 100));
                }
                if self.random.chance(30) {
                    spec.stop_grace = Some(self.random.seconds(1, 8));
                }
                if self.random.chance(8) {
                    spec.worker.clone_from(&self.machines[0].name);
                }
                if self.random.chance(20)
                    && let Some(on) = self.random.pick(&earlier)
                {
                    spec.after.push(Dependency {
                        job: on,
                        condition: self.random.pick(&Condition::ALL).unwrap_or(Condition::Ok),
                    });
                }
                earlier.push(JobId(-(position as i64 + 1)));
                spec
            })
            .collect()
    }

    /// A command line calls, or calls again.
    pub(super) fn person_calls(&mut self, index: usize) {
        if self.people.calls[index].over {
            return;
        }
        if !self.calm && self.random.chance(3) {
            tell!(self, "command line {index} is killed");
            self.people.calls[index].over = true;
            return;
        }
        let leading: Vec<usize> = (0..self.coordinators.len())
            .filter(|index| {
                let here = &self.coordinators[*index];
                here.up && here.paused_until <= self.now && self.is_trusted(*index)
            })
            .collect();
        let whom = self.random.pick(&leading);
        let lost = !self.calm && self.random.chance(5);
        let answer = whom.filter(|_| !lost).and_then(|coordinator| {
            let answer = self.serve(coordinator, index);
            // A leader looks at its lease before it acknowledges anything.
            let trusted = self.is_trusted(coordinator);
            let lost = !self.calm && self.random.chance(5);
            if trusted && let Some(lead) = &self.coordinators[coordinator].lead {
                self.acknowledges(lead.term, "a call");
            }
            (trusted && !lost).then_some(answer)
        });
        match answer {
            Some(Ok(jobs)) => self.answered(index, jobs),
            // A refusal is an answer.
            Some(Err(Trouble::Refused(_))) => self.people.calls[index].over = true,
            Some(Err(Trouble::Unavailable | Trouble::Gone)) | None => {
                let after = self.random.seconds(1, 6);
                self.later(after, Happening::Person(index));
            }
        }
    }

    fn answered(&mut self, index: usize, jobs: Vec<JobId>) {
        let call = &mut self.people.calls[index];
        call.over = true;
        let submits = matches!(call.wish, Wish::Submit(_) | Wish::Retry(..));
        call.answered = Some(jobs.clone());
        if submits {
            tell!(self, "acknowledged: jobs {jobs:?}");
            self.truth.submitted += jobs.len() as u64;
            self.truth.acked.extend(jobs);
        } else if let Wish::Delete(job) = call.wish {
            tell!(self, "acknowledged: job {} is deleted", job.0);
            self.truth.acked.remove(&job);
        }
    }

    /// What a coordinator does about a call.
    fn serve(&mut self, coordinator: usize, index: usize) -> Result<Vec<JobId>, Trouble> {
        let request = format!("r{index}");
        let wish = self.people.calls[index].wish.clone();
        if !self.database_answers(coordinator) {
            return Err(Trouble::Unavailable);
        }
        if let Some(known) = self.database.double.request(&request) {
            return Ok(known.jobs.clone());
        }
        let now = self.time_of(coordinator);
        tell!(self, "coordinator {coordinator} is asked for {wish:?}");
        let done = match wish {
            Wish::Submit(specs) => self.transaction(coordinator, |double| {
                submit(double, now, &request, specs, None)
            }),
            Wish::Retry(job, resumes) => self.transaction(coordinator, |double| {
                let (jobs, _) = double.load(Which::Jobs(&[job]));
                let ended = jobs.first().is_some_and(|row| row.job.state.is_final());
                let spec = double.spec_of(job).filter(|_| ended).cloned();
                let spec = JobSpec {
                    after: Vec::new(),
                    hold: false,
                    ..spec.ok_or(Refused::Stale)?
                };
                let from = double.usable(job, None).filter(|_| resumes);
                let jobs = submit(double, now, &request, vec![spec], Some(job))?;
                if let Some((id, _, _)) = from {
                    double.begin_from(jobs[0], id);
                }
                Ok(jobs)
            }),
            Wish::Delete(job) => {
                self.truth.may_be_deleted.insert(job);
                // Once it is gone, nobody can tell any more how it ended.
                self.resolve_dependents(coordinator, &[job])?;
                self.transaction(coordinator, |double| {
                    let (jobs, _) = double.load(Which::Jobs(&[job]));
                    let ended = jobs.first().is_some_and(|row| row.job.state.is_final());
                    if !ended || double.has_processes(job) {
                        return Err(Refused::Stale);
                    }
                    double.remember(now, &request, 0, &[job])?;
                    double.delete_job(job);
                    Ok(vec![job])
                })
            }
            Wish::PauseQueue(paused) => self.transaction(coordinator, |double| {
                double.remember(now, &request, 0, &[])?;
                double.pause_queue(paused);
                Ok(Vec::new())
            }),
            Wish::Steer(machine, mode) => {
                let worker = self.machines[machine].worker;
                self.transaction(coordinator, |double| {
                    double.remember(now, &request, 0, &[])?;
                    double.steer(worker, Some(mode), None);
                    Ok(Vec::new())
                })
            }
            Wish::Slots(machine, slots) => self.set_slots(coordinator, machine, slots, &request),
            Wish::Cancel(job) => self.about(coordinator, job, &request, |ledger| {
                let _ = ledger.job_event(job, &JobEvent::Cancel("a person".to_owned()), "a person");
            }),
            Wish::Hold(job) => self.about(coordinator, job, &request, |ledger| {
                let _ = ledger.job_event(job, &JobEvent::Hold("a person".to_owned()), "a person");
            }),
            Wish::Release(job) => self.about(coordinator, job, &request, |ledger| {
                let _ = ledger.job_event(job, &JobEvent::Release, "a person");
            }),
            Wish::Execute(job, machine) => {
                let worker = self.machines[machine].worker;
                self.about(coordinator, job, &request, |ledger| {
                    if ledger
                        .job(job)
                        .is_some_and(|row| row.job.state == JobState::Queued)
                    {
                        ledger.run_now(job, worker);
                        ledger.job_effect(job, JobEffect::AskBack);
                    }
                })
            }
            Wish::Freeze(job, paused) => self.about(coordinator, job, &request, |ledger| {
                let running = ledger
                    .current(job)
                    .filter(|row| row.attempt.state == AttemptState::Running)
                    .map(|row| (row.fence, row.worker));
                if let Some((fence, worker)) = running {
                    ledger.message(worker, Message::SetPaused { fence, paused });
                }
            }),
        };
        if done.is_ok() {
            self.want_dispatch(coordinator);
        }
        done
    }

    fn about(
        &mut self,
        coordinator: usize,
        job: JobId,
        request: &str,
        change: impl FnOnce(&mut qctl_server_core::ledger::Ledger),
    ) -> Result<Vec<JobId>, Trouble> {
        let now = self.time_of(coordinator);
        self.change(coordinator, Which::Jobs(&[job]), |ledger, double| {
            double.remember(now, request, 0, &[job])?;
            change(ledger);
            Ok(vec![job])
        })
    }

    fn set_slots(
        &mut self,
        coordinator: usize,
        machine: usize,
        slots: i32,
        request: &str,
    ) -> Result<Vec<JobId>, Trouble> {
        let now = self.time_of(coordinator);
        let worker = self.machines[machine].worker;
        self.truth.slots(machine, slots);
        self.transaction(coordinator, |double| {
            double.remember(now, request, 0, &[])?;
            double.steer(worker, None, Some(slots));
            Ok(())
        })?;
        let connection = self.coordinators[coordinator]
            .lead
            .as_ref()
            .and_then(|lead| lead.sessions.get(&worker))
            .map(|session| session.connection);
        if let Some(connection) = connection {
            self.send_down(connection, Down::SetSlots(slots));
        }
        Ok(Vec::new())
    }

    /// People look after what was left lying: they release what is held, let the queue and every
    /// worker go on, and thaw what is frozen.
    pub(super) fn tidy(&mut self) {
        self.later(Duration::from_secs(20), Happening::Tidy);
        let leader = (0..self.coordinators.len()).find(|index| self.is_trusted(*index));
        let Some(leader) = leader else { return };
        let double = &self.database.double;
        let held: Vec<JobId> = double
            .jobs()
            .iter()
            .filter(|(_, stored)| stored.job.state == JobState::Held)
            .map(|(id, _)| *id)
            .collect();
        let frozen: Vec<(qctl_server_core::Fence, qctl_server_core::WorkerId)> = double
            .attempts()
            .values()
            .filter(|attempt| attempt.row.attempt.paused)
            .map(|attempt| (attempt.row.fence, attempt.row.worker))
            .collect();
        // As many as there were at most: a job is bound to the worker that has its checkpoint.
        let roomy = |index: usize, slots: i32| slots.max(self.truth.most_slots_of(index));
        let machines: Vec<_> = self
            .machines
            .iter()
            .enumerate()
            .map(|(index, machine)| (machine.worker, roomy(index, machine.slots)))
            .collect();
        let _ = self.transaction(leader, |double| {
            double.pause_queue(false);
            for (worker, slots) in &machines {
                double.steer(*worker, Some(Mode::Active), Some(*slots));
            }
            Ok(())
        });
        for (worker, slots) in machines {
            let connection = self.coordinators[leader]
                .lead
                .as_ref()
                .and_then(|lead| lead.sessions.get(&worker))
                .map(|session| session.connection);
            if let Some(connection) = connection {
                self.send_down(connection, Down::SetSlots(slots));
                for (fence, _) in frozen.iter().filter(|(_, holder)| *holder == worker) {
                    let thaw = Message::SetPaused {
                        fence: *fence,
                        paused: false,
                    };
                    self.send_down(connection, Down::About(thaw));
                }
            }
        }
        if !held.is_empty() {
            self.release_held(leader, &held);
        }
        self.want_dispatch(leader);
    }
}

fn submit(
    double: &mut Double,
    now: chrono::DateTime<chrono::Utc>,
    request: &str,
    mut specs: Vec<JobSpec>,
    retry_of: Option<JobId>,
) -> Result<Vec<JobId>, Refused> {
    let ids = double.reserve_ids(specs.len());
    let mut jobs = Vec::new();
    for (index, spec) in specs.iter_mut().enumerate() {
        for dependency in &mut spec.after {
            if dependency.job.0 < 0 {
                dependency.job = ids[usize::try_from(-dependency.job.0 - 1).unwrap_or_default()];
            }
        }
        let met = spec
            .after
            .iter()
            .map(|dependency| {
                if ids.contains(&dependency.job) {
                    return Ok(false);
                }
                let states = double.states(&[dependency.job]);
                let state = states.first().map(|(_, state)| *state);
                match standing(dependency.condition, state) {
                    Standing::Met => Ok(true),
                    Standing::Open => Ok(false),
                    Standing::Impossible => Err(Refused::Stale),
                }
            })
            .collect::<Result<Vec<bool>, Refused>>()?;
        let unmet = met.iter().filter(|met| !**met).count() as i32;
        jobs.push(NewJob {
            id: ids[index],
            job: Job::submitted(spec, unmet),
            spec: spec.clone(),
            met,
            retry_of,
        });
    }
    double.remember(now, request, 0, &ids)?;
    double.insert_jobs(now, "a person", &jobs);
    Ok(ids)
}
