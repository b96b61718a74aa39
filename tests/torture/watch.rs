//! What must hold while parts are killed, and afterwards.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::Installation;
use crate::harness::invariants::{self, Tables};

/// Ended jobs and attempts as they were first seen: they never change again.
const FINAL: &[(&str, &str)] = &[
    (
        "job",
        "select id, state, reason, message, ended_at, attempts from jobs where ended_at is not null",
    ),
    (
        "attempt",
        "select fence as id, job_id, number, outcome_kind, outcome_cause, exit_code, signal,
           ended_at, log_end from attempts where state = 'ended' and late_result is null",
    ),
];

/// Compares what is with what was.
pub(crate) struct Watch {
    pub(crate) tables: Tables,
    ended: BTreeMap<(&'static str, i64), Value>,
}

impl Watch {
    pub(crate) fn new(qctl: &Installation) -> Self {
        Self {
            tables: Tables::of(qctl),
            ended: BTreeMap::new(),
        }
    }

    /// Jobs that have not ended; `None` when the database does not answer.
    pub(crate) fn open(&self) -> Option<usize> {
        let open = "select count(*) as n from jobs where ended_at is null";
        let rows = self.tables.rows(open).ok()?;
        rows[0]["n"].as_u64().map(|n| n as usize)
    }

    /// Names of all jobs.
    pub(crate) fn names(&self) -> Vec<String> {
        let rows = self
            .tables
            .rows("select name from jobs")
            .unwrap_or_default();
        let names = rows.iter().filter_map(|row| row["name"].as_str());
        names.map(str::to_owned).collect()
    }

    /// What is wrong now. A database that does not answer is asked again in the next round.
    pub(crate) fn look(&mut self, qctl: &Installation) -> Vec<String> {
        let mut broken = invariants::broken_now(&self.tables).unwrap_or_default();
        broken.extend(self.changed());
        broken.extend(invariants::twice(&qctl.evidence()));
        broken.extend(invariants::strangers(&self.tables));
        broken
    }

    fn changed(&mut self) -> Vec<String> {
        let mut broken = Vec::new();
        for (what, sql) in FINAL {
            for row in self.tables.rows(sql).unwrap_or_default() {
                let key = (*what, row["id"].as_i64().unwrap_or_default());
                match self.ended.get(&key) {
                    Some(before) if *before != row => broken.push(format!(
                        "an ended {what} changed: it was {before} and is {row}"
                    )),
                    Some(_) => {}
                    None => {
                        self.ended.insert(key, row);
                    }
                }
            }
        }
        broken
    }

    /// Counts of a column's values, for the summary.
    pub(crate) fn counts(&self, sql: &str) -> String {
        let rows = self.tables.rows(sql).unwrap_or_default();
        let counts = rows
            .iter()
            .map(|row| format!("{} {}", row["n"], row["what"].as_str().unwrap_or("open")));
        counts.collect::<Vec<_>>().join(", ")
    }
}
