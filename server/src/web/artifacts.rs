//! Pictures among a job's results, read from where the job left them.
//!
//! Results stay on the worker. When that is this machine, pictures are shown; everything else is
//! named. A file is served only when, after every link on the way to it was followed, it still lies
//! below a path that the job declared, and only when its first bytes are those of a picture.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use qctl_server_core::JobSpec;

/// Entries looked at below one declared path, and folders in each other.
const ENTRIES: usize = 2_000;
const DEPTH: usize = 3;

/// Pictures shown and other files named of one declared path.
const PICTURES: usize = 48;
const OTHERS: usize = 24;

/// Largest picture that is served, in bytes.
const LARGEST: u64 = 64 * 1024 * 1024;

/// Extensions worth a look; what a file is, its content says.
const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "gif", "webp"];

/// What lies at one declared path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listing {
    /// Pictures by their path below the declared one, newest first.
    pub(super) pictures: Vec<String>,
    /// Other files, by name.
    pub(super) others: Vec<String>,
    /// Files beyond these.
    pub(super) more: usize,
}

/// The declared path number `index`, absolute.
pub(super) fn declared(spec: &JobSpec, index: usize) -> Option<PathBuf> {
    let path = Path::new(spec.artifacts.get(index)?);
    let path = Path::new(&spec.cwd).join(path);
    path.is_absolute().then_some(path)
}

/// Looks at a declared path: a folder, or one file. None when there is nothing yet.
pub(super) fn list(declared: &Path) -> Option<Listing> {
    let root = declared.canonicalize().ok()?;
    let mut found = Vec::new();
    let mut more = 0;
    if root.is_dir() {
        let mut left = ENTRIES;
        walk(&root, &root, DEPTH, &mut left, &mut found);
        more = usize::from(left == 0);
    } else {
        found.push((root.file_name()?.to_str()?.to_owned(), root.metadata().ok()));
    }
    let (mut pictures, mut others): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|(name, _)| may_be_picture(name));
    pictures.sort_by_key(|(name, meta)| {
        let modified = meta.as_ref().and_then(|meta| meta.modified().ok());
        (std::cmp::Reverse(modified), name.clone())
    });
    others.sort_by(|(left, _), (right, _)| left.cmp(right));
    more += pictures.len().saturating_sub(PICTURES) + others.len().saturating_sub(OTHERS);
    let names = |files: Vec<(String, _)>, most| files.into_iter().take(most).map(|(name, _)| name);
    Some(Listing {
        pictures: names(pictures, PICTURES).collect(),
        others: names(others, OTHERS).collect(),
        more,
    })
}

type Found = (String, Option<std::fs::Metadata>);

fn walk(root: &Path, folder: &Path, depth: usize, left: &mut usize, found: &mut Vec<Found>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if *left == 0 {
            return;
        }
        *left -= 1;
        let path = entry.path();
        // Not followed: a link may lead out of the declared path, or round in a circle.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() && depth > 1 {
            walk(root, &path, depth - 1, left, found);
        } else if meta.is_file()
            && let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str)
        {
            found.push((name.to_owned(), Some(meta)));
        }
    }
}

fn may_be_picture(name: &str) -> bool {
    Path::new(name)
        .extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
}

/// A picture that may be sent.
pub(super) struct Picture {
    pub(super) file: File,
    pub(super) kind: &'static str,
    pub(super) length: u64,
}

/// Opens the picture at `below` a declared path; `below` of a declared file is its name. None when
/// there is none, or it may not be shown.
pub(super) fn open(declared: &Path, below: &str) -> Option<Picture> {
    let root = declared.canonicalize().ok()?;
    let below = Path::new(below);
    let is_inside = below
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if !is_inside {
        return None;
    }
    let path = if root.is_dir() {
        root.join(below)
    } else if root.file_name() == Some(below.as_os_str()) {
        root.clone()
    } else {
        return None;
    };
    // Asked first, because opening a pipe would wait for its other end.
    if !std::fs::metadata(&path).ok()?.is_file() {
        return None;
    }
    let mut file = File::open(&path).ok()?;
    let meta = file.metadata().ok()?;
    // Where the open file really is: the path may have been exchanged since.
    let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    if !real.starts_with(&root) || !meta.is_file() || meta.len() > LARGEST {
        return None;
    }
    let kind = kind_of(&mut file).ok()??;
    Some(Picture {
        file,
        kind,
        length: meta.len(),
    })
}

fn kind_of(file: &mut File) -> io::Result<Option<&'static str>> {
    let mut start = Vec::with_capacity(12);
    file.take(12).read_to_end(&mut start)?;
    file.rewind()?;
    Ok(match start.as_slice() {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => Some("image/webp"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and so on";

    fn spec(cwd: &Path, artifacts: &[&str]) -> JobSpec {
        JobSpec {
            cwd: cwd.to_str().unwrap().to_owned(),
            artifacts: artifacts.iter().map(|path| (*path).to_owned()).collect(),
            ..JobSpec::default()
        }
    }

    #[test]
    fn pictures_below_a_declared_folder_are_listed_and_opened() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out/deep");
        std::fs::create_dir_all(&out).unwrap();
        std::fs::write(out.join("a b.png"), PNG).unwrap();
        std::fs::write(folder.path().join("out/report.txt"), "text").unwrap();
        let declared = declared(&spec(folder.path(), &["out"]), 0).unwrap();
        let listing = list(&declared).unwrap();
        assert_eq!(listing.pictures, ["deep/a b.png"]);
        assert_eq!(listing.others, ["report.txt"]);
        assert_eq!(listing.more, 0);
        let picture = open(&declared, "deep/a b.png").unwrap();
        assert_eq!(picture.kind, "image/png");
        assert_eq!(picture.length, PNG.len() as u64);
    }

    #[test]
    fn nothing_outside_the_declared_path_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let secret = folder.path().join("secret.png");
        std::fs::write(&secret, PNG).unwrap();
        std::os::unix::fs::symlink(&secret, out.join("link.png")).unwrap();
        std::os::unix::fs::symlink(folder.path(), out.join("up")).unwrap();
        std::fs::write(out.join("page.png"), "<html>").unwrap();
        let absolute = secret.to_str().unwrap();
        for below in [
            "../secret.png",
            "link.png",
            "up/secret.png",
            "./../secret.png",
            "page.png",
            "absent.png",
            "",
            absolute,
        ] {
            assert!(open(&out, below).is_none(), "{below}");
        }
        assert_eq!(list(&out).unwrap().pictures, ["page.png"]);
    }

    #[test]
    fn a_declared_file_is_itself_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("plot.png"), PNG).unwrap();
        std::fs::write(folder.path().join("other.png"), PNG).unwrap();
        let spec = spec(folder.path(), &["plot.png", "/absent"]);
        let plot = declared(&spec, 0).unwrap();
        assert_eq!(list(&plot).unwrap().pictures, ["plot.png"]);
        assert!(open(&plot, "plot.png").is_some());
        assert!(open(&plot, "other.png").is_none());
        assert_eq!(list(&declared(&spec, 1).unwrap()), None);
        assert_eq!(declared(&spec, 2), None);
    }

    #[test]
    fn a_relative_path_without_a_folder_leads_nowhere() {
        assert_eq!(declared(&spec(Path::new(""), &["out"]), 0), None);
    }
}
