//! `qctl enqueue NAME COMMAND ARGS…`: `submit` in the positional form.

use std::process::ExitCode;

use super::submit::{Submission, plain_command};
use crate::args::SubmissionArgs;
use crate::context::Context;
use crate::error::Error;
use crate::submission::Ground;
use crate::submission::project::Project;
use crate::submission::surroundings::Surroundings;

/// Arguments of `qctl enqueue`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name for people
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Command with its arguments, never read by a shell
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub words: Vec<String>,
    /// What else can be said about the job.
    #[command(flatten)]
    pub submission: SubmissionArgs,
}

/// Runs the command.
///
/// # Errors
/// When something about the job is wrong, or the coordinator refuses.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    let surroundings = Surroundings::capture()?;
    let project = Project::find(&surroundings.cwd)?;
    let ground = Ground {
        surroundings: &surroundings,
        project: project.as_ref(),
        data_dir: None,
    };
    let (submission, mut own) = Submission::new(args.submission, &surroundings)?;
    own.name = Some(args.name);
    own.command = Some(plain_command(args.words)?);
    submission.of(own, &ground)?.send(context).await
}
