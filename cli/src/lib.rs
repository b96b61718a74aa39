//! The command line: `qctl`.
//!
//! [`main`] parses the arguments, merges the configuration and hands both to one module of
//! [`commands`]. What a command prints for people and for programs is made in [`output`]; how a
//! submission comes together from options, project, template and environment is in
//! [`submission`]. Errors of every layer end in [`error::Error`] and are told in one place.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory as _, Parser as _};

pub mod args;
mod channel;
pub mod commands;
pub mod config;
pub mod context;
pub mod error;
pub mod exit;
pub mod keeper;
pub mod output;
pub mod reconnect;
pub mod submission;

use args::{Cli, Command};
use context::Context;
use error::{Error, Report};
use output::Output;

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(mut error) => {
            drop_bad_tips(&mut error);
            return refuse_arguments(&error);
        }
    };
    let output = Output::detect(cli.global.json, cli.global.color);
    match run(cli, output) {
        Ok(code) => code,
        Err(error) => {
            tell(&error, output);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli, output: Output) -> Result<ExitCode, Error> {
    let config = config::Config::load(cli.global.connection)?;
    if cli.global.print_config {
        output.print(&config.to_toml())?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(command) = cli.command else {
        output.print_error(&Cli::command().render_help().to_string());
        return Ok(ExitCode::from(exit::USAGE));
    };
    // TLS wants a provider; another one may be installed already when a test runs this twice.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::file("start", "the event loop"))?;
    let context = Context::new(config, output);
    let result = runtime.block_on(dispatch(&context, command));
    // A blocked read of standard input must not keep the program alive.
    runtime.shutdown_background();
    result
}

/// Runs one command.
///
/// # Errors
/// Whatever the command ends with.
pub async fn dispatch(context: &Context, command: Command) -> Result<ExitCode, Error> {
    use commands as c;
    match command {
        Command::Up(args) => c::up::run(context, args).await,
        Command::Down(args) => c::down::run(context, args).await,
        Command::Status(args) => c::status::run(context, args).await,
        Command::Submit(args) => c::submit::run(context, *args).await,
        Command::Enqueue(args) => c::enqueue::run(context, *args).await,
        Command::List(args) => c::list::run(context, args).await,
        Command::Show(args) => c::show::run(context, args).await,
        Command::Logs(args) => c::logs::run(context, args).await,
        Command::Wait(args) => c::wait::run(context, args).await,
        Command::Why(args) => c::why::run(context, args).await,
        Command::History(args) => c::history::run(context, args).await,
        Command::Cancel(args) => c::cancel::run(context, args).await,
        Command::Retry(args) => c::retry::run(context, args).await,
        Command::Drill(args) => c::drill::run(context, *args).await,
        Command::Hold(args) => c::hold::run(context, args).await,
        Command::Release(args) => c::release::run(context, args).await,
        Command::Pause(args) => c::pause::run(context, args).await,
        Command::Resume(args) => c::resume::run(context, args).await,
        Command::Edit(args) => c::edit::run(context, *args).await,
        Command::Delete(args) => c::delete::run(context, args).await,
        Command::Cleanup(args) => c::cleanup::run(context, args).await,
        Command::Execute(args) => c::execute::run(context, args).await,
        Command::Queue(args) => c::queue::run(context, args).await,
        Command::Workers(args) => c::workers::run(context, args).await,
        Command::Worker(args) => c::worker::run(context, args).await,
        Command::Alarms(args) => c::alarms::run(context, args).await,
        Command::Health(args) => c::health::run(context, args).await,
        Command::Notices(args) => c::notices::run(context, args).await,
        Command::Errors(args) => c::errors::run(context, args).await,
        Command::Template(args) => c::template::run(context, args).await,
        Command::Progress(args) => c::progress::run(context, args).await,
        Command::Checkpoint(args) => c::checkpoint::run(context, args).await,
        Command::Checkpoints(args) => c::checkpoints::run(context, args).await,
        Command::Completions(args) => c::completions::run(context, args).await,
        Command::Man(args) => c::man::run(context, args).await,
        Command::Keeper(args) => c::keeper::run(context, args).await,
    }
}

fn tell(error: &Error, output: Output) {
    if error.is_silent() {
        return;
    }
    output.print_error(&if output.json {
        error.report().for_programs()
    } else {
        error.report().for_people(output.colour_errors)
    });
}

/// Takes away the tip to put an unknown option behind two dashes: there it would be the command.
fn drop_bad_tips(error: &mut clap::Error) {
    if let Some(ContextValue::StyledStrs(mut tips)) = error.remove(ContextKind::Suggested) {
        tips.retain(|tip| !tip.to_string().starts_with("to pass "));
        if !tips.is_empty() {
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
        }
    }
}

/// Help and version go to standard output; a mistake is told as clap tells it, or as a document
/// when `--json` was among the arguments before any `--`.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args_os()
        .skip(1)
        .take_while(|argument| argument != "--")
        .any(|argument| argument == "--json");
    if error.use_stderr() && wants_json {
        let text = error.render().to_string();
        let report = Report {
            reason: "USAGE".to_owned(),
            message: text
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned(),
            field: None,
            hint: None,
            next: Some("qctl --help".to_owned()),
        };
        eprint!("{}", report.for_programs());
    } else if error.print().is_err() {
        return ExitCode::from(exit::ERROR);
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::USAGE))
}
