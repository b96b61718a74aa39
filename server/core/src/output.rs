//! Output of attempts.

/// Why output is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HoleCause {
    /// Nobody told.
    #[default]
    Unknown,
    /// The worker's disk had no room.
    NoRoom,
    /// It was over the job's limit, and the coordinator did not take it in time.
    Limit,
    /// The worker's record of it is damaged.
    Damaged,
    /// It was stored and has been removed to save room.
    Removed,
}

impl HoleCause {
    /// Every cause.
    pub const ALL: [Self; 5] = [
        Self::Unknown,
        Self::NoRoom,
        Self::Limit,
        Self::Damaged,
        Self::Removed,
    ];

    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::NoRoom => "no_room",
            Self::Limit => "limit",
            Self::Damaged => "damaged",
            Self::Removed => "removed",
        }
    }

    /// Reads the stored word. One that is not known says nothing.
    pub fn parse(text: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|cause| cause.as_str() == text)
            .unwrap_or_default()
    }

    /// The same, to end a sentence about what is missing.
    pub fn because(self) -> &'static str {
        match self {
            Self::Unknown => "and nothing tells why",
            Self::NoRoom => "because the worker's disk had no room",
            Self::Limit => {
                "because they were over the job's log limit before the coordinator could take them"
            }
            Self::Damaged => "because the worker's record of them is damaged",
            Self::Removed => "because they were removed to save room",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_read_back() {
        for cause in HoleCause::ALL {
            assert_eq!(HoleCause::parse(cause.as_str()), cause);
        }
        assert_eq!(HoleCause::parse("newer"), HoleCause::Unknown);
    }
}
