//! Thin main; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    qctl_worker::main()
}
