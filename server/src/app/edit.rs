//! Changes of what is to be run, before it runs.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use qctl_server_core::job::{JobEffect, JobEvent};
use qctl_server_core::ledger::{AfterCommit, Which};
use qctl_server_core::{JobId, JobSpec, JobState};
use serde::Serialize;
use sqlx::PgConnection;

use super::control::{refused, state_of};
use super::submit::{RequestKey, check_spec, met_by};
use super::{App, Caller, Error, Role};
use crate::store::submit::{lock_states, replace_dependencies, replace_spec, spec_of};

/// How often a job is asked back for one edit.
const TRIES: u32 = 3;

/// Jobs that are being edited now: the dispatcher leaves them where they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Edits(Arc<Mutex<HashMap<JobId, usize>>>);

/// Keeps a job from being assigned until it is dropped.
#[derive(Debug)]
pub(super) struct BeingEdited {
    edits: Edits,
    job: JobId,
}

impl Edits {
    fn begin(&self, job: JobId) -> BeingEdited {
        *self.lock().entry(job).or_default() += 1;
        BeingEdited {
            edits: self.clone(),
            job,
        }
    }

    /// The jobs that are being edited.
    pub(super) fn jobs(&self) -> Vec<JobId> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BeingEdited {
    fn drop(&mut self) {
        let mut jobs = self.edits.lock();
        if let Some(count) = jobs.get_mut(&self.job) {
            *count -= 1;
            if *count == 0 {
                jobs.remove(&self.job);
            }
        }
    }
}

/// One edit.
#[derive(Clone, Debug)]
struct Edit {
    job: JobId,
    spec: JobSpec,
    fields: Vec<Field>,
    actor: String,
    key: Option<RequestKey>,
}

impl App {
    /// Changes the spec of a job that has not started. A job that a worker has ready is asked back
    /// first.
    ///
    /// # Errors
    /// [`Error::InvalidField`], [`Error::JobNotFound`], [`Error::JobRunning`], [`Error::JobEnded`],
    /// [`Error::DependencyImpossible`]; [`Error::Conflict`] when the worker that has it ready does
    /// not give it back.
    pub async fn update(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        job: JobId,
        spec: JobSpec,
        mask: Vec<String>,
    ) -> Result<(), Error> {
        caller.require(Role::Submit)?;
        let fields = mask
            .iter()
            .map(|field| Field::parse(field))
            .collect::<Result<Vec<_>, _>>()?;
        if fields.is_empty() {
            return Err(Error::field(
                "update_mask",
                "is empty",
                "name the fields to change",
            ));
        }
        let key = RequestKey::new(caller, request_id, "update", &(job, &spec, &mask))?;
        if self.replay(key.as_ref()).await?.is_some() {
            return Ok(());
        }
        // While it is taken back the dispatcher leaves it alone. A round that began before that may
        // still give it away once.
        let being_edited = self.edits.begin(job);
        let work = Edit {
            job,
            spec,
            fields,
            actor: caller.name.clone(),
            key: key.clone(),
        };
        let mut tries = TRIES;
        loop {
            tries -= 1;
            self.take_back(job).await?;
            let app = Arc::clone(self);
            let edit = work.clone();
            let written = self.transact(move |conn| {
                Box::pin(async move {
                    RequestKey::remember(edit.key.as_ref(), &app, conn, &[edit.job]).await?;
                    let after = app.apply_update(conn, &edit).await?;
                    Ok((vec![edit.job], after))
                })
            });
            match self.once(key.as_ref(), written).await {
                Ok(_) => break,
                Err(Error::Conflict(_)) if tries > 0 => {}
                Err(error) => return Err(error),
            }
        }
        drop(being_edited);
        self.wake.dispatch();
        Ok(())
    }

