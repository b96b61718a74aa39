//! GPUs: what is seen of them, what counts as a fault, and when a job that was given one computes
//! without it.

mod fault;
mod health;
mod idle;
mod pace;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use fault::{FaultWatch, is_critical};
pub use health::{Answer, Depth, FIRST_PROBE_PAUSE, GpuHealth, LONGEST_PROBE_PAUSE, Verdict};
pub use idle::{DEFAULT_WINDOW, GpuWork, IdleWatch, Use, window};
pub use pace::{GpuShare, Look, PaceWatch, Usual};

/// What NVML says of a GPU at one moment. What it does not support is absent, never zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuReading {
    /// The device's UUID.
    pub uuid: String,
    /// Its name; empty when it cannot be read.
    #[serde(default)]
    pub name: String,
    /// It has fallen off the bus, needs a reset, or cannot be asked any more.
    #[serde(default)]
    pub lost: bool,
    /// Memory in use, in bytes.
    #[serde(default)]
    pub memory_used: Option<u64>,
    /// All its memory, in bytes.
    #[serde(default)]
    pub memory_total: Option<u64>,
    /// Share of the last moments in which it computed, 0 to 1.
    #[serde(default)]
    pub busy: Option<f64>,
    /// Temperature in degrees Celsius.
    #[serde(default)]
    pub temperature: Option<u32>,
    /// Power in watts.
    #[serde(default)]
    pub power: Option<f64>,
    /// Memory errors since the driver was loaded that could not be corrected.
    #[serde(default)]
    pub uncorrected: Option<u64>,
    /// The latest critical Xid since the look before.
    #[serde(default)]
    pub xid: Option<u64>,
    /// Processes that compute on it; absent where the platform does not tell.
    #[serde(default)]
    pub processes: Option<Vec<u32>>,
}

/// What is wrong with a GPU, or with how a job uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The device's UUID; empty when nobody knows which one it is.
    pub gpu: String,
    /// Its name; empty when it is not known.
    pub name: String,
    /// What is wrong.
    pub kind: FaultKind,
}

/// What may be wrong with a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The driver has lost it.
    Lost,
    /// So many new errors of its memory could not be corrected.
    Memory(u64),
    /// The driver reports this critical Xid.
    Xid(u64),
    /// A line of a job's output says so.
    Output(String),
    /// The driver does not answer.
    Silent,
    /// A probe found something else, in words.
    Unfit(String),
    /// The job that was given it has not used it.
    Unused {
        /// For so many seconds, in which its processors worked.
        seconds: u64,
        /// The driver does not tell whose work the GPU does: that of anybody would have counted.
        hidden: bool,
    },
    /// The job that was given it takes many times longer for its items than earlier runs did.
    Slow {
        /// For each, now.
        item: Duration,
        /// For each, then.
        usual: Duration,
    },
}

impl Fault {
    /// The GPU as people may know it: its name, and enough of its UUID to tell it from another.
    pub fn called(&self) -> String {
        let short: String = self.gpu.chars().take(SHORT_UUID).collect();
        match (self.name.as_str(), short.as_str()) {
            ("", "") => "a GPU".to_owned(),
            ("", short) => format!("GPU {short}"),
            (name, "") => name.to_owned(),
            (name, short) => format!("{name} ({short})"),
        }
    }
}

/// Characters of a UUID that are shown: `GPU-` and eight digits.
const SHORT_UUID: usize = 12;

impl fmt::Display for Fault {
    /// A sentence without its full stop.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gpu = self.called();
        match &self.kind {
            FaultKind::Lost => write!(f, "the driver has lost {gpu}"),
            FaultKind::Memory(1) => {
                write!(
                    f,
                    "the memory of {gpu} had an error that cannot be corrected"
                )
            }
            FaultKind::Memory(count) => {
                write!(
                    f,
                    "the memory of {gpu} had {count} errors that cannot be corrected"
                )
            }
            FaultKind::Xid(xid) => {
                write!(f, "the driver reports a serious error of {gpu}: Xid {xid}")
            }
            FaultKind::Output(line) => write!(f, "its output says: {line}"),
            FaultKind::Silent => write!(f, "the driver of {gpu} does not answer"),
            FaultKind::Unfit(words) => write!(f, "{gpu} is not fit for work: {words}"),
            FaultKind::Unused { seconds, hidden } => {
                let (count, unit) = match seconds {
                    0..120 => (*seconds, "seconds"),
                    _ => (seconds / 60, "minutes"),
                };
                write!(
                    f,
                    "it was given {gpu} and has not used it for {count} {unit} in which its \
                     processors worked"
                )?;
                if *hidden {
                    write!(
                        f,
                        " (which processes use it is not told there; none of any job did)"
                    )?;
                }
                Ok(())
            }
            FaultKind::Slow { item, usual } => {
                let (unit, item) = match figure(*item).as_str() {
                    "1.0" => ("second", "1".to_owned()),
                    item => ("seconds", item.to_owned()),
                };
                let usual = figure(*usual);
                write!(f, "{item} {unit} for each item, {usual} in earlier runs")
            }
        }
    }
}

/// Seconds, with as many places as tell something.
fn figure(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let places = match seconds {
        10.0.. => 0,
        1.0.. => 1,
        0.1.. => 2,
        _ => 3,
    };
    format!("{seconds:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_said_in_a_sentence() {
        let fault = |kind| Fault {
            gpu: "GPU-5f3ab2c1-0000-4000-8000-000000000000".to_owned(),
            name: "NVIDIA H200".to_owned(),
            kind,
        };
        for (kind, words) in [
            (
                FaultKind::Lost,
                "the driver has lost NVIDIA H200 (GPU-5f3ab2c1)",
            ),
            (
                FaultKind::Memory(1),
                "the memory of NVIDIA H200 (GPU-5f3ab2c1) had an error that cannot be corrected",
            ),
            (
                FaultKind::Xid(79),
                "the driver reports a serious error of NVIDIA H200 (GPU-5f3ab2c1): Xid 79",
            ),
            (
                FaultKind::Slow {
                    item: Duration::from_secs(41),
                    usual: Duration::from_millis(1_200),
                },
                "41 seconds for each item, 1.2 in earlier runs",
            ),
            (
                FaultKind::Unused {
                    seconds: 900,
                    hidden: false,
                },
                "it was given NVIDIA H200 (GPU-5f3ab2c1) and has not used it for 15 minutes in which \
                 its processors worked",
            ),
            (
                FaultKind::Unused {
                    seconds: 10,
                    hidden: true,
                },
                "it was given NVIDIA H200 (GPU-5f3ab2c1) and has not used it for 10 seconds in which \
                 its processors worked (which processes use it is not told there; none of any job \
                 did)",
            ),
        ] {
            assert_eq!(fault(kind).to_string(), words);
        }
        let unknown = Fault {
            gpu: String::new(),
            name: String::new(),
            kind: FaultKind::Silent,
        };
        assert_eq!(unknown.to_string(), "the driver of a GPU does not answer");
    }
}
