//! The desktop of this machine, by `notify-send`.

use crate::channel::{Channel, Message, Outcome, Pending, Severity};
use crate::command::run;

/// The desktop's own notices.
#[derive(Debug)]
pub struct Desktop {
    program: String,
}

impl Desktop {
    /// A channel by this program, which takes the arguments of `notify-send`.
    pub fn new(program: String) -> Self {
        Self { program }
    }
}

impl Channel for Desktop {
    fn name(&self) -> &'static str {
        "desktop"
    }

    fn send<'a>(&'a self, message: &'a Message) -> Pending<'a, Outcome> {
        Box::pin(async move {
            let urgency = match message.severity {
                Severity::Info => "low",
                Severity::Warning | Severity::Error => "normal",
                Severity::Critical => "critical",
            };
            let arguments = [
                "--app-name=qctl".to_owned(),
                format!("--urgency={urgency}"),
                "--".to_owned(),
                message.title.clone(),
                message.body.clone(),
            ];
            run(&self.program, &arguments, b"").await
        })
    }
}
