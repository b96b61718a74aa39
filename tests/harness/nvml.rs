//! A stand-in for NVIDIA's library, so that GPUs can be had, lost, and hung on any machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Installation;

/// What the stand-in answers.
pub(crate) struct Gpus {
    script: PathBuf,
}

impl Gpus {
    /// An installation whose worker finds GPUs through the stand-in.
    pub(crate) fn of(qctl: Installation, script: &str) -> (Installation, Self) {
        let gpus = Self {
            script: qctl.folder().join("gpus"),
        };
        gpus.say(script);
        let qctl = qctl
            .env("QCTL_NVML_LIBRARY", library().to_str().unwrap())
            .env("QCTL_NVML_STUB", gpus.script.to_str().unwrap());
        (qctl, gpus)
    }

    /// Has it answer something else from now on.
    pub(crate) fn say(&self, script: &str) {
        let fresh = self.script.with_extension("fresh");
        std::fs::write(&fresh, script).unwrap();
        std::fs::rename(&fresh, &self.script).unwrap();
    }
}

/// The library, built once for all tests.
fn library() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/nvml_stub.c");
    let library =
        Path::new(env!("CARGO_BIN_EXE_copy-of-qctl")).with_file_name("libnvidia-ml-stub.so");
    let age = |path: &Path| {
        std::fs::metadata(path)
            .and_then(|found| found.modified())
            .ok()
    };
    if age(&library) > age(&source) {
        return library;
    }
    let fresh = library.with_extension(std::process::id().to_string());
    let built = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()))
        .args(["-std=gnu11", "-shared", "-fPIC", "-O1", "-o"])
        .args([&fresh, &source])
        .output()
        .expect("a C compiler builds the stand-in for NVIDIA's library");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    std::fs::rename(&fresh, &library).unwrap();
    library
}
