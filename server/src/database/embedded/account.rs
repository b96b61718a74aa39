//! Which account Postgres runs as: it refuses to run as root.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::EmbeddedError;

/// An account to drop to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The account to drop to: none unless we are root, else the owner of the cluster, `postgres` or
/// `nobody`.
pub(super) fn choose(cluster: &Path) -> Result<Option<Account>, EmbeddedError> {
    let us = rustix::process::geteuid().as_raw();
    let owner = std::fs::metadata(cluster)
        .ok()
        .map(|meta| (meta.uid(), meta.gid()));
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    match (us, owner) {
        (0, Some((0, _))) => Err(EmbeddedError::OwnedByRoot {
            cluster: cluster.to_owned(),
        }),
        (0, Some((uid, gid))) => Ok(Some(Account {
            name: name_of(&passwd, uid),
            uid,
            gid,
        })),
        (0, None) => ["postgres", "nobody"]
            .iter()
            .find_map(|name| find(&passwd, name))
            .map(Some)
            .ok_or(EmbeddedError::NoAccount),
        (us, Some((owner, _))) if us != owner => Err(EmbeddedError::OwnedByAnother {
            cluster: cluster.to_owned(),
            owner: name_of(&passwd, owner),
        }),
        _ => Ok(None),
    }
}

fn find(passwd: &str, name: &str) -> Option<Account> {
    entries(passwd).find(|account| account.name == name)
}

fn name_of(passwd: &str, uid: u32) -> String {
    entries(passwd)
        .find(|account| account.uid == uid)
        .map_or_else(|| format!("uid {uid}"), |account| account.name)
}

fn entries(passwd: &str) -> impl Iterator<Item = Account> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some(Account {
            name: fields.next()?.to_owned(),
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
        })
    })
}

/// Lets the account pass through qctl's own folders on the way to the cluster, without letting it
/// list them. Folders above are not ours to change.
pub(super) fn open_own_folders(root: &Path) -> std::io::Result<()> {
    for folder in root.ancestors().take(2) {
        let mode = std::fs::metadata(folder)?.permissions().mode();
        if mode & 0o011 != 0o011 && std::fs::metadata(folder)?.uid() == 0 {
            std::fs::set_permissions(
                folder,
                std::fs::Permissions::from_mode(mode & 0o7777 | 0o011),
            )?;
        }
    }
    Ok(())
}

/// The outermost folder on the way to `path` that the account may not pass through.
pub(super) fn barrier(path: &Path, account: &Account) -> Option<PathBuf> {
    let mut ancestors: Vec<_> = path.ancestors().skip(1).collect();
    ancestors.reverse();
    ancestors
        .into_iter()
        .find(|folder| {
            std::fs::metadata(folder).is_ok_and(|meta| {
                let needed = if meta.uid() == account.uid {
                    0o100
                } else if meta.gid() == account.gid {
                    0o010
                } else {
                    0o001
                };
                meta.mode() & needed == 0
            })
        })
        .map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        broken\n\
        postgres:x:105:113:PostgreSQL:/var/lib/postgresql:/bin/bash\n";

    #[test]
    fn accounts_are_found_by_name_and_by_number() {
        let postgres = Account {
            name: "postgres".to_owned(),
            uid: 105,
            gid: 113,
        };
        assert_eq!(find(PASSWD, "postgres"), Some(postgres));
        assert_eq!(find(PASSWD, "nobody"), None);
        assert_eq!(name_of(PASSWD, 105), "postgres");
        assert_eq!(name_of(PASSWD, 4242), "uid 4242");
    }

    #[test]
    fn the_outermost_closed_folder_is_named() {
        let outer = tempfile::tempdir().unwrap();
        let closed = outer.path().join("closed");
        let inner = closed.join("inner/data");
        std::fs::create_dir_all(&inner).unwrap();
        for folder in [outer.path(), &closed.join("inner"), &inner] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
        let stranger = Account {
            name: "stranger".to_owned(),
            uid: 4_000_001,
            gid: 4_000_001,
        };
        assert_eq!(barrier(&inner, &stranger), Some(closed.clone()));
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(barrier(&inner, &stranger), None);
    }
}
