//! The coordinator's decisions: pure functions on recorded facts. No I/O, no clock, no randomness:
//! the time and random numbers are arguments.

pub mod alarm;
pub mod attempt;
pub mod checkpoint;
pub mod dependency;
pub mod dispatch;
pub mod explain;
pub mod failure;
pub mod gpu;
pub mod guard;
pub mod health;
pub mod id;
pub mod job;
pub mod leadership;
pub mod lease;
pub mod ledger;
pub mod measures;
pub mod notice;
pub mod outcome;
pub mod output;
pub mod pace;
pub mod placement;
pub mod progress;
pub mod reconcile;
pub mod retry;
pub mod silence;
pub mod spec;
pub mod standstill;
pub mod tracker;

pub use attempt::AttemptState;
pub use failure::{FailureCause, RetryRules};
pub use id::{AttemptNumber, Fence, JobId, Term, WorkerId};
pub use job::JobState;
pub use outcome::{Cause, Facts, Outcome, OutcomeKind, StopCause};
pub use output::HoleCause;
pub use progress::Progress;
pub use spec::{Condition, Demand, Dependency, JobSpec};
