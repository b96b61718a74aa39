//! Conditions that much rests on, by name, so that the simulation can take one away and has to notice.
//! In the programs that are shipped none can be taken away, and nothing is looked up.

/// A condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// An attempt is given back only while it has not started.
    Revocation,
    /// The end of an attempt is told after everything that it has published.
    EndLast,
    /// What waits is started only by an agent that was answered lately.
    StartWithin,
    /// An exclusive attempt ends itself when its lease does.
    ExclusiveLease,
    /// An exclusive attempt is handed out with a lease or cannot start.
    LeaseToStart,
    /// After a restart of the machine a missing record proves nothing.
    MissingRecord,
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
