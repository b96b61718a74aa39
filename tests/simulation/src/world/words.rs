//! What one core calls something, in the words of the other.

use qctl_server_core::StopCause;
use qctl_server_core::outcome::End;

/// The worker's name for a cause.
pub(super) fn cause_of(cause: StopCause) -> qctl_worker_core::enforcement::StopCause {
    use qctl_worker_core::enforcement::StopCause as There;
    match cause {
        StopCause::Cancel => There::Cancel,
        StopCause::TimeLimit => There::TimeLimit,
        StopCause::Silence => There::Silence,
        StopCause::Lease => There::Lease,
        StopCause::Superseded => There::Superseded,
        StopCause::Drill => There::Drill,
        StopCause::GpuFault => There::GpuFault,
        StopCause::GpuFallback => There::GpuFallback,
    }
}

/// The coordinator's name for a cause.
pub(super) fn cause_from(cause: qctl_worker_core::enforcement::StopCause) -> StopCause {
    use qctl_worker_core::enforcement::StopCause as There;
    match cause {
        There::Cancel => StopCause::Cancel,
        There::TimeLimit => StopCause::TimeLimit,
        There::Silence => StopCause::Silence,
        There::Lease => StopCause::Lease,
        There::Superseded => StopCause::Superseded,
        There::Drill => StopCause::Drill,
        There::GpuFault => StopCause::GpuFault,
        There::GpuFallback => StopCause::GpuFallback,
    }
}

/// The coordinator's name for an end.
pub(super) fn end_from(end: qctl_worker_core::agent::End) -> End {
    use qctl_worker_core::agent::End as There;
    match end {
        There::Waited => End::Waited,
        There::CannotStart => End::CannotStart,
        There::NeverStarted => End::NeverStarted,
        There::MachineLost => End::MachineLost,
        There::ShimLost | There::Unknown => End::ShimLost,
    }
}
