//! Conditions that much rests on, by name, so that the simulation can take one away and has to notice.
//! In the programs that are shipped none can be taken away, and nothing is looked up.

/// A condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// A report about an attempt that has ended no longer decides about its job.
    Fence,
    /// The late result of a given-up attempt decides nothing while its successor runs.
    LateResult,
    /// A failure or an interruption is followed by another attempt only while the budget lasts.
    Budget,
    /// A worker forgets an attempt only once its result and its output are stored.
    Forget,
    /// What a greeting tells of checkpoints is recorded before a verdict ends their attempt.
    PublishFirst,
    /// A silent worker is lost only after the longer of the two times.
    LostAfter,
}

#[cfg(feature = "breakable-guards")]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Guard>> = const { std::cell::Cell::new(None) };
}

/// Takes a condition away on this thread, or none.
#[cfg(feature = "breakable-guards")]
pub fn take_away(guard: Option<Guard>) {
    BROKEN.set(guard);
}

/// True when the condition was taken away.
#[cfg(feature = "breakable-guards")]
pub(crate) fn is_broken(guard: Guard) -> bool {
    BROKEN.get() == Some(guard)
}

/// True when the condition was taken away, which cannot be here.
#[cfg(not(feature = "breakable-guards"))]
pub(crate) const fn is_broken(_: Guard) -> bool {
    false
}
