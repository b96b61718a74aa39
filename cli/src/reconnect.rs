//! Going on after the coordinator was away: for commands that wait for something long.

use std::time::Duration;

use tokio::time::Instant;

use crate::context::{Client, Context};
use crate::error::Error;

/// First pause of an outage; each one is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Keeps a command connected. Tells a person once when an outage begins and once when it is over.
pub struct Persistent<'a> {
    context: &'a Context,
    pause: Duration,
    away: bool,
    deadline: Option<Instant>,
}

impl<'a> Persistent<'a> {
    /// For a command that has not lost its connection yet.
    pub fn new(context: &'a Context) -> Self {
        Self {
            context,
            pause: FIRST_PAUSE,
            away: false,
            deadline: None,
        }
    }

    /// For a command that gives up when the coordinator stays away this long.
    pub fn for_at_most(context: &'a Context, patience: Duration) -> Self {
        Self {
            deadline: Some(Instant::now() + patience),
            ..Self::new(context)
        }
    }

    /// Handles an error of a connection that was good before: an outage is waited out, and the
    /// new connection given back; anything else is the command's end.
    ///
    /// # Errors
    /// The error itself when it is no outage, or one that lasts too long.
    pub async fn recover(&mut self, error: Error) -> Result<Client, Error> {
        let mut error = error;
        loop {
            let patient = self
                .deadline
                .is_none_or(|deadline| Instant::now() < deadline);
            if !error.is_outage() || !patient {
                return Err(error);
            }
            if !self.away {
                self.away = true;
                self.context
                    .output
                    .remark("The coordinator is away; waiting for it to come back.");
            }
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            match self.context.connect().await {
                Ok(client) => return Ok(client),
                Err(next) => error = next,
            }
        }
    }

    /// Tells that calls are answered again.
    pub fn answered(&mut self) {
        self.pause = FIRST_PAUSE;
        if std::mem::take(&mut self.away) {
            self.context.output.remark("The coordinator is back.");
        }
    }
}
