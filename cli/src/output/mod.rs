//! What is printed, for people and for programs.
//!
//! People get aligned tables, relative times and their own time zone; programs get the documents
//! of [`document`], one JSON object a line, whose fields are stable.

use std::io::{IsTerminal as _, Write as _};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::args::ColourChoice;
use crate::error::Error;

pub mod alarm;
pub mod checkpoint;
pub mod document;
pub mod drill;
pub mod follow;
pub mod job;
pub mod lines;
pub mod measures;
pub mod silence;
pub mod table;
pub mod text;
pub mod time;
pub mod worker;

use time::Zone;

/// Where and how to print. Copied into every command.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Print documents instead of text.
    pub json: bool,
    /// Colour on standard output.
    pub colour: bool,
    /// Colour on standard error.
    pub colour_errors: bool,
    /// Standard output is a terminal.
    pub terminal: bool,
    /// Columns of the terminal; absent when standard output is none.
    pub width: Option<usize>,
    /// The user's time zone.
    pub zone: Zone,
}

impl Output {
    /// Looks at the standard streams and the environment.
    pub fn detect(json: bool, choice: ColourChoice) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = |terminal: bool| match choice {
            ColourChoice::Always => true,
            ColourChoice::Never => false,
            ColourChoice::Auto => terminal && !dumb && !set("NO_COLOR"),
        };
        let terminal = std::io::stdout().is_terminal();
        let width = terminal
            .then(|| rustix::termios::tcgetwinsize(std::io::stdout()).ok())
            .flatten()
            .map(|size| usize::from(size.ws_col))
            .filter(|columns| *columns > 0)
            .or_else(|| terminal.then_some(80));
        Self {
            json,
            colour: colour(terminal) && !json,
            colour_errors: colour(std::io::stderr().is_terminal()) && !json,
            terminal,
            width,
            zone: Zone::Local,
        }
    }

    /// Prints to standard output.
    ///
    /// # Errors
    /// When it does not take the text.
    pub fn print(&self, text: &str) -> Result<(), Error> {
        self.print_bytes(text.as_bytes())
    }

    /// Prints bytes to standard output as they are.
    ///
    /// # Errors
    /// When it does not take them.
    pub fn print_bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)
            .and_then(|()| out.flush())
            .map_err(Error::Output)
    }

    /// Prints a document on one line.
    ///
    /// # Errors
    /// When standard output does not take it.
    pub fn print_document(&self, document: &impl Serialize) -> Result<(), Error> {
        let mut text = serde_json::to_string(document)
            .map_err(|error| Error::Output(std::io::Error::other(error)))?;
        text.push('\n');
        self.print(&text)
    }

    /// Prints to standard error. That it cannot be told is told to nobody.
    pub fn print_error(&self, text: &str) {
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }

    /// Prints a remark for people on standard error; programs are spared it.
    pub fn remark(&self, text: &str) {
        if !self.json {
            self.print_error(&format!("{text}\n"));
        }
    }

    /// Everything a text for people depends on besides its data.
    pub fn view(&self) -> View {
        View {
            now: Utc::now(),
            zone: self.zone,
            colour: self.colour,
            width: self.width,
        }
    }
}

/// Everything a text for people depends on besides its data.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The present.
    pub now: DateTime<Utc>,
    /// The user's time zone.
    pub zone: Zone,
    /// Whether to colour.
    pub colour: bool,
    /// Columns to fit into; absent for no limit.
    pub width: Option<usize>,
}