    /// Asks a worker for a job back that it has ready, and waits a short while until it is.
    async fn take_back(self: &Arc<Self>, job: JobId) -> Result<(), Error> {
        let watch = self.changes.subscribe();
        let asked = self
            .in_ledger(job, move |ledger| {
                let state = state_of(ledger, job).ok_or(Error::JobNotFound(job))?;
                not_started(job, state)?;
                let ready = ledger.current(job).is_some();
                if ready {
                    ledger.job_effect(job, JobEffect::AskBack);
                }
                Ok(ready)
            })
            .await?;
        if asked {
            self.obeyed(watch, job, move |ledger| ledger.current(job).is_none())
                .await?;
        }
        Ok(())
    }

    async fn apply_update(
        &self,
        conn: &mut PgConnection,
        edit: &Edit,
    ) -> Result<AfterCommit, Error> {
        let job = edit.job;
        let mut ledger = self.open_ledger(conn, Which::Jobs(&[job])).await?;
        let state = state_of(&ledger, job).ok_or(Error::JobNotFound(job))?;
        not_started(job, state)?;
        if ledger.current(job).is_some() {
            return Err(Error::Conflict(job));
        }
        let mut spec = spec_of(conn, job).await?.ok_or(Error::JobNotFound(job))?;
        for field in &edit.fields {
            field.copy(&edit.spec, &mut spec);
        }
        let spec = spec.normalised();
        check_spec("spec.", &spec, &mut BTreeSet::new())?;
        replace_spec(conn, job, &spec).await?;
        let unmet_dependencies = if edit.fields.contains(&Field::After) {
            self.replace_after(conn, job, &spec).await?
        } else {
            // Left as they are: a job that they were met by may be deleted by now.
            ledger.job(job).map_or(0, |row| row.job.unmet_dependencies)
        };
        ledger
            .job_event(
                job,
                &JobEvent::Edited {
                    unmet_dependencies,
                    retries: spec.retries(),
                    resumes: spec.resumes(),
                    rules: spec.retry_rules.clone(),
                },
                &edit.actor,
            )
            .map_err(|refusal| refused(job, &ledger, refusal))?;
        Ok(self.save_ledger(conn, ledger).await?)
    }

    /// Has a job wait for what its new spec names. Returns how many of these are not met.
    async fn replace_after(
        &self,
        conn: &mut PgConnection,
        job: JobId,
        spec: &JobSpec,
    ) -> Result<i32, Error> {
        if let Some(place) = spec
            .after
            .iter()
            .position(|on| on.job.0 < 0 || on.job == job)
        {
            return Err(Error::field(
                format!("spec.after[{place}]"),
                "does not name another job",
                "give the number of the job to wait for",
            ));
        }
        let others: Vec<JobId> = spec.after.iter().map(|dependency| dependency.job).collect();
        let states: HashMap<JobId, JobState> = match others.is_empty() {
            true => HashMap::new(),
            false => lock_states(conn, &others).await?,
        };
        let met = met_by("spec.", spec, &states, &[])?;
        self.refuse_circle(conn, job, &others).await?;
        replace_dependencies(conn, job, &spec.after, &met).await?;
        let unmet = met.iter().filter(|met| !**met).count();
        Ok(i32::try_from(unmet).unwrap_or(i32::MAX))
    }

    /// Refuses dependencies through which a job would wait for itself.
    async fn refuse_circle(
        &self,
        conn: &mut PgConnection,
        job: JobId,
        on: &[JobId],
    ) -> Result<(), Error> {
        if crate::store::dependencies::leads_to(conn, on, job).await? {
            return Err(Error::field(
                "spec.after",
                format!("would make job {job} wait for itself"),
                "take out the job that waits for this one",
            ));
        }
        Ok(())
    }
}

fn not_started(job: JobId, state: JobState) -> Result<(), Error> {
    match state {
        JobState::Running => Err(Error::JobRunning(job)),
        state if state.is_final() => Err(Error::JobEnded { job, state }),
        _ => Ok(()),
    }
}

/// A field of a spec that can be changed before the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Field {
    Name,
    Command,
    Cwd,
    Env,
    Tracker,
    Workspace,
    Labels,
    Priority,
    After,
    TimeLimit,
    WarnBefore,
    Retries,
    Resumes,
    Demand,
    Worker,
    Exclusive,
    RetryOn,
    NoRetryOn,
    CheckpointExitCode,
    WarnSignal,
    StopGrace,
    ProgressPattern,
    ContradictedBy,
    Pty,
    LogLimitBytes,
    Artifacts,
    Notify,
    Alarms,
    Silence,
    GpuIdle,
}

