//! Reads one attempt's output from its segment, from any offset, in chunks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use qctl_proto::v1::{HoleCause, LogRun, LogStream, SegmentHole, UploadLogRequest};
use qctl_proto::{MAX_CHUNK_BYTES, v1};
use qctl_worker_core::colours::Colours;
use qctl_worker_core::position::Position;
use qctl_worker_core::segment::{EventKind, Found, Reader, Record, Stream};

use crate::follower::{FollowError, tail_position};
use crate::log_pump::Place;
use crate::shim::records::{self, Event};
use crate::tail_reader::TailReader;
use crate::wire::timestamp;

/// Bytes read from the file at once.
const PIECE_BYTES: usize = 256 * 1024;

/// Buffer that is kept while no output arrives, in bytes.
const KEPT_BYTES: usize = 16 * 1024;

/// Output between two marks at first, in bytes. It doubles whenever there are too many marks.
const MARK_BYTES: u64 = 1024 * 1024;

/// Most marks that are kept.
const MAX_MARKS: usize = 512;

/// Output of one stream that was read within this time is one run, in microseconds.
const RUN_US: i64 = 1000;

/// Most runs of a chunk.
const MAX_RUNS: usize = 2048;

/// A place where reading can begin.
#[derive(Clone, Debug)]
struct Mark {
    /// Position of a record in the file.
    begin: u64,
    /// The file of the ring; none for the segment.
    file: Option<u64>,
    position: Position,
    colours: Colours,
}

/// Output that was read from the file and not passed on yet.
#[derive(Debug)]
struct Rest {
    stream: Stream,
    wall_us: i64,
    data: Vec<u8>,
    passed: usize,
}

/// Missing output, from the position that was reached.
#[derive(Clone, Copy, Debug)]
struct Hole {
    /// What is behind it.
    end: Position,
    cause: HoleCause,
}

/// One attempt's output.
#[derive(Debug)]
pub(super) struct Source {
    file: Arc<File>,
    path: Arc<Path>,
    fence: i64,
    reader: Reader,
    /// Where the newest output is, once it has outgrown the segment.
    ring: Option<TailReader>,
    /// Position in the output of the next byte to pass on, with what stands before it.
    position: Position,
    colours: Colours,
    rest: Option<Rest>,
    /// Memory of the last record, to be used again.
    spare: Vec<u8>,
    hole: Option<Hole>,
    /// What found no room at the end of the ring, as the segment tells it.
    last: Option<SegmentHole>,
    /// Output before this is read but not passed on.
    from: u64,
    marks: Vec<Mark>,
    mark_bytes: u64,
}

impl Source {
    /// The output of the attempt whose records begin at `place`.
    pub(super) fn new(place: Place, fence: i64) -> Self {
        Self {
            file: place.file,
            path: place.path,
            fence,
            reader: Reader::at(place.begin),
            ring: None,
            position: Position::default(),
            colours: Colours::default(),
            rest: None,
            spare: Vec::new(),
            hole: None,
            last: None,
            from: 0,
            marks: vec![Mark {
                begin: place.begin,
                file: None,
                position: Position::default(),
                colours: Colours::default(),
            }],
            mark_bytes: MARK_BYTES,
        }
    }

    /// Goes to a position of the output, forward or back.
    pub(super) fn seek(&mut self, offset: u64) {
        self.from = offset;
        let known = self
            .marks
            .partition_point(|mark| mark.position.offset <= offset);
        let mark = &self.marks[known.saturating_sub(1)];
        if offset >= self.position.offset && mark.position.offset <= self.position.offset {
            return;
        }
        match mark.file {
            None => {
                self.reader = Reader::at(mark.begin);
                self.ring = None;
            }
            Some(number) => self.ring = Some(TailReader::new(&self.path, number, mark.begin)),
        }
        self.position = mark.position;
        self.colours = mark.colours.clone();
        self.rest = None;
        self.hole = None;
    }

    /// Gives memory back that only a flood needs.
    pub(super) fn shrink(&mut self) {
        self.spare = Vec::new();
        self.reader.shrink(KEPT_BYTES);
        if let Some(ring) = &mut self.ring {
            ring.reader.shrink(KEPT_BYTES);
        }
    }

