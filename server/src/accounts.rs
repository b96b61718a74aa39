//! The machine's accounts, as `/etc/passwd` has them.

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The accounts as they were when they were read.
pub(crate) struct Accounts(Vec<Account>);

impl Accounts {
    /// Reads them; none when the file cannot be read.
    pub(crate) fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/passwd").unwrap_or_default())
    }

    fn parse(passwd: &str) -> Self {
        let account = |line: &str| {
            let mut fields = line.split(':');
            Some(Account {
                name: fields.next()?.to_owned(),
                uid: fields.nth(1)?.parse().ok()?,
                gid: fields.next()?.parse().ok()?,
            })
        };
        Self(passwd.lines().filter_map(account).collect())
    }

    /// The account with this name.
    pub(crate) fn find(&self, name: &str) -> Option<&Account> {
        self.0.iter().find(|account| account.name == name)
    }

    /// The name of this number; `uid 4242` when it has none.
    pub(crate) fn name_of(&self, uid: u32) -> String {
        self.0
            .iter()
            .find(|account| account.uid == uid)
            .map_or_else(|| format!("uid {uid}"), |account| account.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_name_and_by_number() {
        let accounts = Accounts::parse(
            "root:x:0:0:root:/root:/bin/bash\n\
             broken\n\
             postgres:x:105:113:PostgreSQL:/var/lib/postgresql:/bin/bash\n",
        );
        let postgres = Account {
            name: "postgres".to_owned(),
            uid: 105,
            gid: 113,
        };
        assert_eq!(accounts.find("postgres"), Some(&postgres));
        assert_eq!(accounts.find("nobody"), None);
        assert_eq!(accounts.name_of(105), "postgres");
        assert_eq!(accounts.name_of(4242), "uid 4242");
    }
}
