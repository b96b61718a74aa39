//! `qctl keeper`: parents the coordinator and the worker; started by `qctl up`.

use std::process::ExitCode;

use crate::context::Context;
use crate::error::Error;
use crate::keeper::{self, installation};

/// Arguments of `qctl keeper`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs until it is told to stop.
///
/// # Errors
/// When another keeper runs for this home, or something it needs is missing.
pub async fn run(context: &Context, _args: Args) -> Result<ExitCode, Error> {
    let home = context.home()?;
    installation::prepare(home).map_err(|error| super::up::installation_problem(&error))?;
    let programs =
        installation::programs().map_err(|error| super::up::installation_problem(&error))?;
    keeper::run(home, &programs)
        .await
        .map_err(|error| super::up::keeper_problem(&error))?;
    Ok(ExitCode::SUCCESS)
}
