//! Telling people what happened: the words of a notice in a person's language, and the channels
//! that carry them. Coordinator and worker both tell, so this belongs to neither; what is worth
//! telling, and when, is decided by them.

pub mod channel;
pub mod command;
pub mod desktop;
pub mod ntfy;
pub mod outbox;
pub mod panics;
pub mod pushover;
pub mod settings;
pub mod text;
pub mod webhook;
pub mod words;

pub use channel::{Channel, Checked, Message, Outcome, Settled, Severity};
pub use settings::Settings;
pub use words::{Fact, Facts, Language, Text, Words, Zone};
