//! New jobs: checked, numbered, and stored in one transaction or not at all.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use qctl_server_core::dependency::{Standing, standing};
use qctl_server_core::explain::never;
use qctl_server_core::job::Job;
use qctl_server_core::ledger::{AfterCommit, NewEvent};
use qctl_server_core::spec::MAX_BATCH;
use qctl_server_core::{Demand, JobId, JobSpec, JobState};
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::{App, Caller, Error, Role};
use crate::store::StoreError;
use crate::store::checkpoints::{begin_from, hold_checkpoints, usable};
use crate::store::ledger::tell;
use crate::store::requests::remember;
use crate::store::submit::{NewJob, insert_jobs, lock_states};

/// Longest request id, in bytes.
const MAX_REQUEST_ID: usize = 128;
/// Most memory that a pattern may take once it is compiled, in bytes; workers have the same limit.
const MAX_COMPILED_BYTES: usize = 1 << 20;
/// Most warnings in one answer, and different demands that are looked at for them.
const MAX_WARNINGS: usize = 20;
/// Workers that are looked at for them.
const MAX_WORKERS: i64 = 1_000;
/// Name of the unique index on request ids.
const REQUESTS_KEY: &str = "requests_pkey";

/// What a submission made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// The jobs in the order of the request.
    pub jobs: Vec<JobId>,
    /// True when the request id was seen before and nothing new was made.
    pub replayed: bool,
    /// What no known worker can ever run, each a sentence.
    pub warnings: Vec<String>,
}

/// A request id with the digest of what was asked for.
#[derive(Clone, Debug)]
pub(super) struct RequestKey {
    submitter: String,
    id: String,
    digest: Vec<u8>,
}

impl RequestKey {
    /// `None` when the caller gave no id: then nothing is remembered.
    pub(super) fn new(
        caller: &Caller,
        id: &str,
        method: &str,
        payload: &impl Serialize,
    ) -> Result<Option<Self>, Error> {
        if id.is_empty() {
            return Ok(None);
        }
        if id.len() > MAX_REQUEST_ID || id.chars().any(char::is_control) {
            return Err(Error::field(
                "request_id",
                format!("is longer than {MAX_REQUEST_ID} bytes or has control characters"),
                "a UUID is a good request id",
            ));
        }
        let payload = serde_json::to_vec(payload)
            .map_err(|error| Error::Internal(format!("a request cannot be digested: {error}")))?;
        let mut digest = Sha256::new();
        digest.update(method.as_bytes());
        digest.update([0]);
        digest.update(&payload);
        Ok(Some(Self {
            submitter: caller.name.clone(),
            id: id.to_owned(),
            digest: digest.finalize().to_vec(),
        }))
    }

    /// Remembers the request inside the transaction that carries it out.
    pub(super) async fn remember(
        key: Option<&Self>,
        app: &App,
        conn: &mut PgConnection,
        jobs: &[JobId],
    ) -> Result<(), StoreError> {
        match key {
            None => Ok(()),
            Some(key) => {
                remember(
                    conn,
                    app.clock.now(),
                    &key.submitter,
                    &key.id,
                    &key.digest,
                    jobs,
                )
                .await
            }
        }
    }
}

impl App {
    /// What an earlier call with this request id did, if there was one.
    ///
    /// # Errors
    /// [`Error::RequestIdReused`] when it asked for something else.
    pub(super) async fn replay(
        &self,
        key: Option<&RequestKey>,
    ) -> Result<Option<Vec<JobId>>, Error> {
        let Some(key) = key else { return Ok(None) };
        match self.store.request(&key.submitter, &key.id).await? {
            None => Ok(None),
            Some(known) if known.digest == key.digest => Ok(Some(known.jobs)),
            Some(_) => Err(Error::RequestIdReused(key.id.clone())),
        }
    }

