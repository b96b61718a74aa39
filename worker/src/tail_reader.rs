//! Reads the files of a ring one after the other, while a shim adds to them and removes them.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use qctl_worker_core::segment::Reader;

use crate::tail_files;

/// A place in the ring, and the reader that is fed from there.
#[derive(Debug)]
pub(crate) struct TailReader {
    segment: PathBuf,
    number: u64,
    /// Where to begin in that file.
    begin: u64,
    /// Opened when it is read first. It can be read to its end also after its removal.
    file: Option<File>,
    pub(crate) reader: Reader,
}

impl TailReader {
    /// Reads from a file on, from `begin` in it, or from the beginning of the first one after it
    /// that is left.
    pub(crate) fn new(segment: &Path, number: u64, begin: u64) -> Self {
        Self {
            segment: segment.to_owned(),
            number,
            begin,
            file: None,
            reader: Reader::new(),
        }
    }

    /// Number of the file that is read, and the position in it behind the last record.
    pub(crate) fn place(&self) -> (u64, u64) {
        let position = match self.file {
            Some(_) => self.reader.position(),
            None => self.begin,
        };
        (self.number, position)
    }

    /// Feeds the next `bytes` to the reader, going on to the next file at the end of one. False
    /// when nothing more is there at the moment. What the reader still holds of a file that it has
    /// left is no record.
    ///
    /// # Errors
    /// When a file or the folder cannot be read.
    pub(crate) fn feed(&mut self, bytes: usize) -> io::Result<bool> {
        loop {
            if self.file.is_none() {
                let Some((number, file)) = tail_files::open(&self.segment, self.number)? else {
                    return Ok(false);
                };
                self.reader = match number == self.number {
                    true => Reader::at(self.begin),
                    false => Reader::new(),
                };
                self.enter(number, file);
            }
            if self.read(bytes)? {
                return Ok(true);
            }
            let Some((number, file)) = self.next_file()? else {
                return Ok(false);
            };
            // The next file was begun after this one was complete, but perhaps not before it was
            // read to its end.
            if self.read(bytes)? {
                return Ok(true);
            }
            self.reader = Reader::new();
            self.enter(number, file);
        }
    }

    fn enter(&mut self, number: u64, file: File) {
        self.number = number;
        self.file = Some(file);
    }

    fn read(&mut self, bytes: usize) -> io::Result<bool> {
        let Some(file) = &self.file else {
            return Ok(false);
        };
        let from = self.reader.feed_position();
        let read = file.read_at(self.reader.space(bytes), from);
        let length = *read.as_ref().unwrap_or(&0);
        self.reader.unfill(bytes - length);
        Ok(read? > 0)
    }

    /// The file after this one, when there is one already.
    fn next_file(&self) -> io::Result<Option<(u64, File)>> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        // Files are removed from the first one on, so the next one can only be gone when this one is.
        let is_removed = file.metadata()?.nlink() == 0;
        if !is_removed && !tail_files::path(&self.segment, self.number + 1).exists() {
            return Ok(None);
        }
        tail_files::open(&self.segment, self.number + 1)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use qctl_worker_core::segment::{self, Found, Record, Stream};

    use super::*;

    fn record(offset: u64, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let record = Record::Out {
            fence: 1,
            offset,
            stream: Stream::Stdout,
            wall_us: 0,
            data,
        };
        segment::encode(&record, &mut bytes).unwrap();
        bytes
    }

    fn write(segment: &Path, number: u64, records: &[Vec<u8>]) {
        let mut bytes = segment::header().to_vec();
        bytes.extend(records.concat());
        fs::write(tail_files::path(segment, number), bytes).unwrap();
    }

    /// Offsets of everything that can be read now.
    fn offsets(tail: &mut TailReader) -> Vec<u64> {
        let mut offsets = Vec::new();
        loop {
            let found = match tail.reader.read_past_damage().unwrap() {
                Found::Record {
                    record: Record::Out { offset, .. },
                    ..
                } => Some(offset),
                Found::Incomplete => None,
                other => panic!("{other:?}"),
            };
            offsets.extend(found);
            if found.is_none() && !tail.feed(7).unwrap() {
                return offsets;
            }
        }
    }

    #[test]
    fn files_are_read_in_order_as_they_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let segment = folder.path().join("1.segment");
        let mut tail = TailReader::new(&segment, 3, 0);
        assert_eq!(offsets(&mut tail), [0; 0]);
        write(&segment, 3, &[record(30, b"a")]);
        assert_eq!(offsets(&mut tail), [30]);
        let more = record(31, b"b");
        fs::OpenOptions::new()
            .append(true)
            .open(tail_files::path(&segment, 3))
            .unwrap()
            .write_all(&more)
            .unwrap();
        write(&segment, 4, &[record(40, b"c")]);
        assert_eq!(offsets(&mut tail), [31, 40]);
        let (number, position) = tail.place();
        assert_eq!(number, 4);
        // Two files come and go while nobody reads.
        write(&segment, 7, &[record(70, b"d")]);
        for number in 3..7 {
            tail_files::remove(&segment, number).unwrap();
        }
        assert_eq!(offsets(&mut tail), [70]);

        let mut again = TailReader::new(&segment, 4, position);
        assert_eq!(offsets(&mut again), [70]);
        let mut again = TailReader::new(&segment, 7, 0);
        assert_eq!(offsets(&mut again), [70]);
        let (_, position) = again.place();
        let mut again = TailReader::new(&segment, 7, position);
        assert_eq!(offsets(&mut again), [0; 0]);
    }
}
