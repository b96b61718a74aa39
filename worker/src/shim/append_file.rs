//! A file that only grows. A record is written whole or not at all, and room behind the end can be
//! kept for what must not be lost.

use std::fs::File;
use std::io::IoSlice;

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::Errno;

/// Room is taken from the disk in pieces from the first size to the second, growing with the file.
const STRIDE_BYTES: std::ops::RangeInclusive<u64> = 64 * 1024..=4 * 1024 * 1024;

/// The file.
#[derive(Debug)]
pub(super) struct AppendFile {
    file: File,
    end: u64,
    /// Room behind the end that is kept, in bytes.
    kept: u64,
    /// The disk has given room up to here.
    reserved: u64,
    /// Longest file that this process may write.
    pub(super) limit: u64,
    /// Whether the file system can set room aside.
    can_reserve: bool,
}

impl AppendFile {
    /// An empty file behind whose end `kept` bytes are kept.
    pub(super) fn new(file: File, kept: u64) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
        Self {
            file,
            end: 0,
            kept,
            reserved: 0,
            limit: limit.unwrap_or(u64::MAX),
            can_reserve: true,
        }
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Its length, in bytes.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// True when there is room for `length` bytes beside what is kept.
    pub(super) fn has_room(&mut self, length: usize) -> bool {
        let wanted = self.end.saturating_add(length as u64);
        self.reserve(wanted.saturating_add(self.kept)).is_ok()
    }

    /// Writes the pieces of one record, when there is room beside what is kept. Returns whether
    /// there was.
    pub(super) fn write_beside(&mut self, pieces: &[IoSlice<'_>]) -> bool {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        self.has_room(length) && self.write(pieces).is_ok()
    }

    /// Gives room that was never used back to the disk.
    pub(super) fn finish(self) {
        // Nobody misses the room if this fails, and a lock is released either way.
        let _ = ftruncate(&self.file, self.end);
    }

    /// Writes the pieces of one or more records, whole or not at all.
    pub(super) fn write(&mut self, pieces: &[IoSlice<'_>]) -> Result<(), Errno> {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let end = self.end.saturating_add(total as u64);
        if end > self.limit {
            return Err(Errno::FBIG);
        }
        let mut at = self.end;
        let mut rest: Vec<IoSlice<'_>> = pieces.to_vec();
        let mut rest = rest.as_mut_slice();
        while at < end {
            match rustix::io::pwritev(&self.file, rest, at) {
                Ok(0) => return self.take_back(at, Errno::NOSPC),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return self.take_back(at, error),
            }
        }
        self.end = end;
        Ok(())
    }

    /// Removes the beginning of a record whose end found no room.
    fn take_back(&mut self, written_to: u64, error: Errno) -> Result<(), Errno> {
        if written_to > self.end {
            // Cutting the file gives the room behind its end back too, so it is taken anew. If the
            // cut fails, the next record overwrites what is there.
            let _ = ftruncate(&self.file, self.end);
            self.reserved = self.end;
            let _ = self.reserve(self.end.saturating_add(self.kept));
        }
        Err(error)
    }

    /// Makes sure that the disk has room up to `wanted`.
    pub(super) fn reserve(&mut self, wanted: u64) -> Result<(), Errno> {
        if wanted > self.limit {
            return Err(Errno::FBIG);
        }
        if wanted <= self.reserved || !self.can_reserve {
            return Ok(());
        }
        let needed = wanted - self.reserved;
        let stride = (self.end / 4).clamp(*STRIDE_BYTES.start(), *STRIDE_BYTES.end());
        let mut result = Err(Errno::NOSPC);
        for length in [needed.max(stride), needed] {
            result = fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.reserved, length);
            match result {
                Ok(()) => {
                    self.reserved += length;
                    break;
                }
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.can_reserve = false;
                    return Ok(());
                }
                Err(_) => {}
            }
        }
        result
    }
}
