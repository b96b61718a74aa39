//! Which account Postgres runs as: it refuses to run as root.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::EmbeddedError;
use crate::accounts::{Account, Accounts};

/// The account to drop to: none unless we are root, else the owner of the cluster, `postgres` or
/// `nobody`.
pub(super) fn choose(cluster: &Path) -> Result<Option<Account>, EmbeddedError> {
    let us = rustix::process::geteuid().as_raw();
    let owner = std::fs::metadata(cluster)
        .ok()
        .map(|meta| (meta.uid(), meta.gid()));
    let accounts = Accounts::read();
    match (us, owner) {
        (0, Some((0, _))) => Err(EmbeddedError::OwnedByRoot {
            cluster: cluster.to_owned(),
        }),
        (0, Some((uid, gid))) => Ok(Some(Account {
            name: accounts.name_of(uid),
            uid,
            gid,
        })),
        (0, None) => ["postgres", "nobody"]
            .iter()
            .find_map(|name| accounts.find(name))
            .map(|account| Some(account.clone()))
            .ok_or(EmbeddedError::NoAccount),
        (us, Some((owner, _))) if us != owner => Err(EmbeddedError::OwnedByAnother {
            cluster: cluster.to_owned(),
            owner: accounts.name_of(owner),
        }),
        _ => Ok(None),
    }
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
