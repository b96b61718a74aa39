//! Ctrl-C without `^C` on the screen, which would push the moving lines out of place.

use rustix::termios::{LocalModes, OptionalActions, Termios};

/// Keeps the terminal from showing control keys until dropped.
#[derive(Debug)]
pub(super) struct QuietKeys {
    before: Termios,
}

impl QuietKeys {
    /// `None` when standard input is no terminal, or another program's at present: changing it
    /// would stop this one.
    pub(super) fn begin() -> Option<Self> {
        let terminal = rustix::stdio::stdin();
        let foreground = rustix::termios::tcgetpgrp(terminal).ok()?;
        if foreground != rustix::process::getpgrp() {
            return None;
        }
        let before = rustix::termios::tcgetattr(terminal).ok()?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHOCTL);
        rustix::termios::tcsetattr(terminal, OptionalActions::Now, &quiet).ok()?;
        Some(Self { before })
    }
}

impl Drop for QuietKeys {
    fn drop(&mut self) {
        let terminal = rustix::stdio::stdin();
        let is_ours =
            rustix::termios::tcgetpgrp(terminal).is_ok_and(|it| it == rustix::process::getpgrp());
        if is_ours {
            let _ = rustix::termios::tcsetattr(terminal, OptionalActions::Now, &self.before);
        }
    }
}
