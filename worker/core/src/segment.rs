//! The segment: a shim's journal, written by the shim, read by the agent.
//!
//! A file begins with a header (magic and version, 16 bytes) and goes on with records:
//!
//! ```text
//! length u32 | crc32c(length) u32 | crc32c(body) u32 | body
//! body = kind u8 | fence i64 | payload
//! payload of output = offset u64 | wall_us i64 | stream u8 | raw bytes
//! payload of the rest = an encoded `qctl.v1.SegmentRecord`
//! ```
//!
//! All numbers are little-endian. The length has a checksum of its own, so that a flipped bit in it
//! is told from a record whose end has not been written yet.

/// Length of the header at the beginning of a segment, in bytes.
pub const HEADER_BYTES: usize = 16;

/// Version that this program writes. It reads this one and the one before.
pub const VERSION: u16 = 2;

/// Longest record, in bytes: an assignment of the largest message the contract allows, with room to
/// spare.
pub const MAX_RECORD_BYTES: usize = 48 * 1024 * 1024;

/// Most output that a writer puts into one record, in bytes.
pub const MAX_OUT_BYTES: usize = 256 * 1024;

/// Length of everything in an output record except the output itself, in bytes.
pub const OUT_HEAD_BYTES: usize = FRAME_BYTES + BODY_HEAD_BYTES + OUT_FIELDS_BYTES;

const MAGIC: &[u8; 8] = b"QCTLSEG\n";
const OLDEST_VERSION: u16 = 1;
const FRAME_BYTES: usize = 12;
const BODY_HEAD_BYTES: usize = 9;
const OUT_FIELDS_BYTES: usize = 17;
const OUT_KIND: u8 = 1;

/// What a record that is not output tells. The payload of each is the field of the same name in
/// `qctl.v1.SegmentRecord`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// An assignment was taken from the agent.
    Assigned = 2,
    /// The process is about to be started; written before it exists.
    Starting = 3,
    /// The process exists.
    Pid = 4,
    /// The shim begins to stop the attempt; written before the first signal.
    Stopping = 5,
    /// The tree was frozen or thawed.
    PauseChanged = 6,
    /// A line from the job's progress pipe.
    Report = 7,
    /// The process ended, or could not be started. No output of the attempt follows.
    Exit = 8,
    /// Never started and never will be.
    Void = 9,
    /// No process of the attempt is left.
    Freed = 10,
    /// Output that could not be recorded.
    Hole = 11,
    /// Output goes on in another file, or which file of the ring this one is. Since version 2.
    Tail = 12,
    /// Processes do not end although they were killed.
    Stuck = 13,
    /// A silence has come to a stage, or is over.
    Silence = 14,
}

impl EventKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            2 => Self::Assigned,
            3 => Self::Starting,
            4 => Self::Pid,
            5 => Self::Stopping,
            6 => Self::PauseChanged,
            7 => Self::Report,
            8 => Self::Exit,
            9 => Self::Void,
            10 => Self::Freed,
            11 => Self::Hole,
            12 => Self::Tail,
            13 => Self::Stuck,
            14 => Self::Silence,
            _ => return None,
        })
    }
}

/// The stream a piece of output was written to. The numbers are those of `qctl.v1.LogStream`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stream {
    /// Standard output, and everything on a pseudo-terminal.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

/// One record. Output and payloads are borrowed from the reader's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// Output of the job.
    Out {
        /// The attempt.
        fence: i64,
        /// Position of the first byte in the attempt's merged output.
        offset: u64,
        /// Where it was written.
        stream: Stream,
        /// When the shim read it, in microseconds since the Unix epoch by the wall clock.
        wall_us: i64,
        /// The raw bytes.
        data: &'a [u8],
    },
    /// Everything else.
    Event {
        /// The attempt.
        fence: i64,
        /// What the payload tells.
        kind: EventKind,
        /// An encoded `qctl.v1.SegmentRecord`.
        payload: &'a [u8],
    },
}

