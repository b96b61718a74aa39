//! `qctl man`: the manual pages.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::args::Cli;
use crate::context::Context;
use crate::error::Error;

/// Arguments of `qctl man`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write a page for every command into this folder
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Prints qctl(1), or writes it and a page for every command.
///
/// # Errors
/// When a page cannot be written.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    match args.dir {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(Error::Output)?;
            context.output.print_bytes(&page)?;
        }
        Some(folder) => {
            std::fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
            clap_mangen::generate_to(Cli::command(), &folder)
                .map_err(Error::file("write the pages into", &folder))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(Cli::command(), folder.path()).unwrap();
        let page = |name: &str| folder.path().join(name);
        assert!(page("qctl.1").exists());
        for command in Cli::command().get_subcommands() {
            let path = page(&format!("qctl-{}.1", command.get_name()));
            assert_eq!(path.exists(), !command.is_hide_set(), "{}", path.display());
        }
        let submit = std::fs::read_to_string(page("qctl-submit.1")).unwrap();
        assert!(submit.contains("time\\-limit"), "{submit}");
    }
}
