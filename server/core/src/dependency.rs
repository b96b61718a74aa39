//! Whether another job has ended as it should.

use crate::id::JobId;
use crate::job::JobState;
use crate::spec::Condition;

/// What is known of a dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The other job has ended as it should.
    Met,
    /// The other job has not ended.
    Open,
    /// The other job ended otherwise, or was deleted, and will never end as it should.
    Impossible,
}

/// A dependency that is not marked as met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// The job that waits.
    pub job: JobId,
    /// The job it waits for.
    pub on: JobId,
    /// How that one must end.
    pub condition: Condition,
    /// That one's state; `None` when it was deleted.
    pub state: Option<JobState>,
}

/// Decides where a dependency stands. `other` is the other job's state, `None` when it was deleted.
pub fn standing(condition: Condition, other: Option<JobState>) -> Standing {
    let Some(state) = other else {
        return Standing::Impossible;
    };
    let met = match state {
        JobState::Waiting | JobState::Held | JobState::Queued | JobState::Running => {
            return Standing::Open;
        }
        JobState::Succeeded => matches!(condition, Condition::Ok | Condition::Any),
        JobState::Failed | JobState::Cancelled => {
            matches!(condition, Condition::Failed | Condition::Any)
        }
    };
    if met {
        Standing::Met
    } else {
        Standing::Impossible
    }
}

/// Why a job can never run, in a sentence.
pub fn impossible(condition: Condition, on: JobId, other: Option<JobState>) -> String {
    let wish = match condition {
        Condition::Ok => "succeed",
        Condition::Failed => "fail",
        Condition::Any => "end",
    };
    match other {
        Some(state) => format!(
            "it can never run: job {on} was to {wish}, and it {}",
            ended(state)
        ),
        None => format!("it can never run: job {on} was to {wish}, and it was deleted"),
    }
}

fn ended(state: JobState) -> &'static str {
    match state {
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "was cancelled",
        JobState::Waiting | JobState::Held | JobState::Queued | JobState::Running => {
            "has not ended"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_against_every_state() {
        use Standing as D;
        for state in JobState::ALL.iter().copied() {
            let expected = match state {
                JobState::Succeeded => [D::Met, D::Impossible, D::Met],
                JobState::Failed | JobState::Cancelled => [D::Impossible, D::Met, D::Met],
                _ => [D::Open; 3],
            };
            assert_eq!(
                Condition::ALL.map(|condition| standing(condition, Some(state))),
                expected,
                "{state}"
            );
        }
        assert_eq!(standing(Condition::Any, None), D::Impossible);
        assert_eq!(
            impossible(Condition::Ok, JobId(7), Some(JobState::Failed)),
            "it can never run: job 7 was to succeed, and it failed"
        );
    }
}
