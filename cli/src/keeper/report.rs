//! What the keeper lets others know of its programs, in `data/keeper/state.json`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use qctl_proto::home::Home;
use serde::{Deserialize, Serialize};

use super::settings::replace;
use super::supervision::{Phase, Supervision};

/// The keeper's programs, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The keeper's process id.
    pub pid: i32,
    /// How many requests it has carried out: to start what is missing, with the options of now.
    #[serde(default)]
    pub requests: u32,
    /// `server` and `worker`.
    pub programs: BTreeMap<String, ProgramReport>,
}

/// One program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramReport {
    /// `idle`, `running`, `stopping`, `backing_off` or `given_up`.
    pub phase: String,
    /// Process id; absent while it does not run.
    pub pid: Option<i32>,
    /// How often in a row it ended by itself, since the last request.
    pub failures: u32,
    /// How it ended last. Empty while it never did.
    pub last_ending: String,
}

impl ProgramReport {
    /// What there is to say of a supervised program.
    pub fn of(supervision: &Supervision, pid: Option<i32>, last_ending: &str) -> Self {
        let phase = match supervision.phase() {
            Phase::Idle => "idle",
            Phase::Running { .. } => "running",
            Phase::Stopping { .. } => "stopping",
            Phase::BackingOff { .. } => "backing_off",
            Phase::GivenUp => "given_up",
        };
        Self {
            phase: phase.to_owned(),
            pid,
            failures: supervision.failures(),
            last_ending: last_ending.to_owned(),
        }
    }

    /// True when it will not be started again by itself.
    pub fn has_given_up(&self) -> bool {
        self.phase == "given_up"
    }
}

impl Report {
    /// Reads what the keeper wrote last; nothing when there is no keeper's file.
    pub fn load(home: &Home) -> Self {
        std::fs::read(file(home))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Writes it for others.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, home: &Home) -> io::Result<()> {
        replace(&file(home), &serde_json::to_vec(self)?)
    }

    /// Takes it away at the keeper's end.
    pub fn remove(home: &Home) {
        let _ = std::fs::remove_file(file(home));
    }
}

/// The folder of the keeper's own files.
pub fn folder(home: &Home) -> PathBuf {
    home.data_dir().join("keeper")
}

fn file(home: &Home) -> PathBuf {
    folder(home).join(Path::new("state.json"))
}
