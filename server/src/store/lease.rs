//! The term in which this coordinator leads, and whether it may still act in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use qctl_server_core::Term;
use rustix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

/// Whether this coordinator leads, known without asking the database. Once ended it stays so:
/// leading again is another term with another lease.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    term: Term,
    /// By [`boot_time`], in microseconds.
    trusted_until: AtomicI64,
    ended: CancellationToken,
}

impl Lease {
    /// A lease that is trusted until this [`boot_time`].
    pub(crate) fn new(term: Term, trusted_until: Duration) -> Self {
        Self(Arc::new(Inner {
            term,
            trusted_until: AtomicI64::new(micros(trusted_until)),
            ended: CancellationToken::new(),
        }))
    }

    /// A lease that nobody takes away, for tests of what is done in it.
    #[cfg(test)]
    pub(crate) fn unlimited(term: Term) -> Self {
        Self::new(term, Duration::MAX)
    }

    /// The term.
    pub fn term(&self) -> Term {
        self.0.term
    }

    /// True while this coordinator may say that something is so.
    pub fn holds(&self) -> bool {
        self.is_live() && micros(boot_time()) < self.0.trusted_until.load(Ordering::Relaxed)
    }

    /// True until it is ended. Its time may be over nevertheless.
    pub(crate) fn is_live(&self) -> bool {
        !self.0.ended.is_cancelled()
    }

    /// Trusts longer: it was renewed.
    pub(crate) fn extend(&self, trusted_until: Duration) {
        self.0
            .trusted_until
            .fetch_max(micros(trusted_until), Ordering::Relaxed);
    }

    /// Ends it: it lapsed, or the database said that the term is over.
    pub fn end(&self) {
        self.0.ended.cancel();
    }

    /// Returns once it has been ended.
    pub async fn ended(&self) {
        self.0.ended.cancelled().await;
    }
}

/// Time since the machine was started, which goes on while this process or the whole machine is
/// suspended.
pub(crate) fn boot_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_until_its_time_or_its_end_and_never_again() {
        let lease = Lease::new(Term(3), boot_time() + Duration::from_secs(60));
        assert!(lease.holds());
        lease.end();
        lease.extend(boot_time() + Duration::from_secs(600));
        assert!(!lease.holds());

        let lease = Lease::new(Term(3), boot_time());
        assert!(!lease.holds());
        lease.extend(boot_time() + Duration::from_secs(60));
        assert!(
            lease.holds(),
            "a renewal that came late is one all the same"
        );
    }
}