    /// The next chunk, whose output is put into `data`; `None` when no more is recorded yet. With
    /// `end`, the whole length of an output of which no more will be recorded, what is not found
    /// before that is missing.
    ///
    /// # Errors
    /// When the files cannot be read, or another version wrote them.
    pub(super) fn next(
        &mut self,
        data: &mut Vec<u8>,
        end: Option<u64>,
    ) -> Result<Option<UploadLogRequest>, FollowError> {
        let mut chunk: Option<UploadLogRequest> = None;
        data.clear();
        loop {
            if let Some(hole) = self.hole {
                if chunk.is_some() {
                    break;
                }
                self.hole = None;
                let passed = std::mem::replace(&mut self.position, hole.end);
                let chunk = self.hole_chunk(&passed, hole.cause);
                // What changed the colours in it is not known. Most programs reset them soon.
                self.colours = Colours::default();
                if self.position.offset > self.from {
                    return Ok(Some(chunk));
                }
                continue;
            }
            let Some(rest) = &mut self.rest else {
                match self.fill() {
                    Ok(true) => continue,
                    Ok(false) => match end {
                        Some(end) if end > self.position.offset => {
                            self.lose(end);
                            continue;
                        }
                        _ => break,
                    },
                    // What was read before stands; whoever asks for more meets the error again.
                    Err(_) if chunk.is_some() => break,
                    Err(error) => return Err(error),
                }
            };
            let begun = self.position.offset < self.from;
            let unread = &rest.data[rest.passed..];
            let room = if begun {
                (self.from - self.position.offset).min(unread.len() as u64) as usize
            } else {
                (MAX_CHUNK_BYTES - data.len()).min(unread.len())
            };
            let part = &unread[..room];
            if !begun {
                let chunk = chunk.get_or_insert_with(|| UploadLogRequest {
                    fence: self.fence,
                    offset: self.position.offset as i64,
                    first_line: self.position.lines as i64,
                    colour_state: self.colours.restore().into(),
                    ..UploadLogRequest::default()
                });
                add_run(&mut chunk.runs, rest.stream, rest.wall_us, part.len());
                data.extend_from_slice(part);
            }
            self.position.pass(part);
            self.colours.feed(part);
            rest.passed += room;
            if rest.passed == rest.data.len() {
                self.spare = std::mem::take(&mut rest.data);
                self.rest = None;
            }
            let runs = chunk.as_ref().map_or(0, |chunk| chunk.runs.len());
            if data.len() == MAX_CHUNK_BYTES || runs == MAX_RUNS {
                break;
            }
        }
        Ok(chunk.map(|chunk| UploadLogRequest {
            length: data.len() as u32,
            crc32c: crc32c::crc32c(data),
            ..chunk
        }))
    }

    /// The chunk that tells of what is missing behind `passed`, as far as it is wanted.
    fn hole_chunk(&self, passed: &Position, cause: HoleCause) -> UploadLogRequest {
        let end = &self.position;
        let offset = passed.offset.max(self.from).min(end.offset);
        UploadLogRequest {
            fence: self.fence,
            offset: offset as i64,
            first_line: passed.lines as i64,
            hole_bytes: (end.offset - offset) as i64,
            hole_lines: (end.lines - passed.lines) as i64,
            colour_state: self.colours.restore().into(),
            hole_cause: cause.into(),
            lines_behind: Some(end.lines as i64),
            crc32c_behind: end.crc32c,
            ..UploadLogRequest::default()
        }
    }

    /// Everything up to `offset` is missing, and nothing tells what it was.
    fn lose(&mut self, offset: u64) {
        let mut end = self.position;
        end.skip_to(offset, 0, None);
        self.hole = Some(Hole {
            end,
            cause: HoleCause::Damaged,
        });
    }

