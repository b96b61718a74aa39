//! Nothing ends silently: what any thread or task of a program panics about becomes a notice.

use std::collections::BTreeMap;
use std::panic::PanicHookInfo;

use chrono::Utc;

use crate::channel::Severity;
use crate::outbox::{Filed, Outbox};
use crate::text::{cut, plain_line};
use crate::words::Fact;

/// From now on every panic of this process is filed in the outbox, besides what was done about it
/// before. `host` is the machine as people know it.
pub fn tell(program: &'static str, host: String, outbox: Outbox) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        // A panic while this one is told must not become another one.
        let _ = outbox.put(&filed(program, &host, info));
    }));
}

/// The same, and ends the process with code 101: for a program that keeps nothing in memory that
/// its successor needs, so that no thread of it can be missing unnoticed.
pub fn end(program: &'static str, host: String, outbox: Outbox) {
    tell(program, host, outbox);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        std::process::exit(101);
    }));
}

fn filed(program: &str, host: &str, info: &PanicHookInfo<'_>) -> Filed {
    let text = info
        .payload()
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| info.payload().downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no words".to_owned());
    let place = info
        .location()
        .map(|location| format!("{}:{}", location.file(), location.line()))
        .unwrap_or_default();
    Filed {
        class: "panic".to_owned(),
        severity: Severity::Error,
        subject: format!("program {program} on {host}"),
        // The same place is the same fault, whatever values it met.
        signature: place.clone(),
        facts: [
            ("name", Fact::Text(program.to_owned())),
            ("worker", Fact::Text(host.to_owned())),
            ("place", Fact::Text(place)),
            ("text", Fact::Text(cut(&plain_line(&text), 300))),
            ("quote", Fact::Text(cut(&plain_line(&text), 300))),
        ]
        .into_iter()
        .map(|(name, fact)| (name.to_owned(), fact))
        .collect(),
        at: Utc::now(),
        deliveries: BTreeMap::new(),
    }
}

/// Panics when a test asked for it: in a build for development, when the variable
/// `QCTL_TEST_PANIC` names a folder with a file named like this part. Compiled to nothing
/// otherwise.
#[cfg(debug_assertions)]
#[track_caller]
pub fn provoked(part: &str) {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| std::env::var_os("QCTL_TEST_PANIC").map(PathBuf::from));
    if let Some(folder) = folder
        && std::fs::remove_file(folder.join(part)).is_ok()
    {
        panic!("provoked in {part}");
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub fn provoked(_: &str) {}
