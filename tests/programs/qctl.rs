//! A copy of `qctl` that belongs to the tests' own package.

fn main() -> std::process::ExitCode {
    qctl_cli::main()
}
