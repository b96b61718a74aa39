//! Who calls, and what they may do.

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Read everything.
    Read,
    /// Read, submit, and change jobs.
    Submit,
    /// All of that, and steer workers and the queue.
    Operate,
    /// Everything, also what workers may.
    Admin,
    /// Open worker sessions and upload output, nothing else.
    Worker,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [
        Self::Read,
        Self::Submit,
        Self::Operate,
        Self::Admin,
        Self::Worker,
    ];

    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Submit => "submit",
            Self::Operate => "operate",
            Self::Admin => "admin",
            Self::Worker => "worker",
        }
    }

    /// Reads the stored word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }

    /// True when this role includes what `needed` allows.
    pub fn allows(self, needed: Self) -> bool {
        let rank = |role| match role {
            Self::Worker => None,
            Self::Read => Some(0),
            Self::Submit => Some(1),
            Self::Operate => Some(2),
            Self::Admin => Some(3),
        };
        match (rank(self), rank(needed)) {
            (Some(have), Some(needed)) => have >= needed,
            (Some(_), None) => self == Self::Admin,
            (None, _) => self == needed,
        }
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name of the token's owner; recorded with every action.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

impl Caller {
    /// Checks the role.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`](super::Error::PermissionDenied) when it does not allow `needed`.
    pub fn require(&self, needed: Role) -> Result<(), super::Error> {
        if self.role.allows(needed) {
            return Ok(());
        }
        Err(super::Error::PermissionDenied {
            have: self.role,
            needed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_may_only_what_workers_may() {
        assert!(Role::Worker.allows(Role::Worker));
        assert!(!Role::Worker.allows(Role::Read));
        assert!(Role::Admin.allows(Role::Worker));
        assert!(!Role::Operate.allows(Role::Worker));
        assert!(Role::Operate.allows(Role::Submit));
        assert!(!Role::Read.allows(Role::Submit));
    }
}
