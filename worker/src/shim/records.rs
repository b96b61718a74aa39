//! Segment records as messages of the contract.

use bytes::Bytes;
use prost::Message;
use qctl_proto::v1::{SegmentRecord, segment_record};
use qctl_worker_core::segment::{self, EventKind, Record, TooLong};

/// Number of the field `fence` of `SegmentRecord`.
const FENCE_FIELD: u32 = 1;

/// What a record tells, except output.
pub type Event = segment_record::Record;

/// A payload that does not hold what its record announces.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not a message of the contract.
    #[error("a segment record cannot be decoded")]
    Decode(#[source] prost::DecodeError),
    /// Empty, or of a kind this program does not know.
    #[error("a segment record of attempt {fence} says nothing this program knows")]
    Unknown {
        /// The attempt.
        fence: i64,
    },
}

/// Appends an event to `bytes` as a segment record.
///
/// # Errors
/// When the record is longer than a segment takes.
pub fn encode(fence: i64, event: &Event, bytes: &mut Vec<u8>) -> Result<(), TooLong> {
    let kind = match event {
        Event::Assigned(_) => EventKind::Assigned,
        Event::Starting(_) => EventKind::Starting,
        Event::Pid(_) => EventKind::Pid,
        Event::Stopping(_) => EventKind::Stopping,
        Event::PauseChanged(_) => EventKind::PauseChanged,
        Event::Report(_) => EventKind::Report,
        Event::Exit(_) => EventKind::Exit,
        Event::Void(_) => EventKind::Void,
        Event::Freed(_) => EventKind::Freed,
        Event::Hole(_) => EventKind::Hole,
        Event::Tail(_) => EventKind::Tail,
        Event::Stuck(_) => EventKind::Stuck,
        Event::Silence(_) => EventKind::Silence,
    };
    // Field by field what `SegmentRecord` encodes to: the message would have to own the event, and
    // an assignment can hold megabytes.
    let mut payload = Vec::new();
    if fence != 0 {
        prost::encoding::int64::encode(FENCE_FIELD, &fence, &mut payload);
    }
    event.encode(&mut payload);
    segment::encode(
        &Record::Event {
            fence,
            kind,
            payload: &payload,
        },
        bytes,
    )
}

/// Decodes the payload of an event record.
///
/// # Errors
/// When the payload is not what a shim writes.
pub fn decode(payload: &[u8]) -> Result<(i64, Event), RecordError> {
    let record =
        SegmentRecord::decode(Bytes::copy_from_slice(payload)).map_err(RecordError::Decode)?;
    let fence = record.fence;
    let event = record.record.ok_or(RecordError::Unknown { fence })?;
    Ok((fence, event))
}

#[cfg(test)]
mod tests {
    use qctl_proto::v1::SegmentFreed;
    use qctl_worker_core::segment::{Read, Reader};

    use super::*;

    #[test]
    fn an_event_comes_back_from_a_segment() {
        let mut bytes = segment::header().to_vec();
        encode(9, &Event::Void("no room".into()), &mut bytes).unwrap();
        encode(9, &Event::Freed(SegmentFreed {}), &mut bytes).unwrap();
        let mut reader = Reader::new();
        reader.feed(&bytes);
        let Ok(Read::Record {
            record: Record::Event { kind, payload, .. },
            ..
        }) = reader.read()
        else {
            panic!("no record");
        };
        assert_eq!(kind, EventKind::Void);
        assert_eq!(decode(payload).unwrap(), (9, Event::Void("no room".into())));
    }

    #[test]
    fn an_empty_payload_is_named() {
        assert!(matches!(
            decode(&[]),
            Err(RecordError::Unknown { fence: 0 })
        ));
    }
}