impl Record<'_> {
    /// The attempt that the record is about.
    pub fn fence(&self) -> i64 {
        match *self {
            Self::Out { fence, .. } | Self::Event { fence, .. } => fence,
        }
    }
}

/// A record that no reader would accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of {length} bytes is longer than the {MAX_RECORD_BYTES} bytes a segment takes")]
pub struct TooLong {
    /// Length of the record, in bytes.
    pub length: usize,
}

/// The header of a new segment.
pub fn header() -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    let check = crc32c::crc32c(&bytes[..12]);
    bytes[12..].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// Appends a record to `bytes`.
///
/// # Errors
/// When the record is longer than [`MAX_RECORD_BYTES`]; `bytes` is unchanged then.
pub fn encode(record: &Record<'_>, bytes: &mut Vec<u8>) -> Result<(), TooLong> {
    match *record {
        Record::Out {
            fence,
            offset,
            stream,
            wall_us,
            data,
        } => {
            let head = out_head(fence, offset, stream, wall_us, data)?;
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(data);
        }
        Record::Event {
            fence,
            kind,
            payload,
        } => {
            let mut body_head = [0; BODY_HEAD_BYTES];
            body_head[0] = kind as u8;
            body_head[1..].copy_from_slice(&fence.to_le_bytes());
            let frame = frame(&body_head, payload)?;
            bytes.extend_from_slice(&frame);
            bytes.extend_from_slice(&body_head);
            bytes.extend_from_slice(payload);
        }
    }
    Ok(())
}

/// Everything of an output record that stands before `data`, so that a writer need not copy the
/// output.
///
/// # Errors
/// When the record would be longer than [`MAX_RECORD_BYTES`].
pub fn out_head(
    fence: i64,
    offset: u64,
    stream: Stream,
    wall_us: i64,
    data: &[u8],
) -> Result<[u8; OUT_HEAD_BYTES], TooLong> {
    let mut head = [0; OUT_HEAD_BYTES];
    let body = &mut head[FRAME_BYTES..];
    body[0] = OUT_KIND;
    body[1..9].copy_from_slice(&fence.to_le_bytes());
    body[9..17].copy_from_slice(&offset.to_le_bytes());
    body[17..25].copy_from_slice(&wall_us.to_le_bytes());
    body[25] = stream as u8;
    let frame = frame(&head[FRAME_BYTES..], data)?;
    head[..FRAME_BYTES].copy_from_slice(&frame);
    Ok(head)
}

fn frame(body_head: &[u8], rest: &[u8]) -> Result<[u8; FRAME_BYTES], TooLong> {
    let length = body_head.len() + rest.len();
    if length > MAX_RECORD_BYTES {
        return Err(TooLong { length });
    }
    let length = (length as u32).to_le_bytes();
    let check = crc32c::crc32c_append(crc32c::crc32c(body_head), rest);
    let mut frame = [0; FRAME_BYTES];
    frame[..4].copy_from_slice(&length);
    frame[4..8].copy_from_slice(&crc32c::crc32c(&length).to_le_bytes());
    frame[8..].copy_from_slice(&check.to_le_bytes());
    Ok(frame)
}

/// Why a segment cannot be read on. What was read before stays true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// The file does not begin as a segment does.
    #[error("this file is not a segment")]
    NotASegment,
    /// Another version wrote the file.
    #[error("the segment has version {0}; this program reads {OLDEST_VERSION} to {VERSION}")]
    Version(u16),
    /// A length that its checksum does not confirm, or that no writer writes.
    #[error("the record at byte {at} has an impossible length")]
    Length {
        /// Position of the record in the file.
        at: u64,
    },
    /// The checksum differs.
    #[error("the record at byte {at} is damaged")]
    Checksum {
        /// Position of the record in the file.
        at: u64,
    },
    /// The checksum is right but the contents are not understood.
    #[error("the record at byte {at} is of an unknown kind")]
    Kind {
        /// Position of the record in the file.
        at: u64,
    },
}

