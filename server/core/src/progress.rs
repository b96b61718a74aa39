//! How far a job is.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// How far a job is. Stored as JSON: fields are only ever added, with a default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Items done.
    pub done: f64,
    /// Items in all; 0 when unknown.
    pub total: f64,
    /// What is counted; `%` when only a percentage is known.
    pub unit: String,
    /// 0 to 100.
    pub percent: Option<f64>,
    /// Items a second.
    pub rate: Option<f64>,
    /// What remains, estimated.
    pub eta: Option<Duration>,
    /// Free text of an explicit report.
    pub message: String,
    /// Where it was read from.
    pub source: String,
    /// When it was read, on the worker.
    pub observed_at: Option<DateTime<Utc>>,
}
