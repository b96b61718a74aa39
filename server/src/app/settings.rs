//! The times and sizes that the coordinator works with.

use std::time::Duration;

use qctl_server_core::alarm::{Pace, setting};
use qctl_server_core::silence;

/// The times and sizes that the coordinator works with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Time between a worker's heartbeats.
    pub heartbeat_interval: Duration,
    /// Silence of a worker after which it counts as unreachable.
    pub unreachable_after: Duration,
    /// Silence of a worker after which its attempts are given up.
    pub lost_after: Duration,
    /// How long jobs may wait while none runs anywhere before people are told.
    pub standstill_after: Duration,
    /// Mean wait before the first retry; doubles with each further one.
    pub retry_base: Duration,
    /// Longest wait before a retry.
    pub retry_most: Duration,
    /// How long a job waits for the worker that has its checkpoint.
    pub checkpoint_wait: Duration,
    /// How long the checkpoints of a job that did not end well are kept after its end.
    pub checkpoints_kept: Duration,
    /// Checkpoints up to this size, in bytes, are copied to the coordinator without being asked for.
    pub checkpoint_upload_bytes: u64,
    /// Most bytes that the copies of all checkpoints may take.
    pub checkpoint_bytes_kept: u64,
    /// How long request ids are remembered.
    pub requests_kept: Duration,
    /// Age at which ended jobs and their output are deleted.
    pub history_kept: Duration,
    /// Stored bytes of output above which the oldest ended jobs lose theirs.
    pub log_bytes_kept: u64,
    /// Longest time between two runs of the dispatcher and of the reconcilers.
    pub wake_interval: Duration,
    /// Run time from which on a success is told.
    pub success_told_after: Duration,
    /// From which figure on something is an alarm, where that is not as usual.
    pub alarms: setting::Settings,
    /// How long it must last.
    pub alarm_pace: Pace,
    /// What holds about silence where neither job nor worker says anything.
    pub silence: silence::Rules,
    /// How long a job may leave its GPUs unused where neither job nor worker says anything; zero for ever.
    pub gpu_idle: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(5),
            unreachable_after: Duration::from_secs(60),
            lost_after: Duration::from_secs(30 * 60),
            standstill_after: Duration::from_secs(15 * 60),
            retry_base: Duration::from_secs(5),
            retry_most: Duration::from_secs(10 * 60),
            checkpoint_wait: Duration::from_secs(24 * 60 * 60),
            checkpoints_kept: Duration::from_secs(7 * 24 * 60 * 60),
            checkpoint_upload_bytes: 64 * 1024 * 1024,
            checkpoint_bytes_kept: 8 * 1024 * 1024 * 1024,
            requests_kept: Duration::from_secs(30 * 24 * 60 * 60),
            history_kept: Duration::from_secs(90 * 24 * 60 * 60),
            log_bytes_kept: 1024 * 1024 * 1024,
            wake_interval: Duration::from_secs(5),
            success_told_after: Duration::from_secs(120),
            alarms: setting::Settings::new(),
            alarm_pace: Pace::default(),
            silence: silence::Rules::default(),
            gpu_idle: None,
        }
    }
}
