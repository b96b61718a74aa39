//! A copy of `qctl-worker` that belongs to the tests' own package.

fn main() -> std::process::ExitCode {
    qctl_worker::main()
}