    /// Runs a changing call once: `work` remembers the key in its transaction, and when that finds
    /// the key known the earlier call's answer is given instead. The flag says that it was.
    pub(super) async fn once<W>(
        &self,
        key: Option<&RequestKey>,
        work: W,
    ) -> Result<(Vec<JobId>, bool), Error>
    where
        W: Future<Output = Result<Vec<JobId>, Error>>,
    {
        match work.await {
            Ok(jobs) => Ok((jobs, false)),
            Err(Error::Store(StoreError::Exists(constraint))) if constraint == REQUESTS_KEY => {
                match self.replay(key).await? {
                    Some(jobs) => Ok((jobs, true)),
                    // It was forgotten between the two statements.
                    None => Err(Error::Internal("a request id came and went".to_owned())),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Submits one job or a batch. A dependency may name an earlier job of the batch by the negative
    /// of its position, counted from 1.
    ///
    /// # Errors
    /// [`Error::InvalidField`], [`Error::DependencyImpossible`], [`Error::RequestIdReused`],
    /// [`Error::LimitExceeded`]; nothing is stored then.
    pub async fn submit(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        specs: Vec<JobSpec>,
    ) -> Result<Submitted, Error> {
        let submitted = self.submit_checked(caller, request_id, specs).await;
        if let Err(error) = &submitted {
            self.tell_refusal(caller, error).await;
        }
        submitted
    }

    async fn submit_checked(
        self: &Arc<Self>,
        caller: &Caller,
        request_id: &str,
        specs: Vec<JobSpec>,
    ) -> Result<Submitted, Error> {
        caller.require(Role::Submit)?;
        if specs.is_empty() {
            return Err(Error::field("jobs", "is empty", "name at least one job"));
        }
        if specs.len() > MAX_BATCH {
            return Err(Error::LimitExceeded {
                what: "the number of jobs in one submission".to_owned(),
                limit: MAX_BATCH as u64,
            });
        }
        let specs: Vec<JobSpec> = specs.into_iter().map(JobSpec::normalised).collect();
        let names_others = check_batch(&specs)?;
        let key = RequestKey::new(caller, request_id, "submit", &specs)?;
        // A repeated call is answered as before, whatever became of the jobs it waits for.
        if names_others && let Some(jobs) = self.replay(key.as_ref()).await? {
            return Ok(Submitted {
                jobs,
                replayed: true,
                warnings: Vec::new(),
            });
        }
        let unusual = Unusual::of(&specs);
        let work = self.store_batch(caller, key.clone(), specs, None);
        let (jobs, replayed) = self.once(key.as_ref(), work).await?;
        let mut warnings = Vec::new();
        if !replayed {
            warnings = self.warnings(&jobs, &unusual).await;
        }
        Ok(Submitted {
            jobs,
            replayed,
            warnings,
        })
    }

    /// What of these new jobs no known worker can ever run. They are stored by now, so that nothing
    /// may fail any more.
    async fn warnings(&self, jobs: &[JobId], unusual: &[Unusual]) -> Vec<String> {
        if unusual.is_empty() {
            return Vec::new();
        }
        let known = match self.store.worker_totals(MAX_WORKERS).await {
            Ok(known) => known,
            Err(error) => {
                tracing::debug!("nobody can say whether the new jobs fit anywhere: {error}");
                return Vec::new();
            }
        };
        let workers: Vec<(&str, Demand)> = known
            .iter()
            .map(|(name, total)| (name.as_str(), *total))
            .collect();
        unusual
            .iter()
            .filter_map(|unusual| {
                let pinned = Some(unusual.pinned.as_str()).filter(|name| !name.is_empty());
                let why = never(unusual.needs, pinned, &workers)?;
                let first = jobs.get(unusual.first)?;
                Some(match unusual.count {
                    1 => format!("Job {first} cannot run as things are. {why}"),
                    count => format!(
                        "Job {first} and {} more cannot run as things are. {why}",
                        count - 1
                    ),
                })
            })
            .take(MAX_WARNINGS)
            .collect()
    }

    /// Stores checked jobs.
    pub(super) async fn store_batch(
        self: &Arc<Self>,
        caller: &Caller,
        key: Option<RequestKey>,
        mut specs: Vec<JobSpec>,
        again: Option<Again>,
    ) -> Result<Vec<JobId>, Error> {
        let ids = self.store.reserve_ids(specs.len()).await?;
        for spec in &mut specs {
            for dependency in &mut spec.after {
                if let Ok(position) = usize::try_from(-dependency.job.0)
                    && let Some(id) = position.checked_sub(1).and_then(|index| ids.get(index))
                {
                    dependency.job = *id;
                }
            }
        }
        let app = Arc::clone(self);
        let submitter = caller.name.clone();
        self.transact(move |conn| {
            Box::pin(async move {
                RequestKey::remember(key.as_ref(), &app, conn, &ids).await?;
                let others: Vec<JobId> = specs
                    .iter()
                    .flat_map(|spec| spec.after.iter().map(|dependency| dependency.job))
                    .filter(|job| ids.binary_search(job).is_err())
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect();
                let states = match others.is_empty() {
                    true => HashMap::new(),
                    false => lock_states(conn, &others).await?,
                };
                let jobs = specs
                    .into_iter()
                    .enumerate()
                    .map(|(index, spec)| {
                        let met = met_by(&format!("jobs[{index}]."), &spec, &states, &ids)?;
                        let unmet = met.iter().filter(|met| !**met).count();
                        let job = Job::submitted(&spec, i32::try_from(unmet).unwrap_or(i32::MAX));
                        Ok(NewJob {
                            id: ids[index],
                            job,
                            spec,
                            met,
                            retry_of: again.map(|again| again.of),
                        })
                    })
                    .collect::<Result<Vec<_>, Error>>()?;
                insert_jobs(conn, app.clock.now(), &submitter, &jobs).await?;
                if let Some(Again {
                    of,
                    from: Some(from),
                }) = again
                {
                    for new in &jobs {
                        app.begin_from(conn, new.id, of, from, &submitter).await?;
                    }
                }
                let after = AfterCommit {
                    changed: ids.iter().copied().collect(),
                    dispatch: true,
                    ..AfterCommit::default()
                };
                Ok((ids, after))
            })
        })
        .await
    }
}

/// Where the first attempt of a job that repeats another one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum FromCheckpoint {
    /// At the newest checkpoint that is kept.
    Newest,
    /// At this one.
    Named {
        /// Number of the attempt that published it.
        attempt: i32,
        /// Its number within that attempt.
        number: i32,
    },
}

/// What new jobs repeat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Again {
    /// The job that they repeat.
    pub(super) of: JobId,
    /// Where they begin; `None` at the beginning.
    pub(super) from: Option<FromCheckpoint>,
}

impl App {
    /// Has a new job resume from a checkpoint of another one.
    async fn begin_from(
        &self,
        conn: &mut PgConnection,
        job: JobId,
        of: JobId,
        from: FromCheckpoint,
        actor: &str,
    ) -> Result<(), Error> {
        let named = match from {
            FromCheckpoint::Newest => None,
            FromCheckpoint::Named { attempt, number } => Some((attempt, number)),
        };
        // What is found is not given up until this is committed, and then not either.
        hold_checkpoints(conn, of).await?;
        let Some((id, publisher, attempt)) = usable(conn, of, named).await? else {
            return Err(Error::NothingToResume {
                job: of,
                checkpoint: named.map(|(attempt, number)| format!("{attempt}.{number}")),
            });
        };
        begin_from(conn, job, id).await?;
        let event = NewEvent {
            job: Some(job),
            attempt: None,
            worker: String::new(),
            kind: "from_checkpoint",
            message: format!(
                "its first attempt resumes from checkpoint {attempt}.{} of job {publisher}",
                id.number
            ),
            actor: actor.to_owned(),
        };
        tell(conn, self.clock.now(), &[event]).await?;
        Ok(())
    }
}

/// Jobs of a submission that need the same, and more than every worker has.
struct Unusual {
    needs: Demand,
    pinned: String,
    /// Position of the first.
    first: usize,
    count: usize,
}

impl Unusual {
    fn of(specs: &[JobSpec]) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for (first, spec) in specs.iter().enumerate() {
            let (needs, pinned) = (spec.demand, &spec.worker);
            if needs == Demand::default() && pinned.is_empty() {
                continue;
            }
            let same = found
                .iter_mut()
                .find(|other| other.needs == needs && other.pinned == *pinned);
            if let Some(same) = same {
                same.count += 1;
            } else if found.len() < MAX_WARNINGS {
                found.push(Self {
                    needs,
                    pinned: pinned.clone(),
                    first,
                    count: 1,
                });
            }
        }
        found
    }
}

/// Checks every job of a batch. Returns whether any waits for a job outside of it.
pub(super) fn check_batch(specs: &[JobSpec]) -> Result<bool, Error> {
    let mut names_others = false;
    let mut compiled: BTreeSet<&str> = BTreeSet::new();
    for (index, spec) in specs.iter().enumerate() {
        check_spec(&format!("jobs[{index}]."), spec, &mut compiled)?;
        for (place, dependency) in spec.after.iter().enumerate() {
            let job = dependency.job.0;
            names_others |= job > 0;
            let position = usize::try_from(job.unsigned_abs()).unwrap_or(usize::MAX);
            if job < 0 && position > index {
                return Err(Error::field(
                    format!("jobs[{index}].after[{place}]"),
                    format!("names position {position} of the batch, which is not an earlier one"),
                    "a job can wait for jobs before it in the batch",
                ));
            }
        }
    }
    Ok(names_others)
}

/// Checks one job; `prefix` stands before the names of its fields. Patterns among `compiled` are known
/// to be good, and those of this job join them.
pub(super) fn check_spec<'a>(
    prefix: &str,
    spec: &'a JobSpec,
    compiled: &mut BTreeSet<&'a str>,
) -> Result<(), Error> {
    spec.validate().map_err(|error| Error::InvalidField {
        field: format!("{prefix}{}", error.field),
        problem: error.problem,
        hint: error.hint,
    })?;
    for (field, pattern) in [
        ("progress_pattern", &spec.progress_pattern),
        ("contradicted_by", &spec.contradicted_by),
    ] {
        // A batch seldom has more than one, and compiling takes its time.
        if pattern.is_empty() || !compiled.insert(pattern) {
            continue;
        }
        check_pattern(pattern)
            .map_err(|problem| Error::field(format!("{prefix}{field}"), problem, ""))?;
    }
    Ok(())
}