/// What [`Reader::read`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read<'a> {
    /// The next record.
    Record {
        /// The record.
        record: Record<'a>,
        /// Position in the file of the first byte behind it.
        end: u64,
    },
    /// More bytes are needed. With no more bytes in the file, `waiting` bytes are a torn tail.
    Incomplete {
        /// Bytes behind the last record: 0 when the segment ends with it.
        waiting: usize,
    },
}

/// What [`Reader::read_past_damage`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// The next record.
    Record {
        /// The record.
        record: Record<'a>,
        /// Position in the file of the first byte behind it.
        end: u64,
    },
    /// More bytes are needed.
    Incomplete,
    /// What was fed may have been rewritten while it was read: it is to be fed again, from
    /// [`Reader::feed_position`] on.
    Again,
    /// The file is damaged here. Reading goes on with the next good record.
    Damage(Corrupt),
}

/// Turns the bytes of a segment, fed in pieces of any size, into records.
#[derive(Debug)]
pub struct Reader {
    buffer: Vec<u8>,
    /// Where the first unread byte stands in `buffer`.
    start: usize,
    /// Where the first unread byte stands in the file.
    at: u64,
    /// End of the last good record.
    good: u64,
    failed: Option<Corrupt>,
    /// Damage is passed over until the next good record.
    searching: bool,
    /// Where the body of the next record stands in `buffer`, once it was found to be good.
    next: Option<std::ops::Range<usize>>,
    /// Behind the record that ends here something was wrong, and was fed again.
    suspect: Option<u64>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// A reader that is fed from the beginning of the file.
    pub fn new() -> Self {
        Self::at(0)
    }

