//! Decides which chunks are stored, and what the end of an output amounts to.

use std::collections::BTreeMap;

use qctl_server_core::ledger::{COORDINATOR, NewEvent};
use qctl_server_core::{AttemptNumber, Fence};

use super::VerifiedChunk;
use crate::store::logs::{Admission, LogCheck, LogTail, NewChunk, StoredChunk};

/// Decides which chunks are stored: those that begin exactly where their attempt's output ends,
/// each advancing it. The tails that come back are what is acknowledged.
///
/// When a chunk says that nothing follows, the whole output is compared with the checksum over what
/// the job wrote. One that differs is sent again from its beginning; one that differs then as well
/// is kept, and the history tells it.
pub(super) fn admit<'a>(
    tails: &mut BTreeMap<Fence, LogTail>,
    chunks: impl Iterator<Item = &'a VerifiedChunk>,
) -> Admission {
    let mut admission = Admission::default();
    for verified in chunks {
        let Some(tail) = tails.get_mut(&verified.chunk.fence) else {
            continue;
        };
        if verified.chunk.offset != tail.stored {
            continue;
        }
        if verified.chunk.length > 0 || verified.chunk.hole_bytes > 0 {
            store(tail, verified, &mut admission);
        }
        if let Some(told) = verified.chunk.closes {
            close(tail, told, &mut admission);
        }
    }
    admission
}

fn store(tail: &mut LogTail, verified: &VerifiedChunk, admission: &mut Admission) {
    let chunk = &verified.chunk;
    // The worker cannot know how much of a hole is stored as output, so what is behind it counts.
    let newlines = match chunk.lines_behind {
        Some(lines) if chunk.hole_bytes > 0 => (lines - tail.lines).max(0),
        _ => verified.newlines,
    };
    let is_hole = chunk.hole_bytes > 0;
    admission.chunks.push(NewChunk {
        fence: chunk.fence,
        day: tail.day,
        chunk: StoredChunk {
            offset: chunk.offset,
            length: chunk.length as i32,
            first_line: tail.lines,
            runs: chunk.runs.iter().map(|run| run.stored()).collect(),
            data: chunk.data.clone(),
            crc32c: chunk.crc32c,
            hole_bytes: chunk.hole_bytes,
            hole_lines: if is_hole { newlines } else { 0 },
            hole_cause: chunk.hole_cause,
            colour_state: chunk.colour_state.to_vec(),
        },
    });
    if is_hole && !std::mem::replace(&mut tail.has_gaps, true) {
        admission.events.push(event(
            tail,
            "output_missing",
            format!(
                "some of its output is missing, from byte {} on: {} bytes with {} line ends, {}",
                chunk.offset,
                chunk.hole_bytes,
                newlines,
                chunk.hole_cause.because()
            ),
        ));
    }
    tail.stored += i64::from(chunk.length) + chunk.hole_bytes;
    tail.lines += newlines;
    tail.crc32c = match is_hole {
        true => chunk.crc32c_behind,
        false => tail
            .crc32c
            .map(|crc| crc32c::crc32c_combine(crc, chunk.crc32c, chunk.length as usize)),
    };
}

fn close(tail: &mut LogTail, told: u32, admission: &mut Admission) {
    let differs = tail.crc32c.is_some_and(|crc| crc != told);
    match (differs, tail.check) {
        (true, LogCheck::Open) => {
            let fence = tail.fence;
            admission.chunks.retain(|new| new.fence != fence);
            admission.closed.remove(&fence);
            admission.restarted.push((tail.day, fence));
            admission.events.push(event(
                tail,
                "output_resent",
                "its output as stored differs from what the job wrote, so its worker sends it again"
                    .to_owned(),
            ));
            tail.stored = 0;
            tail.lines = 0;
            tail.crc32c = Some(0);
            tail.has_gaps = false;
            tail.check = LogCheck::Resent;
            return;
        }
        (true, LogCheck::Resent) => {
            admission.events.push(event(
                tail,
                "output_differs",
                "its output was sent twice and still differs from what the job wrote; it is kept as \
                 it came"
                    .to_owned(),
            ));
            tail.check = LogCheck::Differs;
        }
        (true, LogCheck::Differs) | (false, _) => {}
    }
    admission.closed.insert(tail.fence);
}

