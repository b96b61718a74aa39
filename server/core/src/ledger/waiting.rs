//! What jobs wait for.

use std::collections::BTreeMap;

use super::{COORDINATOR, Ledger};
use crate::dependency::{Open, Standing, standing};
use crate::id::JobId;
use crate::job::JobEvent;

/// What a look at dependencies found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Dependencies to be marked as met: who waits, and for whom.
    pub met: Vec<(JobId, JobId)>,
    /// Anything was changed.
    pub changed: bool,
}

impl Ledger {
    /// The wait of a job may be over.
    pub fn time_came(&mut self, job: JobId) {
        // Whoever changed the job in the meantime has the last word.
        let _ = self.job_event(job, &JobEvent::TimeCame, COORDINATOR);
    }

    /// Settles what loaded jobs wait for. A job that can never run is cancelled.
    pub fn settle_dependencies(&mut self, open: &[Open]) -> Settled {
        let mut settled = Settled::default();
        let mut counts: BTreeMap<JobId, i32> = BTreeMap::new();
        let mut hopeless: BTreeMap<JobId, &Open> = BTreeMap::new();
        for dependency in open {
            match standing(dependency.condition, dependency.state) {
                Standing::Open => {}
                Standing::Met => {
                    settled.met.push((dependency.job, dependency.on));
                    *counts.entry(dependency.job).or_default() += 1;
                }
                Standing::Impossible => {
                    hopeless.entry(dependency.job).or_insert(dependency);
                }
            }
        }
        settled.changed = !settled.met.is_empty();
        for (job, count) in counts {
            let _ = self.job_event(job, &JobEvent::DependenciesMet(count), COORDINATOR);
        }
        for (job, on) in hopeless {
            let event = JobEvent::DependencyFailed(*on);
            settled.changed |= self.job_event(job, &event, COORDINATOR).is_ok();
        }
        settled
    }
}
