//! Where an attempt's output is kept on the worker's disk: the beginning in the segment, and behind
//! it the newest part in a ring of files whose oldest is removed when the limit is reached.
//!
//! The limit holds whether or not anybody reads. A reader that keeps up misses nothing, because it
//! has passed a file long before it is removed.

use std::collections::VecDeque;

use crate::segment::MAX_OUT_BYTES;

/// Least output that can be asked to be kept, in bytes.
pub const MIN_LIMIT_BYTES: u64 = 1024 * 1024;

/// Most output that can be asked to be kept, in bytes: 1 PiB, far more than a disk holds.
pub const MAX_LIMIT_BYTES: u64 = 1 << 50;

/// Output that is kept unless job or worker say otherwise, in bytes.
pub const DEFAULT_LIMIT_BYTES: u64 = 1024 * 1024 * 1024;

/// Longest beginning that is kept, in bytes.
const MAX_HEAD_BYTES: u64 = 64 * 1024 * 1024;

/// Parts into which the limit is divided: one for the beginning, the others for the ring.
const PARTS: u64 = 16;

/// Shortest beginning and shortest file of the ring, in bytes: they take a record of any length.
const MIN_FILE_BYTES: u64 = MAX_OUT_BYTES as u64 + 4096;

/// Where a record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To the end of the segment.
    Segment,
    /// To the end of the newest file of the ring.
    Newest,
    /// To the beginning of a new file.
    New {
        /// The file.
        number: u64,
        /// The file to remove first, so that the limit holds.
        remove: Option<u64>,
    },
}

/// The plan of one attempt's output.
#[derive(Debug)]
pub struct Ring {
    head_room: u64,
    ring_room: u64,
    file_room: u64,
    /// Length of each file that is left, oldest first.
    files: VecDeque<u64>,
    /// Number of the oldest file that is left.
    oldest: u64,
}

impl Ring {
    /// A plan that keeps at most `limit` bytes, in files numbered from `first`. A limit out of
    /// range is brought into it.
    pub fn new(limit: u64, first: u64) -> Self {
        let limit = limit.clamp(MIN_LIMIT_BYTES, MAX_LIMIT_BYTES);
        let head = (limit / PARTS).clamp(MIN_FILE_BYTES, MAX_HEAD_BYTES);
        let ring = limit - head;
        Self {
            head_room: head,
            ring_room: ring,
            file_room: (ring / (PARTS - 1)).max(MIN_FILE_BYTES),
            files: VecDeque::new(),
            oldest: first,
        }
    }

    /// True once output goes to the ring.
    pub fn has_begun(&self) -> bool {
        !self.files.is_empty()
    }

    /// Where a record of `bytes` goes. The oldest file is removed one at a time: ask again until
    /// none is named.
    pub fn place(&self, bytes: u64) -> Place {
        let Some(newest) = self.files.back() else {
            return match bytes <= self.head_room {
                true => Place::Segment,
                false => self.new_file(bytes),
            };
        };
        if newest + bytes <= self.file_room {
            Place::Newest
        } else {
            self.new_file(bytes)
        }
    }

    fn new_file(&self, bytes: u64) -> Place {
        let kept: u64 = self.files.iter().sum();
        // The new one may grow to its full length.
        let full = kept + self.file_room.max(bytes) > self.ring_room;
        Place::New {
            number: self.oldest + self.files.len() as u64,
            remove: (full && !self.files.is_empty()).then_some(self.oldest),
        }
    }

    /// The oldest file was removed.
    pub fn removed(&mut self) {
        if self.files.pop_front().is_some() {
            self.oldest += 1;
        }
    }

    /// A new file was begun with `bytes` of its own.
    pub fn begun(&mut self, bytes: u64) {
        self.head_room = 0;
        self.files.push_back(bytes);
    }

    /// A record of `bytes` was written to where [`Ring::place`] said.
    pub fn written(&mut self, bytes: u64) {
        match self.files.back_mut() {
            Some(newest) => *newest += bytes,
            None => self.head_room = self.head_room.saturating_sub(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes a record and returns the place it got and the files that were removed for it.
    fn write(ring: &mut Ring, bytes: u64) -> (Place, Vec<u64>) {
        let mut removed = Vec::new();
        loop {
            let place = ring.place(bytes);
            match place {
                Place::New {
                    remove: Some(oldest),
                    ..
                } => {
                    removed.push(oldest);
                    ring.removed();
                    continue;
                }
                Place::New { remove: None, .. } => ring.begun(100),
                Place::Segment | Place::Newest => {}
            }
            ring.written(bytes);
            return (place, removed);
        }
    }

    #[test]
    fn the_beginning_stays_and_the_oldest_file_goes() {
        let mut ring = Ring::new(DEFAULT_LIMIT_BYTES, 5);
        let piece = 64 * 1024;
        for _ in 0..1024 {
            assert_eq!(write(&mut ring, piece), (Place::Segment, vec![]));
        }
        assert!(!ring.has_begun());
        let (place, removed) = write(&mut ring, piece);
        let begun = Place::New {
            number: 5,
            remove: None,
        };
        assert_eq!((place, removed), (begun, vec![]));
        assert!(ring.has_begun());
        let mut gone = Vec::new();
        for _ in 0..30 * 1024 {
            gone.extend(write(&mut ring, piece).1);
        }
        assert_eq!(gone[..3], [5, 6, 7]);
        assert!(gone.is_sorted_by(|a, b| a + 1 == *b));
    }

    #[test]
    fn the_smallest_limit_takes_the_longest_record() {
        let mut ring = Ring::new(0, 1);
        assert_eq!(ring.place(MAX_OUT_BYTES as u64 + 38), Place::Segment);
        for _ in 0..20 {
            write(&mut ring, MAX_OUT_BYTES as u64 + 38);
            assert!(ring.files.iter().sum::<u64>() <= MIN_LIMIT_BYTES);
        }
        assert_eq!(ring.files.len(), 2);
    }

    proptest! {
        #[test]
        fn the_limit_holds_and_most_of_it_is_used(
            limit in MIN_LIMIT_BYTES..=64 * MIN_LIMIT_BYTES,
            sizes in proptest::collection::vec(1_u64..=MAX_OUT_BYTES as u64 + 38, 1..400),
        ) {
            let mut ring = Ring::new(limit, 1);
            let mut head = 0;
            let mut total = 0;
            for size in sizes {
                let (place, _) = write(&mut ring, size);
                total += size;
                if place == Place::Segment {
                    prop_assert!(!ring.has_begun());
                    head += size;
                }
                let kept = head + ring.files.iter().sum::<u64>();
                prop_assert!(kept <= limit, "{kept} of {limit}");
                if total > limit {
                    prop_assert!(kept >= limit / 3, "{kept} of {limit}");
                }
            }
        }
    }
}