impl Field {
    fn parse(text: &str) -> Result<Self, Error> {
        Ok(match text {
            "name" => Self::Name,
            "command" => Self::Command,
            "cwd" => Self::Cwd,
            "env" => Self::Env,
            "tracker" => Self::Tracker,
            "workspace" => Self::Workspace,
            "labels" => Self::Labels,
            "priority" => Self::Priority,
            "after" => Self::After,
            "time_limit" => Self::TimeLimit,
            "warn_before" => Self::WarnBefore,
            "retries" => Self::Retries,
            "resumes" => Self::Resumes,
            "demand" => Self::Demand,
            "worker" => Self::Worker,
            "exclusive" => Self::Exclusive,
            "retry_on" => Self::RetryOn,
            "no_retry_on" => Self::NoRetryOn,
            "checkpoint_exit_code" => Self::CheckpointExitCode,
            "warn_signal" => Self::WarnSignal,
            "stop_grace" => Self::StopGrace,
            "progress_pattern" => Self::ProgressPattern,
            "contradicted_by" => Self::ContradictedBy,
            "pty" => Self::Pty,
            "log_limit_bytes" => Self::LogLimitBytes,
            "artifacts" => Self::Artifacts,
            "notify" => Self::Notify,
            "alarms" => Self::Alarms,
            "silence" => Self::Silence,
            "gpu_idle" => Self::GpuIdle,
            other => {
                return Err(Error::field(
                    "update_mask",
                    format!("names `{other}`, which cannot be changed"),
                    "submit a new job instead",
                ));
            }
        })
    }

    fn copy(self, from: &JobSpec, to: &mut JobSpec) {
        match self {
            Self::Name => to.name.clone_from(&from.name),
            Self::Command => {
                to.command.clone_from(&from.command);
                to.shell = from.shell;
            }
            Self::Cwd => to.cwd.clone_from(&from.cwd),
            Self::Env => to.env.clone_from(&from.env),
            Self::Tracker => to.tracker.clone_from(&from.tracker),
            Self::Workspace => to.workspace.clone_from(&from.workspace),
            Self::Labels => to.labels.clone_from(&from.labels),
            Self::Priority => to.priority = from.priority,
            Self::After => to.after.clone_from(&from.after),
            Self::TimeLimit => to.time_limit = from.time_limit,
            Self::WarnBefore => {
                to.warn_before = from.warn_before;
                to.warn_signal = from.warn_signal;
            }
            Self::Retries => to.retries = from.retries,
            Self::Resumes => to.resumes = from.resumes,
            Self::Demand => to.demand = from.demand,
            Self::Worker => to.worker.clone_from(&from.worker),
            Self::Exclusive => to.exclusive = from.exclusive,
            Self::RetryOn => to
                .retry_rules
                .retry_on
                .clone_from(&from.retry_rules.retry_on),
            Self::NoRetryOn => to
                .retry_rules
                .no_retry_on
                .clone_from(&from.retry_rules.no_retry_on),
            Self::CheckpointExitCode => to.checkpoint_exit_code = from.checkpoint_exit_code,
            Self::WarnSignal => to.warn_signal = from.warn_signal,
            Self::StopGrace => to.stop_grace = from.stop_grace,
            Self::ProgressPattern => to.progress_pattern.clone_from(&from.progress_pattern),
            Self::ContradictedBy => to.contradicted_by.clone_from(&from.contradicted_by),
            Self::Pty => to.pty = from.pty,
            Self::LogLimitBytes => to.log_limit_bytes = from.log_limit_bytes,
            Self::Artifacts => to.artifacts.clone_from(&from.artifacts),
            Self::Notify => to.notify = from.notify,
            Self::Alarms => to.alarms.clone_from(&from.alarms),
            Self::Silence => to.silence = from.silence,
            Self::GpuIdle => to.gpu_idle = from.gpu_idle,
        }
    }
}