fn event(tail: &LogTail, kind: &'static str, message: String) -> NewEvent {
    NewEvent {
        job: Some(tail.job),
        attempt: Some(AttemptNumber(tail.number)),
        worker: String::new(),
        kind,
        message,
        actor: COORDINATOR.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chrono::NaiveDate;
    use proptest::prelude::*;
    use qctl_server_core::{HoleCause, JobId};

    use super::super::{Chunk, Run};
    use super::*;

    fn chunk(fence: i64, offset: i64, text: &str) -> VerifiedChunk {
        verified(bare(fence, offset, text))
    }

    fn bare(fence: i64, offset: i64, text: &str) -> Chunk {
        Chunk {
            fence: Fence(fence),
            offset,
            runs: vec![Run {
                stream: 1,
                length: text.len() as u32,
                micros: 0,
            }],
            data: zstd::bulk::compress(text.as_bytes(), 1).unwrap().into(),
            length: text.len() as u32,
            crc32c: crc32c::crc32c(text.as_bytes()),
            ..empty(fence, offset)
        }
    }

    fn empty(fence: i64, offset: i64) -> Chunk {
        Chunk {
            fence: Fence(fence),
            offset,
            runs: Vec::new(),
            data: Bytes::new(),
            length: 0,
            crc32c: 0,
            hole_bytes: 0,
            hole_lines: 0,
            hole_cause: HoleCause::Unknown,
            lines_behind: None,
            crc32c_behind: None,
            colour_state: Bytes::new(),
            closes: None,
        }
    }

    fn verified(chunk: Chunk) -> VerifiedChunk {
        chunk.verify().unwrap()
    }

    fn closing(fence: i64, end: i64, whole: &str) -> VerifiedChunk {
        verified(Chunk {
            closes: Some(crc32c::crc32c(whole.as_bytes())),
            ..empty(fence, end)
        })
    }

    fn tail(fence: i64) -> LogTail {
        LogTail {
            fence: Fence(fence),
            job: JobId(fence * 10),
            number: 2,
            day: NaiveDate::from_ymd_opt(2026, 11, 21).unwrap(),
            stored: 0,
            lines: 0,
            crc32c: Some(0),
            check: LogCheck::Open,
            has_gaps: false,
        }
    }

    fn tails(list: &[LogTail]) -> BTreeMap<Fence, LogTail> {
        list.iter().map(|tail| (tail.fence, *tail)).collect()
    }

    #[test]
    fn only_what_joins_on_is_stored() {
        let known = LogTail {
            stored: 4,
            lines: 1,
            crc32c: Some(crc32c::crc32c(b"abc\n")),
            ..tail(1)
        };
        let mut known = tails(&[known]);
        let sent = [
            chunk(1, 0, "abc\n"),
            chunk(1, 4, "def\n"),
            chunk(2, 0, "of a deleted attempt"),
            chunk(1, 20, "too far"),
            chunk(1, 8, "ghi"),
        ];
        let admitted = admit(&mut known, sent.iter());
        let offsets: Vec<_> = admitted
            .chunks
            .iter()
            .map(|new| (new.chunk.offset, new.chunk.first_line))
            .collect();
        assert_eq!(offsets, [(4, 1), (8, 2)]);
        let now = known[&Fence(1)];
        assert_eq!((now.stored, now.lines), (11, 2));
        assert_eq!(now.crc32c, Some(crc32c::crc32c(b"abc\ndef\nghi")));
    }

    #[test]
    fn a_whole_output_is_closed_in_its_last_chunk_or_behind_it() {
        let mut known = tails(&[tail(1), tail(2), tail(3)]);
        let whole = "one\ntwo\n";
        let last = verified(Chunk {
            closes: Some(crc32c::crc32c(whole.as_bytes())),
            ..bare(1, 4, "two\n")
        });
        let sent = [
            chunk(1, 0, "one\n"),
            last,
            chunk(2, 0, whole),
            closing(2, 8, whole),
            chunk(3, 0, "one\n"),
            closing(3, 8, whole),
        ];
        let admitted = admit(&mut known, sent.iter());
        let closed: Vec<_> = admitted.closed.iter().map(|fence| fence.0).collect();
        assert_eq!(closed, [1, 2]);
        assert!(admitted.events.is_empty() && admitted.restarted.is_empty());
    }

    #[test]
    fn what_differs_is_sent_again_once_and_then_told() {
        let mut known = tails(&[tail(1), tail(2)]);
        let sent = [
            chunk(2, 0, "untouched"),
            chunk(1, 0, "wrong\n"),
            closing(1, 6, "right\n"),
        ];
        let admitted = admit(&mut known, sent.iter());
        assert_eq!(admitted.restarted, [(known[&Fence(1)].day, Fence(1))]);
        assert!(admitted.closed.is_empty());
        let kept: Vec<_> = admitted.chunks.iter().map(|new| new.fence.0).collect();
        assert_eq!(kept, [2]);
        assert_eq!(known[&Fence(1)].stored, 0);
        assert_eq!(admitted.events[0].kind, "output_resent");
        assert_eq!(admitted.events[0].job, Some(JobId(10)));

        let again = [chunk(1, 0, "right\n"), closing(1, 6, "right\n")];
        let mut mended = known.clone();
        let admitted = admit(&mut mended, again.iter());
        assert!(admitted.closed.contains(&Fence(1)) && admitted.events.is_empty());

        let again = [chunk(1, 0, "wrong\n"), closing(1, 6, "right\n")];
        let admitted = admit(&mut known, again.iter());
        assert!(admitted.closed.contains(&Fence(1)) && admitted.restarted.is_empty());
        assert_eq!(admitted.events[0].kind, "output_differs");
        let once_more = admit(&mut known, [closing(1, 6, "right\n")].iter());
        assert!(once_more.closed.contains(&Fence(1)) && once_more.events.is_empty());
    }

    #[test]
    fn a_gap_is_told_once_and_what_is_behind_it_counts() {
        let whole = format!("one\n{}two\n", "x\n".repeat(50));
        let mut known = tails(&[tail(1)]);
        let hole = |offset: i64, bytes: i64, lines: i64| {
            verified(Chunk {
                hole_bytes: bytes,
                hole_lines: 7,
                hole_cause: HoleCause::Limit,
                lines_behind: Some(lines),
                crc32c_behind: Some(crc32c::crc32c(
                    &whole.as_bytes()[..(offset + bytes) as usize],
                )),
                ..empty(1, offset)
            })
        };
        let sent = [
            chunk(1, 0, "one\n"),
            hole(4, 60, 31),
            hole(64, 40, 51),
            chunk(1, 104, "two\n"),
            closing(1, 108, &whole),
        ];
        let admitted = admit(&mut known, sent.iter());
        assert!(admitted.closed.contains(&Fence(1)));
        assert_eq!(known[&Fence(1)].lines, 52);
        let holes: Vec<_> = admitted.chunks[1..3]
            .iter()
            .map(|new| (new.chunk.hole_bytes, new.chunk.hole_lines))
            .collect();
        assert_eq!(holes, [(60, 30), (40, 20)]);
        let [event] = &admitted.events[..] else {
            panic!("{:?}", admitted.events);
        };
        assert!(event.message.contains("log limit"), "{}", event.message);
    }

    #[test]
    fn a_gap_of_unknown_contents_cannot_be_compared() {
        let mut known = tails(&[tail(1)]);
        let hole = verified(Chunk {
            hole_bytes: 10,
            hole_cause: HoleCause::Damaged,
            ..empty(1, 0)
        });
        let sent = [hole, chunk(1, 10, "end"), closing(1, 13, "whatever")];
        let admitted = admit(&mut known, sent.iter());
        assert!(admitted.closed.contains(&Fence(1)));
        assert!(admitted.restarted.is_empty());
        assert_eq!(known[&Fence(1)].crc32c, None);
    }

    proptest! {
        /// F17: however chunks are repeated, lost, reordered and cut into batches on their way, what
        /// is stored is a prefix of what was written, without gaps or overlaps, and the whole of it
        /// once it is closed.
        #[test]
        fn what_is_stored_is_a_prefix_and_equal_at_its_close(
            lengths in proptest::collection::vec(1usize..20, 1..20),
            order in proptest::collection::vec((0usize..22, any::<bool>()), 0..120),
            in_order_after_all in any::<bool>(),
        ) {
            let mut written = Vec::new();
            let mut whole = String::new();
            for (index, length) in lengths.iter().enumerate() {
                let text = format!("{index:x}\n").repeat(*length);
                written.push(chunk(1, whole.len() as i64, &text));
                whole.push_str(&text);
            }
            written.push(closing(1, whole.len() as i64, &whole));
            let mut known = tails(&[tail(1)]);
            let mut stored = Vec::new();
            let mut closed = false;
            let mut batch = Vec::new();
            let rest = (0..written.len()).filter(|_| in_order_after_all).map(|index| (index, true));
            for (index, ends_batch) in order.into_iter().chain(rest).chain([(99, true)]) {
                batch.extend(written.get(index).cloned());
                if ends_batch {
                    let admitted = admit(&mut known, batch.iter());
                    batch.clear();
                    closed |= !admitted.closed.is_empty();
                    stored.extend(admitted.chunks);
                    prop_assert!(admitted.events.is_empty() && admitted.restarted.is_empty());
                }
            }
            let mut end = 0;
            let mut lines = 0;
            for (new, original) in stored.iter().zip(&written) {
                prop_assert_eq!(new.chunk.offset, end);
                prop_assert_eq!(new.chunk.first_line, lines);
                prop_assert_eq!(&new.chunk.data, &original.chunk.data);
                end += i64::from(new.chunk.length);
                lines += original.newlines;
            }
            let tail = known[&Fence(1)];
            prop_assert_eq!((tail.stored, tail.lines), (end, lines));
            prop_assert_eq!(tail.crc32c, Some(crc32c::crc32c(&whole.as_bytes()[..end as usize])));
            prop_assert_eq!(closed && end < whole.len() as i64, false);
            prop_assert!(closed || !in_order_after_all);
        }
    }
}
