//! Faults of GPUs.

use qctl_proto::v1::gpu_fault::Kind as Wire;
use qctl_proto::v1::{Assignment, GpuFault};
use qctl_worker_core::gpu::{Fault, FaultKind as Kind, Usual};

use super::{duration, wire_duration};

/// How long an item took in earlier runs; `None` when that is not known.
pub(crate) fn usual_item(assignment: &Assignment) -> Option<Usual> {
    let told = assignment.usual_item.as_ref()?;
    let item = told.time.and_then(duration)?;
    (!item.is_zero()).then(|| Usual {
        item,
        unit: told.unit.clone(),
        source: told.source.clone(),
        same_command: told.same_command,
    })
}

/// A fault as the contract has it.
pub(crate) fn wire_gpu_fault(fault: Fault) -> GpuFault {
    let message = fault.to_string();
    let users_hidden = matches!(fault.kind, Kind::Unused { hidden: true, .. });
    let (item, usual_item) = match fault.kind {
        Kind::Slow { item, usual } => (wire_duration(item), wire_duration(usual)),
        _ => (None, None),
    };
    let (kind, number, message) = match fault.kind {
        Kind::Lost => (Wire::Lost, 0, message),
        Kind::Memory(errors) => (Wire::Memory, errors, message),
        Kind::Xid(xid) => (Wire::Xid, xid, message),
        // The line is what the other side makes a sentence of again.
        Kind::Output(line) => (Wire::Output, 0, line),
        Kind::Silent => (Wire::Silent, 0, message),
        Kind::Unfit(words) => (Wire::Unfit, 0, words),
        Kind::Unused { seconds, .. } => (Wire::Unused, seconds, message),
        Kind::Slow { item, usual } => {
            let times = item.as_secs_f64() / usual.as_secs_f64().max(f64::MIN_POSITIVE);
            (Wire::Slow, times as u64, message)
        }
    };
    GpuFault {
        gpu: fault.gpu,
        name: fault.name,
        kind: kind.into(),
        number: i64::try_from(number).unwrap_or(i64::MAX),
        message,
        users_hidden,
        item,
        usual_item,
    }
}

/// A fault of the contract; `None` for a kind that this program does not know.
pub(crate) fn gpu_fault_from(wire: GpuFault) -> Option<Fault> {
    let number = wire.number.max(0) as u64;
    let kind = match wire.kind() {
        Wire::Lost => Kind::Lost,
        Wire::Memory => Kind::Memory(number),
        Wire::Xid => Kind::Xid(number),
        Wire::Output => Kind::Output(wire.message),
        Wire::Silent => Kind::Silent,
        Wire::Unfit => Kind::Unfit(wire.message),
        Wire::Unused => Kind::Unused {
            seconds: number,
            hidden: wire.users_hidden,
        },
        Wire::Slow => Kind::Slow {
            item: wire.item.and_then(duration).unwrap_or_default(),
            usual: wire.usual_item.and_then(duration).unwrap_or_default(),
        },
        Wire::Unspecified | Wire::FailsJobs => return None,
    };
    Some(Fault {
        gpu: wire.gpu,
        name: wire.name,
        kind,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_fault_comes_back() {
        for kind in [
            Kind::Lost,
            Kind::Memory(2),
            Kind::Xid(79),
            Kind::Output("CUDA error: unspecified launch failure".to_owned()),
            Kind::Silent,
            Kind::Unfit("it cannot be read".to_owned()),
            Kind::Unused {
                seconds: 600,
                hidden: false,
            },
            Kind::Unused {
                seconds: 600,
                hidden: true,
            },
            Kind::Slow {
                item: Duration::from_secs(41),
                usual: Duration::from_millis(1_200),
            },
        ] {
            let fault = Fault {
                gpu: "GPU-1".to_owned(),
                name: "X".to_owned(),
                kind,
            };
            assert_eq!(gpu_fault_from(wire_gpu_fault(fault.clone())), Some(fault));
        }
    }
}
