//! A copy of `qctl-server` that belongs to the tests' own package.

fn main() -> std::process::ExitCode {
    qctl_server::main()
}