    /// A reader that is fed from `position`: 0, or the end of a record.
    pub fn at(position: u64) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            at: position,
            good: position,
            failed: None,
            searching: false,
            next: None,
            suspect: None,
        }
    }

    /// Adds the bytes that follow those fed before.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    /// Makes room for `length` more bytes and returns it, to be filled straight from the file.
    /// Bytes that are not filled must be given back with [`Reader::unfill`].
    pub fn space(&mut self, length: usize) -> &mut [u8] {
        if self.start > 0 {
            self.drain();
        }
        let filled = self.buffer.len();
        self.buffer.resize(filled + length, 0);
        &mut self.buffer[filled..]
    }

    /// Takes back the last `length` bytes of the room that [`Reader::space`] made.
    pub fn unfill(&mut self, length: usize) {
        let filled = self.buffer.len().saturating_sub(length).max(self.start);
        self.buffer.truncate(filled);
    }

    /// Position in the file of the first byte behind the last record read. A file is cut here
    /// before anything is appended to it.
    pub fn position(&self) -> u64 {
        self.good
    }

    /// Position in the file of the next byte to feed.
    pub fn feed_position(&self) -> u64 {
        self.at + (self.buffer.len() - self.start) as u64
    }

    /// Goes on behind damage: whatever [`Reader::read`] failed at is passed over until a record
    /// whose checksums are right. Nothing can be read of another version.
    pub fn skip_damage(&mut self) {
        match self.failed {
            None | Some(Corrupt::Version(_)) => return,
            Some(Corrupt::NotASegment) => self.pass_header(),
            // Its frame is good, so the next record begins behind it.
            Some(Corrupt::Kind { .. }) => {
                let length = read_u32(&self.unread()[..4]) as usize;
                self.start += FRAME_BYTES + length;
                self.at += (FRAME_BYTES + length) as u64;
                self.good = self.at;
            }
            Some(_) => self.step(),
        }
        self.failed = None;
        self.searching = true;
    }

    /// Reads the next record, also behind damage. What looks damaged is read a second time first: a
    /// writer that found no room takes a half-written record back.
    ///
    /// # Errors
    /// When another version wrote the file.
    pub fn read_past_damage(&mut self) -> Result<Found<'_>, Corrupt> {
        match self.is_ready() {
            Ok(true) => {}
            Ok(false) => return Ok(Found::Incomplete),
            Err(version @ Corrupt::Version(_)) => return Err(version),
            Err(_) if self.suspect != Some(self.good) => {
                let good = self.good;
                *self = Self {
                    buffer: std::mem::take(&mut self.buffer),
                    suspect: Some(good),
                    ..Self::at(good)
                };
                self.buffer.clear();
                return Ok(Found::Again);
            }
            Err(damage) => {
                self.skip_damage();
                return Ok(Found::Damage(damage));
            }
        }
        match self.read()? {
            Read::Record { record, end } => Ok(Found::Record { record, end }),
            Read::Incomplete { .. } => Ok(Found::Incomplete),
        }
    }

    /// Leaves the next byte unread.
    fn step(&mut self) {
        self.start += 1;
        self.at += 1;
    }

    /// Gives memory of an unusually long record back.
    pub fn shrink(&mut self, capacity: usize) {
        self.drain();
        self.buffer.shrink_to(capacity);
    }

    fn drain(&mut self) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.next = None;
    }

    /// Reads the next record.
    ///
    /// # Errors
    /// When the bytes are not a segment's. The same error comes back every time.
    pub fn read(&mut self) -> Result<Read<'_>, Corrupt> {
        self.is_ready()?;
        let Some(body) = self.next.take() else {
            return Ok(Read::Incomplete {
                waiting: self.buffer.len() - self.start,
            });
        };
        let at = self.at;
        self.start = body.end;
        self.at += (FRAME_BYTES + body.len()) as u64;
        self.good = self.at;
        self.searching = false;
        let record = parse(&self.buffer[body]).ok_or(Corrupt::Kind { at })?;
        Ok(Read::Record {
            record,
            end: self.good,
        })
    }

    /// Whether the next record is there and good.
    fn is_ready(&mut self) -> Result<bool, Corrupt> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        while self.next.is_none() {
            match self.locate() {
                // The checksum was verified, so an unknown kind is a newer writer's, not damage.
                Ok(Some(body)) if parse(&self.buffer[body.clone()]).is_none() => {
                    let failed = Corrupt::Kind { at: self.at };
                    self.failed = Some(failed);
                    return Err(failed);
                }
                Ok(Some(body)) => self.next = Some(body),
                Ok(None) => return Ok(false),
                Err(Corrupt::Length { .. } | Corrupt::Checksum { .. }) if self.searching => {
                    self.step();
                }
                Err(failed) => {
                    self.failed = Some(failed);
                    return Err(failed);
                }
            }
        }
        Ok(true)
    }

    /// Finds the body of the next record in the buffer.
    fn locate(&mut self) -> Result<Option<std::ops::Range<usize>>, Corrupt> {
        if self.at == 0 {
            let Some(head) = self.unread().first_chunk::<HEADER_BYTES>() else {
                return Ok(None);
            };
            check_header(head)?;
            self.pass_header();
        }
        let at = self.at;
        let unread = self.unread();
        let Some(frame) = unread.first_chunk::<FRAME_BYTES>() else {
            return Ok(None);
        };
        let length = read_u32(&frame[..4]) as usize;
        if crc32c::crc32c(&frame[..4]) != read_u32(&frame[4..8])
            || !(BODY_HEAD_BYTES..=MAX_RECORD_BYTES).contains(&length)
        {
            return Err(Corrupt::Length { at });
        }
        let Some(body) = unread.get(FRAME_BYTES..FRAME_BYTES + length) else {
            return Ok(None);
        };
        if crc32c::crc32c(body) != read_u32(&frame[8..]) {
            return Err(Corrupt::Checksum { at });
        }
        let begin = self.start + FRAME_BYTES;
        Ok(Some(begin..begin + length))
    }

    fn pass_header(&mut self) {
        self.start += HEADER_BYTES;
        self.at += HEADER_BYTES as u64;
        self.good = self.at;
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

fn check_header(head: &[u8; HEADER_BYTES]) -> Result<(), Corrupt> {
    if !head.starts_with(MAGIC) || crc32c::crc32c(&head[..12]) != read_u32(&head[12..]) {
        return Err(Corrupt::NotASegment);
    }
    let version = u16::from_le_bytes([head[8], head[9]]);
    if !(OLDEST_VERSION..=VERSION).contains(&version) {
        return Err(Corrupt::Version(version));
    }
    Ok(())
}

fn parse(body: &[u8]) -> Option<Record<'_>> {
    let (&kind, rest) = body.split_first()?;
    let (fence, payload) = rest.split_first_chunk::<8>()?;
    let fence = i64::from_le_bytes(*fence);
    if kind != OUT_KIND {
        return Some(Record::Event {
            fence,
            kind: EventKind::from_byte(kind)?,
            payload,
        });
    }
    let (offset, rest) = payload.split_first_chunk::<8>()?;
    let (wall_us, rest) = rest.split_first_chunk::<8>()?;
    let (&stream, data) = rest.split_first()?;
    Some(Record::Out {
        fence,
        offset: u64::from_le_bytes(*offset),
        stream: match stream {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return None,
        },
        wall_us: i64::from_le_bytes(*wall_us),
        data,
    })
}

