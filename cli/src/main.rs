//! Thin main; everything is in the library.

fn main() -> std::process::ExitCode {
    qctl_cli::main()
}