    /// Reads the next record of output into `rest` or `hole`. False when there is none yet.
    fn fill(&mut self) -> Result<bool, FollowError> {
        loop {
            let (reader, place) = match &mut self.ring {
                Some(ring) => {
                    let (number, begin) = ring.place();
                    (&mut ring.reader, (Some(number), begin))
                }
                None => {
                    let begin = self.reader.position();
                    (&mut self.reader, (None, begin))
                }
            };
            match reader.read_past_damage()? {
                Found::Record { record, .. } if record.fence() != self.fence => {}
                Found::Record {
                    record:
                        Record::Out {
                            offset,
                            stream,
                            wall_us,
                            data,
                            ..
                        },
                    ..
                } => {
                    let known = self.position.offset.saturating_sub(offset);
                    let mut kept = std::mem::take(&mut self.spare);
                    kept.clear();
                    kept.extend_from_slice(data);
                    self.rest = Some(Rest {
                        stream,
                        wall_us,
                        passed: known.min(kept.len() as u64) as usize,
                        data: kept,
                    })
                    .filter(|rest| rest.passed < rest.data.len());
                    if offset > self.position.offset {
                        self.lose(offset);
                    } else {
                        self.mark(place, offset);
                    }
                    return Ok(true);
                }
                Found::Record {
                    record: Record::Event { kind, payload, .. },
                    ..
                } => {
                    let event = match kind {
                        EventKind::Hole | EventKind::Tail => records::decode(payload).ok(),
                        _ => None,
                    };
                    if self.take(event.map(|(_, event)| event)) {
                        return Ok(true);
                    }
                }
                // Whoever follows the segment tells of damage.
                Found::Damage(_) => {}
                Found::Incomplete | Found::Again => {
                    if !self.feed()? && !self.last_hole()? {
                        return Ok(false);
                    }
                    if self.hole.is_some() {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Takes a record that tells about output. True when some is missing.
    fn take(&mut self, event: Option<Event>) -> bool {
        let before = self.position.offset;
        let (end, cause) = match event {
            Some(Event::Hole(hole)) => (behind(&self.position, &hole), hole.cause()),
            Some(Event::Tail(tail)) if self.ring.is_none() => {
                let number = tail.number.max(0) as u64;
                self.ring = Some(TailReader::new(&self.path, number, 0));
                return false;
            }
            Some(Event::Tail(tail)) => match tail_position(&tail) {
                Some(begin) => (begin, HoleCause::Limit),
                None => return false,
            },
            _ => return false,
        };
        let is_missing = end.offset > before;
        if is_missing {
            self.hole = Some(Hole { end, cause });
        }
        is_missing
    }

    /// Feeds the reader. False when nothing more is there at the moment.
    fn feed(&mut self) -> Result<bool, FollowError> {
        match &mut self.ring {
            Some(ring) => Ok(ring.feed(PIECE_BYTES)?),
            None => self.feed_segment(),
        }
    }

    fn feed_segment(&mut self) -> Result<bool, FollowError> {
        let from = self.reader.feed_position();
        let read = self.file.read_at(self.reader.space(PIECE_BYTES), from);
        let length = *read.as_ref().unwrap_or(&0);
        self.reader.unfill(PIECE_BYTES - length);
        Ok(read? > 0)
    }

    /// At the end of the ring: what found no room there at the last is told in the segment. True
    /// when that was so and is the next thing to tell.
    fn last_hole(&mut self) -> Result<bool, FollowError> {
        if self.ring.is_none() {
            return Ok(false);
        }
        while self.last.is_none() {
            match self.reader.read_past_damage()? {
                Found::Record {
                    record:
                        Record::Event {
                            kind: EventKind::Hole,
                            fence,
                            payload,
                        },
                    ..
                } if fence == self.fence => {
                    if let Ok((_, Event::Hole(hole))) = records::decode(payload) {
                        self.last = Some(hole);
                    }
                }
                Found::Record { .. } | Found::Damage(_) => {}
                Found::Incomplete | Found::Again => {
                    if !self.feed_segment()? {
                        return Ok(false);
                    }
                }
            }
        }
        let due = self
            .last
            .filter(|hole| hole.offset.max(0) as u64 <= self.position.offset);
        Ok(self.take(due.map(Event::Hole)))
    }

    /// Remembers a record as a place to begin at, when the last such place is far behind.
    fn mark(&mut self, (file, begin): (Option<u64>, u64), offset: u64) {
        let last = self.marks.last().map_or(0, |mark| mark.position.offset);
        // What stands before a record is known only where its output was not passed on already.
        if offset != self.position.offset || offset < last + self.mark_bytes {
            return;
        }
        if self.marks.len() == MAX_MARKS {
            let mut kept = false;
            self.marks.retain(|_| {
                kept = !kept;
                kept
            });
            self.mark_bytes *= 2;
        }
        self.marks.push(Mark {
            begin,
            file,
            position: self.position,
            colours: self.colours.clone(),
        });
    }
}

/// The position behind a hole, seen from a position before or in it.
fn behind(position: &Position, hole: &SegmentHole) -> Position {
    let mut end = *position;
    let offset = hole.offset.saturating_add(hole.bytes).max(0) as u64;
    end.skip_to(
        offset.max(position.offset),
        hole.lines.max(0) as u64,
        hole.crc32c_behind,
    );
    end
}

fn add_run(runs: &mut Vec<LogRun>, stream: Stream, wall_us: i64, length: usize) {
    let stream = match stream {
        Stream::Stdout => LogStream::Stdout,
        Stream::Stderr => LogStream::Stderr,
    };
    let time = timestamp(wall_us);
    let close = |before: &v1::LogRun| {
        let micros =
            |time: &prost_types::Timestamp| time.seconds * 1_000_000 + i64::from(time.nanos) / 1000;
        let before = before.time.as_ref().map_or(0, micros);
        (0..RUN_US).contains(&(wall_us - before))
    };
    match runs.last_mut() {
        Some(last) if last.stream() == stream && close(last) => last.length += length as u32,
        _ => runs.push(LogRun {
            stream: stream.into(),
            length: length as u32,
            time,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use qctl_proto::v1::SegmentHole;
    use qctl_worker_core::segment;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Out(Vec<u8>),
        Hole(u16),
        Other,
    }

    /// A segment, the output with its holes as `None`, and where the attempt begins.
    fn written(steps: &[Step]) -> (Arc<File>, Vec<Option<u8>>) {
        let mut bytes = segment::header().to_vec();
        let mut output = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            match step {
                Step::Out(data) => {
                    let record = Record::Out {
                        fence: 7,
                        offset: output.len() as u64,
                        stream: Stream::Stdout,
                        wall_us: index as i64 * 700,
                        data,
                    };
                    segment::encode(&record, &mut bytes).unwrap();
                    output.extend(data.iter().map(|byte| Some(*byte)));
                }
                Step::Hole(length) => {
                    let hole = SegmentHole {
                        offset: output.len() as i64,
                        bytes: i64::from(*length),
                        lines: 3,
                        ..SegmentHole::default()
                    };
                    records::encode(7, &Event::Hole(hole), &mut bytes).unwrap();
                    output.extend(std::iter::repeat_n(None, usize::from(*length)));
                }
                Step::Other => records::encode(8, &Event::Void("x".into()), &mut bytes).unwrap(),
            }
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (Arc::new(file), output)
    }

    fn place(file: Arc<File>) -> Place {
        Place {
            file,
            path: Path::new("/nowhere/7.segment").into(),
            begin: 16,
        }
    }

    /// The next chunk with its output.
    fn next(source: &mut Source) -> Option<UploadLogRequest> {
        let mut data = Vec::new();
        let chunk = source.next(&mut data, None).unwrap()?;
        Some(UploadLogRequest {
            data: data.into(),
            ..chunk
        })
    }

    /// Reads everything from `offset` and checks each chunk against the output.
    fn check(source: &mut Source, output: &[Option<u8>], offset: usize) {
        source.seek(offset as u64);
        let mut at = offset;
        while let Some(chunk) = next(source) {
            assert_eq!(chunk.offset as usize, at);
            if chunk.hole_bytes > 0 {
                let end = at + chunk.hole_bytes as usize;
                assert!(output[at..end].iter().all(Option::is_none));
                at = end;
                continue;
            }
            let data: Vec<_> = chunk.data.iter().map(|byte| Some(*byte)).collect();
            assert_eq!(data, output[at..at + data.len()]);
            assert_eq!(chunk.length as usize, data.len());
            assert_eq!(chunk.crc32c, crc32c::crc32c(&chunk.data));
            let runs: u32 = chunk.runs.iter().map(|run| run.length).sum();
            assert_eq!(runs, chunk.length);
            at += data.len();
        }
        assert_eq!(at, output.len());
    }

    #[test]
    fn chunks_are_bounded_and_say_their_line_and_colours() {
        let line = b"0123456789\n".repeat(60_000);
        let (file, output) = written(&[
            Step::Out(b"\x1b[31mred\n".to_vec()),
            Step::Out(line.clone()),
            Step::Other,
            Step::Hole(100),
            Step::Out(b"end".to_vec()),
        ]);
        let mut source = Source::new(place(file), 7);
        let first = next(&mut source).unwrap();
        assert_eq!((first.data.len(), first.first_line), (MAX_CHUNK_BYTES, 0));
        assert!(first.colour_state.is_empty());
        let second = next(&mut source).unwrap();
        let lines = first.data.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(second.first_line, lines as i64);
        assert_eq!(&second.colour_state[..], b"\x1b[31m");
        check(&mut source, &output, 0);
        source.seek(output.len() as u64 - 3);
        let last = next(&mut source).unwrap();
        assert_eq!(last.first_line, 1 + 60_000 + 3);
    }

    #[test]
    fn output_around_damage_is_passed_on_and_the_rest_is_missing() {
        let (file, output) = written(&[Step::Out(b"one\n".to_vec()), Step::Out(b"two".to_vec())]);
        let end = file.metadata().unwrap().len();
        file.write_all_at(&[0; 64], end).unwrap();
        let mut source = Source::new(place(file), 7);
        let chunk = next(&mut source).unwrap();
        assert_eq!(chunk.data.len(), output.len());
        assert!(next(&mut source).is_none());
        // Seven bytes are known to have been written, and four of them are nowhere.
        let end = output.len() as u64 + 4;
        let lost = source.next(&mut Vec::new(), Some(end)).unwrap().unwrap();
        assert_eq!((lost.offset, lost.hole_bytes), (output.len() as i64, 4));
        assert_eq!(lost.hole_cause(), HoleCause::Damaged);
        assert_eq!((lost.lines_behind, lost.crc32c_behind), (Some(1), None));
        assert!(source.next(&mut Vec::new(), Some(end)).unwrap().is_none());
    }

    #[test]
    fn output_that_arrives_later_is_read_later() {
        let (file, _) = written(&[Step::Out(b"one".to_vec())]);
        let mut source = Source::new(place(Arc::clone(&file)), 7);
        assert_eq!(next(&mut source).unwrap().data, &b"one"[..]);
        assert!(next(&mut source).is_none());
        let mut more = Vec::new();
        let record = Record::Out {
            fence: 7,
            offset: 3,
            stream: Stream::Stderr,
            wall_us: 0,
            data: b"two",
        };
        segment::encode(&record, &mut more).unwrap();
        let end = file.metadata().unwrap().len();
        file.write_all_at(&more[..10], end).unwrap();
        assert!(next(&mut source).is_none());
        file.write_all_at(&more[10..], end + 10).unwrap();
        let chunk = next(&mut source).unwrap();
        assert_eq!((chunk.offset, &chunk.data[..]), (3, &b"two"[..]));
        assert_eq!(chunk.runs[0].stream(), LogStream::Stderr);
    }

    #[test]
    fn going_back_far_needs_few_marks() {
        let mut steps = vec![Step::Out(vec![b'x'; 256 * 1024]); 40];
        steps.insert(20, Step::Hole(1000));
        let (file, output) = written(&steps);
        let mut source = Source::new(place(file), 7);
        source.mark_bytes = 1;
        check(&mut source, &output, 0);
        assert!(source.marks.len() >= 40);
        for offset in [0, 5_000_000, 1, 9_999_999, 7_000_000] {
            check(&mut source, &output, offset);
        }
    }

    proptest! {
        #[test]
        fn any_place_can_be_read_again(
            steps in proptest::collection::vec(
                prop_oneof![
                    4 => proptest::collection::vec(any::<u8>(), 1..2000).prop_map(Step::Out),
                    1 => (1_u16..500).prop_map(Step::Hole),
                    1 => Just(Step::Other),
                ],
                1..30,
            ),
            places in proptest::collection::vec(any::<proptest::sample::Index>(), 1..8),
        ) {
            let (file, output) = written(&steps);
            let mut source = Source::new(place(file), 7);
            source.mark_bytes = 500;
            for place in places {
                check(&mut source, &output, place.index(output.len() + 1));
            }
        }
    }
}
