//! The clocks of this machine. Agent and shim read the same ones, so a moment by one is that moment
//! by the other.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Difference between the clocks that counts as a jump. Smaller ones are corrections.
const JUMP: Duration = Duration::from_secs(30);

/// Time by the clock that never jumps.
pub(crate) fn now() -> Duration {
    read(ClockId::Monotonic)
}

/// Microseconds since the Unix epoch, by the wall clock.
pub(crate) fn wall_us() -> i64 {
    i64::try_from(read(ClockId::Realtime).as_micros()).unwrap_or(i64::MAX)
}

fn read(clock: ClockId) -> Duration {
    // The kernel gives whole seconds and normalised nanoseconds; a wall clock set before 1970 is
    // the only time that does not fit.
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

/// How far the wall clock is ahead of the clock that never jumps.
pub(crate) fn wall_offset() -> Duration {
    let now = now();
    read(ClockId::Realtime).saturating_sub(now)
}

/// False when a clock has jumped since the wall clock was ahead by `offset`.
pub(crate) fn is_current(offset: Duration) -> bool {
    wall_offset().abs_diff(offset) <= JUMP
}

/// Notices that the machine slept or its clock was set: then the clocks no longer differ by what
/// they did.
#[derive(Debug)]
pub(crate) struct JumpWatch {
    wall: Duration,
    since_boot: Duration,
    /// `wall` when it was looked at last.
    latest: Duration,
}

impl JumpWatch {
    /// Remembers how far the clocks are apart.
    pub(crate) fn new() -> Self {
        let wall = wall_offset();
        Self {
            wall,
            since_boot: read(ClockId::Boottime).saturating_sub(now()),
            latest: wall,
        }
    }

    /// How far the wall clock was ahead of the clock that never jumps at the last look.
    pub(crate) fn latest(&self) -> Duration {
        self.latest
    }

    /// True once after a jump.
    pub(crate) fn has_jumped(&mut self) -> bool {
        let before = std::mem::replace(self, Self::new());
        let jumped = before.wall.abs_diff(self.wall) > JUMP
            || before.since_boot.abs_diff(self.since_boot) > JUMP;
        if !jumped {
            // A slow drift must add up, so the first reading stays the reference.
            let latest = self.latest;
            *self = Self { latest, ..before };
        }
        jumped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_told_once_and_a_correction_never() {
        let mut watch = JumpWatch::new();
        assert!(!watch.has_jumped());
        watch.wall += Duration::from_secs(3600);
        assert!(watch.has_jumped());
        assert!(!watch.has_jumped());
        watch.since_boot = watch.since_boot.saturating_add(Duration::from_secs(5));
        assert!(!watch.has_jumped());
    }

    #[test]
    fn what_was_agreed_before_a_jump_is_not_current() {
        let offset = wall_offset();
        assert!(is_current(offset));
        assert!(is_current(offset + JUMP / 2));
        assert!(!is_current(offset + JUMP * 2));
        assert!(!is_current(offset - JUMP * 2));
    }
}
