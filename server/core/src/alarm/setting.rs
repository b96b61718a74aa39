//! From which figure on something is an alarm: for a job, a worker, or everywhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Kind;

/// What was chosen for one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// It is no alarm.
    Off,
    /// It is one from the usual figure on, whatever a more general choice says.
    On,
    /// It is one from this figure on, in the unit of the kind.
    At(i64),
}

/// What was chosen, by kind; for the others the more general choice holds.
pub type Settings = BTreeMap<Kind, Setting>;

/// The figure from which on it is an alarm, and whether somebody chose it; `None` when it is none.
/// The most particular choice comes first.
pub fn limit(kind: Kind, choices: &[&Settings]) -> Option<(i64, bool)> {
    match choices.iter().find_map(|choice| choice.get(&kind)) {
        Some(Setting::Off) => None,
        Some(Setting::At(limit)) => Some((*limit, true)),
        Some(Setting::On) | None => Some((kind.default_limit(), false)),
    }
}

/// A choice that cannot be made, and why.
pub fn first_impossible(settings: &Settings, of_job: bool) -> Option<(Kind, String)> {
    settings.iter().find_map(|(kind, setting)| {
        if of_job && !kind.is_of_jobs() {
            return Some((*kind, "is about machines, not about a job".to_owned()));
        }
        match setting {
            Setting::At(limit) if !kind.limits().contains(limit) => {
                let range = kind.limits();
                let problem = format!(
                    "is {limit}, not between {} and {}",
                    range.start(),
                    range.end()
                );
                Some((*kind, problem))
            }
            _ => None,
        }
    })
}
