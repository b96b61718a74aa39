//! Deals with segments whose shim is gone: ends what is left of their attempts, and writes down what
//! became of them.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use qctl_checkpoint::is_used;
use qctl_worker_core::agent::{Fact, Loss};
use qctl_worker_core::enforcement::STUCK_AFTER;
use qctl_worker_core::segment;

use crate::chain;
use crate::follower::Follower;
use crate::log_pump::Pump;
use crate::process::identity::Identity;
use crate::process::marker::Marker;
use crate::process::sweep::{Trace, sweep};
use crate::shim::records;
use crate::shim_link::wall_now;
use crate::wire;

/// Time after which a sweep that still finds processes is reported, and goes on.
const REPORT_AFTER: Duration = STUCK_AFTER;

/// Pause when processes cannot be listed.
const PAUSE: Duration = Duration::from_secs(1);

/// Settles the losses of a segment, whose lock this agent holds. Ends what is left of their
/// processes, however long that takes, and tells what is true then; what takes long is told before.
/// `seen` says that the shim vanished while this agent lived. Blocks.
pub(crate) fn conclude(
    follower: &Follower,
    losses: &[Loss],
    seen: bool,
    pump: &Pump,
    tell: impl Fn(Vec<(i64, Fact)>),
) {
    let file = follower.file();
    let changed = file.metadata().and_then(|meta| meta.modified()).ok();
    let mut facts = Vec::new();
    let mut bytes = Vec::new();
    for loss in losses {
        let fence = loss.fence;
        if loss.unswept() {
            end_processes(loss, &tell);
        }
        let at = match changed.filter(|_| !seen) {
            Some(changed) => changed
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
            None => wall_now(),
        };
        let at_us = i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
        let used = is_used(Path::new(&loss.checkpoint_dir));
        let checkpoint = match used {
            true => loss.checkpoint_dir.clone(),
            false => String::new(),
        };
        for mut fact in loss.facts(at_us, checkpoint) {
            if let Fact::Ended(ended) = &mut fact {
                ended.gpu_out_of_memory |= follower.tells_of_gpu_memory(fence);
            }
            if let Some(event) = wire::record(fence, &fact) {
                let encoded = records::encode(fence, &event, &mut bytes);
                debug_assert!(encoded.is_ok(), "these records are short");
            }
            if let Fact::Ended(ended) = &fact {
                pump.ended(fence, ended.log_end, ended.log_crc32c);
            }
            facts.push((fence, fact));
        }
    }
    // The facts hold either way; without the record the next agent finds them out again.
    if let Err(error) = append(follower, &bytes) {
        tracing::error!(
            "what became of lost attempts could not be recorded: {}",
            chain(&error)
        );
    }
    tell(facts);
}

/// Writes records behind the last whole one, cutting off what a vanished shim left half-written.
/// What was not read, or not understood, is never cut off.
fn append(follower: &Follower, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    if !follower.has_read_all()? {
        return Err(io::Error::other("not all of the segment could be read"));
    }
    let (file, position) = (follower.file(), follower.position());
    file.set_len(position)?;
    let mut at = position;
    if at == 0 {
        let header = segment::header();
        file.write_all_at(&header, 0)?;
        at = header.len() as u64;
    }
    file.write_all_at(bytes, at)?;
    file.sync_data()
}

/// Ends every process of an attempt. Its slot stays taken until that has worked.
fn end_processes(loss: &Loss, tell: impl Fn(Vec<(i64, Fact)>)) {
    let fence = loss.fence;
    let trace = Trace {
        marker: Marker::new(&loss.terms.spool_id, fence),
        leader: loss.started.as_ref().map(|started| Identity {
            boot_id: loss.terms.boot_id.clone(),
            pid: started.pid,
            start_ticks: started.start_ticks,
        }),
    };
    let mut told = false;
    loop {
        match sweep(&trace, Instant::now() + REPORT_AFTER) {
            Ok(left) if left.is_empty() => return,
            Ok(left) => {
                if !std::mem::replace(&mut told, true) {
                    let pids = left.iter().map(|process| process.pid).collect();
                    tell(vec![(fence, Fact::Stuck(pids))]);
                }
            }
            Err(error) => {
                tracing::error!(
                    fence,
                    "processes of the lost attempt with fence {fence} cannot be looked for: {}",
                    chain(&error)
                );
                std::thread::sleep(PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::path::PathBuf;
    use std::sync::Arc;

    use qctl_worker_core::segment::{Record, Stream, encode};

    use super::*;
    use crate::follower::FollowError;

    fn follow(path: &Path, pump: &Pump) -> Follower {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Follower::new(Arc::new(file.unwrap()), PathBuf::from(path), pump.clone())
    }

    fn read(follower: &mut Follower) -> Result<(), FollowError> {
        follower.read_all(Duration::ZERO, &mut Vec::new())
    }

    #[test]
    fn only_a_torn_end_that_was_read_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.segment");
        let pump = Pump::start(|_| {}).unwrap();
        let mut whole = segment::header().to_vec();
        let record = Record::Out {
            fence: 7,
            offset: 0,
            stream: Stream::Stdout,
            wall_us: 1,
            data: b"text",
        };
        encode(&record, &mut whole).unwrap();
        let torn = [whole.as_slice(), &whole[whole.len() - 9..]].concat();
        fs::write(&path, &torn).unwrap();
        let mut follower = follow(&path, &pump);
        assert!(append(&follower, b"more").is_err(), "nothing was read");
        assert_eq!(fs::read(&path).unwrap(), torn);
        read(&mut follower).unwrap();
        append(&follower, b"more").unwrap();
        assert_eq!(
            fs::read(&path).unwrap(),
            [whole.as_slice(), b"more"].concat()
        );

        let mut newer = whole.clone();
        newer[8] = 9;
        let check = crc32c::crc32c(&newer[..12]);
        newer[12..16].copy_from_slice(&check.to_le_bytes());
        fs::write(&path, &newer).unwrap();
        let mut follower = follow(&path, &pump);
        read(&mut follower).unwrap_err();
        assert!(append(&follower, b"more").is_err(), "it was not understood");
        assert_eq!(fs::read(&path).unwrap(), newer);
    }
}
