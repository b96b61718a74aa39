//! The work that goes on while parts are killed.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::harness::{Installation, WITNESS, finish};
use crate::random::Random;

/// Jobs that may be open before no more are submitted.
const MOST_OPEN: usize = 40;

/// Kinds of jobs, each with what a batch's line says and what the witness is told.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Short,
    Long,
    Loud,
    Failing,
    Retrying,
    Exclusive,
    Wide,
    Escaping,
    Checkpointing,
}

const KINDS: &[(u64, Kind)] = &[
    (6, Kind::Short),
    (4, Kind::Long),
    (2, Kind::Loud),
    (2, Kind::Failing),
    (2, Kind::Retrying),
    (2, Kind::Exclusive),
    (1, Kind::Wide),
    (1, Kind::Escaping),
    (2, Kind::Checkpointing),
];

impl Kind {
    fn line(self, name: &str, folder: &str) -> Value {
        let task: &[&str] = match self {
            Kind::Short => &["lines=2"],
            Kind::Long | Kind::Exclusive | Kind::Wide => &["lines=120", "pause_ms=10"],
            Kind::Loud => &["lines=8000", "width=300"],
            Kind::Failing => &["lines=5", "exit=3"],
            Kind::Retrying => &["lines=5", "exit=4", "good_from=2"],
            Kind::Escaping => &["lines=3", "escape=99"],
            Kind::Checkpointing => &["lines=80", "pause_ms=10", "checkpoint=20"],
        };
        let mut command = vec![WITNESS, folder];
        command.extend(task);
        let mut line = json!({"name": name, "command": command, "stop_grace": "1s"});
        match self {
            Kind::Failing => line["retries"] = json!(0),
            Kind::Exclusive => line["exclusive"] = json!(true),
            Kind::Wide => line["slots"] = json!(2),
            _ => {}
        }
        line
    }
}

/// Submits batches and remembers which were acknowledged.
pub(crate) struct Load {
    folder: String,
    under_way: Vec<(Vec<String>, Child)>,
    acknowledged: BTreeSet<String>,
    submitted: usize,
}

impl Load {
    pub(crate) fn new(qctl: &Installation) -> Self {
        Self {
            folder: format!("folder={}", qctl.evidence().display()),
            under_way: Vec::new(),
            acknowledged: BTreeSet::new(),
            submitted: 0,
        }
    }

    /// Begins to submit a batch, unless enough is to do already.
    pub(crate) fn submit(&mut self, qctl: &Installation, random: &mut Random, open: usize) {
        let count = 2 + random.below(7);
        let lines: Vec<(String, Value)> = (0..count)
            .map(|_| {
                self.submitted += 1;
                let name = format!("torture {}", self.submitted);
                let line = random.weighted(KINDS).line(&name, &self.folder);
                (name, line)
            })
            .collect();
        if open > MOST_OPEN {
            return;
        }
        let text: String = lines.iter().map(|(_, line)| format!("{line}\n")).collect();
        let file = qctl.file(&format!("batches/{}.jsonl", self.submitted), text);
        let mut command = qctl.command("qctl");
        command.args(["submit", "--batch"]).arg(file);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let names = lines.into_iter().map(|(name, _)| name).collect();
        self.under_way.push((names, command.spawn().unwrap()));
    }

    /// Takes the answers that have come; all of them when `wait`.
    pub(crate) fn collect(&mut self, wait: bool) {
        let under_way = std::mem::take(&mut self.under_way);
        for (names, mut child) in under_way {
            if !wait && matches!(child.try_wait(), Ok(None)) {
                self.under_way.push((names, child));
            } else if finish(child).code == 0 {
                self.acknowledged.extend(names);
            }
        }
    }

    /// How many jobs were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// What is wrong with the names of all jobs there are: acknowledged ones that are missing, and
    /// any that are there twice.
    pub(crate) fn lost_or_doubled<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut wrong: Vec<String> = names
            .filter(|name| !seen.insert((*name).to_owned()))
            .map(|name| format!("`{name}` was submitted once and is there twice"))
            .collect();
        let missing = self.acknowledged.difference(&seen);
        wrong.extend(missing.map(|name| format!("`{name}` was acknowledged and is not there")));
        wrong
    }
}