/// Reads four bytes; callers pass exactly four.
fn read_u32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u32::from(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Owned {
        Out(i64, u64, Stream, i64, Vec<u8>),
        Event(i64, EventKind, Vec<u8>),
    }

    impl Owned {
        fn of(record: &Record<'_>) -> Self {
            match *record {
                Record::Out {
                    fence,
                    offset,
                    stream,
                    wall_us,
                    data,
                } => Self::Out(fence, offset, stream, wall_us, data.to_vec()),
                Record::Event {
                    fence,
                    kind,
                    payload,
                } => Self::Event(fence, kind, payload.to_vec()),
            }
        }

        fn record(&self) -> Record<'_> {
            match self {
                Self::Out(fence, offset, stream, wall_us, data) => Record::Out {
                    fence: *fence,
                    offset: *offset,
                    stream: *stream,
                    wall_us: *wall_us,
                    data,
                },
                Self::Event(fence, kind, payload) => Record::Event {
                    fence: *fence,
                    kind: *kind,
                    payload,
                },
            }
        }
    }

    fn segment(records: &[Owned]) -> (Vec<u8>, Vec<u64>) {
        let mut bytes = header().to_vec();
        let mut ends = Vec::new();
        for record in records {
            encode(&record.record(), &mut bytes).unwrap();
            ends.push(bytes.len() as u64);
        }
        (bytes, ends)
    }

    fn read_all(reader: &mut Reader) -> (Vec<(Owned, u64)>, Result<usize, Corrupt>) {
        let mut records = Vec::new();
        loop {
            match reader.read() {
                Ok(Read::Record { record, end }) => records.push((Owned::of(&record), end)),
                Ok(Read::Incomplete { waiting }) => return (records, Ok(waiting)),
                Err(corrupt) => return (records, Err(corrupt)),
            }
        }
    }

    fn sample() -> Vec<Owned> {
        vec![
            Owned::Event(7, EventKind::Assigned, b"assignment".to_vec()),
            Owned::Event(7, EventKind::Starting, Vec::new()),
            Owned::Out(
                7,
                0,
                Stream::Stdout,
                1_700_000_000_000_000,
                b"hello\n".to_vec(),
            ),
            Owned::Out(7, 6, Stream::Stderr, -1, vec![0xff, 0xfe, 0]),
            Owned::Out(7, 9, Stream::Stdout, 0, Vec::new()),
            Owned::Event(7, EventKind::Exit, b"exit".to_vec()),
            Owned::Event(7, EventKind::Freed, Vec::new()),
        ]
    }

    #[test]
    fn a_cut_at_any_byte_yields_the_whole_records_before_it() {
        let records = sample();
        let (bytes, ends) = segment(&records);
        for cut in 0..=bytes.len() {
            let mut reader = Reader::new();
            reader.feed(&bytes[..cut]);
            let (found, rest) = read_all(&mut reader);
            let whole = ends.iter().filter(|&&end| end <= cut as u64).count();
            let last = if cut < HEADER_BYTES {
                0
            } else {
                ends[..whole].last().copied().unwrap_or(HEADER_BYTES as u64)
            };
            assert_eq!(found.len(), whole, "cut at {cut}");
            assert_eq!(rest, Ok(cut - last as usize), "cut at {cut}");
            assert_eq!(reader.position(), last, "cut at {cut}");
            assert_eq!(reader.feed_position(), cut as u64);
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed_and_spares_the_records_before_it() {
        let records = sample();
        let (bytes, ends) = segment(&records);
        for byte in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[byte] ^= 1 << bit;
                let mut reader = Reader::new();
                reader.feed(&damaged);
                let (found, rest) = read_all(&mut reader);
                let whole = ends.iter().filter(|&&end| end <= byte as u64).count();
                assert!(rest.is_err(), "bit {bit} of byte {byte}");
                assert_eq!(found.len(), whole, "bit {bit} of byte {byte}");
                assert_eq!(reader.read().err(), rest.err(), "the error stays");
            }
        }
    }

    #[test]
    fn behind_damage_everything_but_the_damaged_record_is_found() {
        let records = sample();
        let (bytes, ends) = segment(&records);
        for byte in HEADER_BYTES..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 0x41;
            let mut reader = Reader::new();
            reader.feed(&damaged);
            let (mut found, rest) = read_all(&mut reader);
            assert!(rest.is_err());
            let good = reader.position();
            reader.skip_damage();
            let (more, rest) = read_all(&mut reader);
            assert!(rest.is_ok(), "byte {byte}");
            let hit = ends.iter().filter(|&&end| end <= byte as u64).count();
            if hit == records.len() - 1 {
                assert_eq!(reader.position(), good, "byte {byte}");
            }
            found.extend(more);
            let mut left: Vec<_> = records.iter().cloned().zip(ends.clone()).collect();
            left.remove(hit);
            assert_eq!(found, left, "byte {byte}");
        }
    }

    /// Everything that is found when damage is passed over, and how often it was met.
    fn read_past(bytes: &[u8]) -> Result<(Vec<Owned>, usize), Corrupt> {
        let mut reader = Reader::new();
        let (mut found, mut damage) = (Vec::new(), 0);
        reader.feed(bytes);
        loop {
            match reader.read_past_damage()? {
                Found::Record { record, .. } => found.push(Owned::of(&record)),
                Found::Incomplete => return Ok((found, damage)),
                Found::Again => reader.feed(&bytes[reader.feed_position() as usize..]),
                Found::Damage(_) => damage += 1,
            }
        }
    }

    #[test]
    fn damage_is_told_once_and_costs_one_record_at_most() {
        let records = sample();
        let (bytes, ends) = segment(&records);
        assert_eq!(read_past(&bytes), Ok((records.clone(), 0)));
        for byte in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 0x10;
            let mut left = records.clone();
            if byte >= HEADER_BYTES {
                left.remove(ends.iter().filter(|&&end| end <= byte as u64).count());
            }
            assert_eq!(read_past(&damaged), Ok((left, 1)), "byte {byte}");
        }
    }

    #[test]
    fn a_record_that_was_taken_back_while_it_was_read_is_no_damage() {
        let (bytes, ends) = segment(&sample());
        let cut = ends[2] as usize + 20;
        let mut torn = bytes[..cut].to_vec();
        torn[ends[2] as usize..].fill(b'x');
        let mut reader = Reader::new();
        reader.feed(&torn);
        let mut found = 0;
        while let Found::Record { .. } = reader.read_past_damage().unwrap() {
            found += 1;
        }
        reader.feed(&bytes[reader.feed_position() as usize..]);
        while let Found::Record { .. } = reader.read_past_damage().unwrap() {
            found += 1;
        }
        assert_eq!(found, sample().len());
        assert_eq!(reader.position(), bytes.len() as u64);
    }

    #[test]
    fn another_version_is_never_read_on() {
        let (mut bytes, _) = segment(&sample());
        bytes[8] = 9;
        let check = crc32c::crc32c(&bytes[..12]);
        bytes[12..HEADER_BYTES].copy_from_slice(&check.to_le_bytes());
        assert_eq!(read_past(&bytes), Err(Corrupt::Version(9)));
    }

    #[test]
    fn reading_goes_on_from_the_end_of_any_record() {
        let records = sample();
        let (bytes, ends) = segment(&records);
        for (index, &end) in ends.iter().enumerate() {
            let mut reader = Reader::at(end);
            reader.feed(&bytes[end as usize..]);
            let (found, rest) = read_all(&mut reader);
            assert_eq!(rest, Ok(0));
            let found: Vec<_> = found.into_iter().map(|(record, _)| record).collect();
            assert_eq!(found, records[index + 1..]);
        }
    }

    #[test]
    fn another_version_and_another_file_are_named() {
        let mut newer = header();
        newer[8..10].copy_from_slice(&9_u16.to_le_bytes());
        let check = crc32c::crc32c(&newer[..12]);
        newer[12..].copy_from_slice(&check.to_le_bytes());
        let mut reader = Reader::new();
        reader.feed(&newer);
        assert_eq!(reader.read(), Err(Corrupt::Version(9)));

        let mut reader = Reader::new();
        reader.feed(b"#!/bin/sh\necho not a segment\n");
        assert_eq!(reader.read(), Err(Corrupt::NotASegment));
    }

    #[test]
    fn zeros_behind_the_last_record_are_not_a_record() {
        let (mut bytes, ends) = segment(&sample());
        bytes.resize(bytes.len() + 4096, 0);
        let mut reader = Reader::new();
        reader.feed(&bytes);
        let (found, rest) = read_all(&mut reader);
        assert_eq!(found.len(), sample().len());
        let at = *ends.last().unwrap();
        assert_eq!(rest, Err(Corrupt::Length { at }));
        assert_eq!(reader.position(), at);
    }

    #[test]
    fn a_record_that_is_too_long_is_refused_and_leaves_nothing() {
        let mut bytes = Vec::new();
        let payload = vec![0; MAX_RECORD_BYTES];
        let refused = encode(
            &Record::Event {
                fence: 1,
                kind: EventKind::Assigned,
                payload: &payload,
            },
            &mut bytes,
        );
        assert!(refused.is_err());
        assert!(bytes.is_empty());
    }

    #[test]
    fn room_that_was_not_filled_is_given_back() {
        let (bytes, _) = segment(&sample());
        let mut reader = Reader::new();
        let room = reader.space(bytes.len() + 100);
        room[..bytes.len()].copy_from_slice(&bytes);
        reader.unfill(100);
        let (found, rest) = read_all(&mut reader);
        assert_eq!((found.len(), rest), (sample().len(), Ok(0)));
    }

    fn any_record() -> impl Strategy<Value = Owned> {
        let data = || proptest::collection::vec(any::<u8>(), 0..300);
        let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
        let kind = (2_u8..=13).prop_map(|byte| EventKind::from_byte(byte).unwrap());
        prop_oneof![
            (any::<i64>(), any::<u64>(), stream, any::<i64>(), data())
                .prop_map(|(f, o, s, w, d)| Owned::Out(f, o, s, w, d)),
            (any::<i64>(), kind, data()).prop_map(|(f, k, d)| Owned::Event(f, k, d)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_in_pieces_of_any_size(
            records in proptest::collection::vec(any_record(), 0..20),
            sizes in proptest::collection::vec(1_usize..200, 1..20),
        ) {
            let (bytes, ends) = segment(&records);
            let mut reader = Reader::new();
            let mut found = Vec::new();
            let mut rest = bytes.as_slice();
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, behind) = rest.split_at((*size).min(rest.len()));
                reader.feed(piece);
                rest = behind;
                let (more, end) = read_all(&mut reader);
                prop_assert!(end.is_ok());
                found.extend(more);
            }
            let expected: Vec<_> = records.into_iter().zip(ends).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..500),
            with_header in any::<bool>(),
        ) {
            let mut reader = Reader::new();
            if with_header {
                reader.feed(&header());
            }
            reader.feed(&bytes);
            let _ = read_all(&mut reader);
            let mut whole = header().to_vec();
            whole.extend(&bytes);
            let _ = read_past(if with_header { &whole } else { &bytes });
        }
    }
}