/// Refuses what the worker could not use: a mistake is to be seen now, not in a log next week.
fn check_pattern(pattern: &str) -> Result<(), String> {
    regex::bytes::RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_COMPILED_BYTES)
        .build()
        .map(drop)
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "is too large a pattern".to_owned(),
            error => {
                let text = error.to_string();
                let what = text.lines().last().unwrap_or_default();
                format!(
                    "is not a regular expression: {}",
                    what.trim_start_matches("error: ")
                )
            }
        })
}

/// Which dependencies of a spec are met. Jobs of `batch` are new and have not ended.
pub(super) fn met_by(
    prefix: &str,
    spec: &JobSpec,
    states: &HashMap<JobId, JobState>,
    batch: &[JobId],
) -> Result<Vec<bool>, Error> {
    spec.after
        .iter()
        .enumerate()
        .map(|(place, dependency)| {
            if batch.binary_search(&dependency.job).is_ok() {
                return Ok(false);
            }
            let field = format!("{prefix}after[{place}]");
            let Some(state) = states.get(&dependency.job) else {
                return Err(Error::field(
                    field,
                    format!("names job {}, which does not exist", dependency.job),
                    "look at the list of jobs",
                ));
            };
            match standing(dependency.condition, Some(*state)) {
                Standing::Met => Ok(true),
                Standing::Open => Ok(false),
                Standing::Impossible => Err(Error::DependencyImpossible {
                    field,
                    on: dependency.job,
                    condition: dependency.condition,
                    state: *state,
                }),
            }
        })
        .collect()
}
