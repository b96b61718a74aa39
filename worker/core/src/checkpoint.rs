//! Published checkpoints as the agent tells of them, and which of them are kept.

/// Checkpoints in one greeting, at most; further ones are told after it.
pub const GREETED: usize = 500;

/// Checkpoints that wait for an answer at a time.
pub const IN_FLIGHT: u32 = 100;

/// A checkpoint among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointId {
    /// The attempt that published it.
    pub fence: i64,
    /// Its number within the attempt.
    pub number: i32,
}

/// A published checkpoint, with what is known of it so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Which.
    pub id: CheckpointId,
    /// The job.
    pub job_id: i64,
    /// Number of the attempt within the job.
    pub attempt: i32,
    /// How far the job was, as it counts itself.
    pub step: Option<i64>,
    /// What the job says about it.
    pub note: String,
    /// Folder with its contents.
    pub path: String,
    /// Files in it.
    pub files: i32,
    /// Size of its contents in bytes.
    pub bytes: u64,
    /// Hash over its contents; empty while it is being computed.
    pub hash: String,
    /// When it was published, in microseconds since the Unix epoch.
    pub created_us: i64,
    /// Its contents are kept no more.
    pub removed: bool,
}

/// The coordinator's answer to a published checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is recorded.
    Recorded,
    /// Its attempt had been given up: nobody resumes from it.
    Refused,
    /// Nobody will want it any more.
    Remove,
}

/// Which checkpoints of a job need not keep their contents, by attempt and number in order. Of the
/// attempt that runs, and of all before it together, the newest `keep` stay: the one that runs may
/// still read what it resumed from.
pub fn surplus(kept: &[(i32, i32)], running: Option<i32>, keep: usize) -> Vec<(i32, i32)> {
    let (own, earlier): (Vec<_>, Vec<_>) = kept
        .iter()
        .copied()
        .partition(|(attempt, _)| Some(*attempt) == running);
    [earlier, own]
        .iter()
        .flat_map(|part| &part[..part.len().saturating_sub(keep)])
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_and_what_may_be_read_does_too() {
        let kept = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)];
        assert_eq!(surplus(&kept, None, 3), [(1, 1), (1, 2)]);
        assert_eq!(surplus(&kept, Some(2), 3), []);
        assert_eq!(surplus(&kept, Some(2), 2), [(2, 1)]);
        assert_eq!(surplus(&kept, Some(3), 1), kept[..4]);
        assert_eq!(surplus(&[], Some(1), 3), []);
    }
}
