//! `qctl completions`: completions for a shell.

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::args::Cli;
use crate::context::Context;
use crate::error::Error;

/// Arguments of `qctl completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Runs the command.
///
/// # Errors
/// When standard output does not take the text.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "qctl", &mut text);
    context.output.print_bytes(&text)?;
    Ok(ExitCode::SUCCESS)
}
