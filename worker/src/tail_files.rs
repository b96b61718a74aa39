//! The files beside a segment that hold the newest output of an attempt whose log has outgrown the
//! segment. They are numbered upward; the shim adds at the end and removes at the beginning.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The file with a number.
pub(crate) fn path(segment: &Path, number: u64) -> PathBuf {
    segment.with_extension(format!("tail-{number}"))
}

/// Opens the file with a number, or when it was removed the first one after it that is left.
/// Returns its number too; `None` when there is neither.
///
/// # Errors
/// When the folder or the file cannot be read.
pub(crate) fn open(segment: &Path, number: u64) -> io::Result<Option<(u64, File)>> {
    loop {
        match File::open(path(segment, number)) {
            Ok(file) => return Ok(Some((number, file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let Some(next) = numbers(segment)?.into_iter().find(|next| *next > number) else {
            return Ok(None);
        };
        match File::open(path(segment, next)) {
            Ok(file) => return Ok(Some((next, file))),
            // The shim has gone on meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Numbers of the files that are left, in order.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn numbers(segment: &Path) -> io::Result<Vec<u64>> {
    let (Some(folder), Some(stem)) = (segment.parent(), segment.file_stem()) else {
        return Ok(Vec::new());
    };
    // A path without a folder lies in the working directory.
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let prefix = format!("{}.tail-", stem.to_string_lossy());
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Removes a file; that it is gone already is fine.
///
/// # Errors
/// When the file system refuses.
pub(crate) fn remove(segment: &Path, number: u64) -> io::Result<()> {
    match fs::remove_file(path(segment, number)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_file_that_is_left_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let segment = folder.path().join("7.segment");
        for name in [
            "7.segment",
            "7.tail-9",
            "7.tail-10",
            "7.tail-x",
            "17.tail-8",
        ] {
            File::create(folder.path().join(name)).unwrap();
        }
        assert_eq!(numbers(&segment).unwrap(), [9, 10]);
        let number = |from| open(&segment, from).unwrap().map(|(number, _)| number);
        assert_eq!(
            [number(3), number(9), number(10), number(11)],
            [Some(9), Some(9), Some(10), None]
        );
        remove(&segment, 9).unwrap();
        remove(&segment, 9).unwrap();
        assert_eq!(number(9), Some(10));
    }
}
