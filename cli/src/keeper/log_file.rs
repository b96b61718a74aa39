//! The programs' own logs: appended to by them, kept small by the keeper.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Size at which a log is set aside, in bytes. One older piece is kept beside it.
pub const CAP: u64 = 8 * 1024 * 1024;
/// How far from its end a log is read when its last lines are shown, in bytes.
const TAIL_BYTES: u64 = 16 * 1024;

/// Opens a log for appending. Every write lands at the end, also after the file was emptied.
///
/// # Errors
/// When the file cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Sets a log aside once it is larger than `cap` bytes. True when it did.
///
/// The program keeps its open file, so the content is copied and the file emptied; what is written
/// between the two is lost, which is the price for a program that needs no help to outlive us.
///
/// # Errors
/// When the copy cannot be made; the log then stays as it is.
pub fn rotate(path: &Path, cap: u64) -> io::Result<bool> {
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if length <= cap {
        return Ok(false);
    }
    let fresh = with_suffix(path, ".1.new");
    let mut copy = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    let mut log = OpenOptions::new().read(true).write(true).open(path)?;
    // A flood between two looks must not double the folder's size: only the end is worth keeping.
    log.seek(SeekFrom::Start(length.saturating_sub(2 * cap)))?;
    io::copy(&mut log, &mut copy)?;
    log.set_len(0)?;
    std::fs::rename(&fresh, with_suffix(path, ".1"))?;
    Ok(true)
}

/// The last lines of a log, oldest first; none when it cannot be read.
pub fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut log = File::open(path)?;
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut text = Vec::new();
        log.take(TAIL_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_full_log_is_set_aside_and_its_writer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.log");
        let mut writer = open(&path).unwrap();
        writer.write_all(b"first\n").unwrap();
        assert!(!rotate(&path, 7).unwrap(), "not above the cap yet");
        writer.write_all(b"second\n").unwrap();
        assert!(rotate(&path, 7).unwrap());
        writer.write_all(b"third\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"third\n");
        let aside = std::fs::read(folder.path().join("server.log.1")).unwrap();
        assert_eq!(aside, b"first\nsecond\n");
    }

    #[test]
    fn a_log_that_does_not_exist_needs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!rotate(&folder.path().join("absent.log"), 1).unwrap());
        assert!(last_lines(&folder.path().join("absent.log"), 3).is_empty());
    }

    #[test]
    fn the_last_lines_come_oldest_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.log");
        let text: String = (0..10_000).map(|line| format!("line {line}\n")).collect();
        std::fs::write(&path, text).unwrap();
        assert_eq!(last_lines(&path, 2), ["line 9998", "line 9999"]);
    }
}
