//! One module a command: its arguments, and `run`, which does it.

use std::process::ExitCode;

use qctl_proto::v1;

use crate::context::{Client, Context};
use crate::error::Error;
use crate::exit;
use crate::output::document;

pub mod alarms;
pub mod cancel;
pub mod checkpoint;
pub mod checkpoints;
pub mod cleanup;
pub mod completions;
pub mod delete;
pub mod down;
pub mod drill;
pub mod edit;
pub mod enqueue;
pub mod errors;
pub mod execute;
pub mod health;
pub mod history;
pub mod hold;
pub mod keeper;
pub mod list;
pub mod logs;
pub mod man;
pub mod notices;
pub mod pause;
pub mod progress;
pub mod queue;
pub mod release;
pub mod resume;
pub mod retry;
pub mod show;
pub mod status;
pub mod submit;
pub mod template;
pub mod up;
pub mod wait;
pub mod why;
pub mod worker;
pub mod workers;

/// Does the same to several jobs, one after the other. A refusal is told and the others are
/// tried all the same; the exit code is that of the first refusal. An outage ends it.
///
/// `act` gives the job after the call and a sentence about it.
async fn on_each<F>(context: &Context, jobs: &[i64], act: F) -> Result<ExitCode, Error>
where
    F: AsyncFn(&Client, i64) -> Result<(v1::Job, String), Error>,
{
    let client = context.client().await?;
    let mut code = exit::OK;
    for &id in jobs {
        match act(client, id).await {
            Ok((job, sentence)) if context.output.json => {
                let _ = sentence;
                context.output.print_document(&document::Job::from(&job))?;
            }
            Ok((_, sentence)) => context.output.print(&sentence)?,
            Err(error) if jobs.len() == 1 || error.is_outage() => return Err(error),
            Err(error) => {
                crate::tell(&error, context.output);
                if code == exit::OK {
                    code = error.exit_code();
                }
            }
        }
    }
    Ok(ExitCode::from(code))
}

/// The job that an answer must carry.
fn carried(job: Option<v1::Job>) -> Result<v1::Job, Error> {
    job.ok_or_else(|| {
        crate::error::Problem::new(
            "INTERNAL",
            exit::ERROR,
            "the coordinator answered without the job",
        )
        .hint("is it of another version? `qctl status` shows it")
        .into()
    })
}
