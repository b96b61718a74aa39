//! A program of the user's own, which gets the message as JSON on its standard input.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command as Program;

use crate::channel::{Channel, Message, Outcome, PROGRAM_LIMIT, Pending};

/// A program to run for each message.
#[derive(Debug)]
pub struct Command {
    command: Vec<String>,
}

impl Command {
    /// A channel to a program with its arguments; no shell is involved.
    pub fn new(command: Vec<String>) -> Self {
        Self { command }
    }
}

/// Runs a program to its end, with `input` on its standard input. Exit 0 means it took the message.
pub(crate) async fn run(program: &str, arguments: &[String], input: &[u8]) -> Outcome {
    let spawned = Program::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return Outcome::Refused(format!("cannot start {program}: {error}")),
    };
    let ended = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A program may end without reading what it is told.
            let _ = stdin.write_all(input).await;
        }
        child.wait().await
    };
    match tokio::time::timeout(PROGRAM_LIMIT, ended).await {
        Ok(Ok(status)) if status.success() => Outcome::Accepted { receipt: None },
        Ok(Ok(status)) => Outcome::Refused(format!("{program} ended with {status}")),
        Ok(Err(error)) => Outcome::Unknown(format!("cannot wait for {program}: {error}")),
        Err(_) => Outcome::Unknown(format!(
            "{program} did not end within {} s and was killed",
            PROGRAM_LIMIT.as_secs()
        )),
    }
}

impl Channel for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn send<'a>(&'a self, message: &'a Message) -> Pending<'a, Outcome> {
        Box::pin(async move {
            let Some((program, arguments)) = self.command.split_first() else {
                return Outcome::Refused("no command is given".to_owned());
            };
            match serde_json::to_vec(message) {
                Ok(input) => run(program, arguments, &input).await,
                Err(error) => Outcome::Refused(error.to_string()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Severity;

    fn message() -> Message {
        Message {
            id: "1".into(),
            class: "test".into(),
            severity: Severity::Info,
            title: "t".into(),
            body: "b".into(),
            url: String::new(),
            url_title: String::new(),
            time: chrono::DateTime::UNIX_EPOCH,
        }
    }

    async fn sent(command: &[&str]) -> Outcome {
        let command = command.iter().map(|part| (*part).to_owned()).collect();
        Command::new(command).send(&message()).await
    }

    #[tokio::test]
    async fn a_program_reads_the_message_and_its_exit_code_decides() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("got");
        let script = format!("cat > '{}'", file.display());
        assert_eq!(
            sent(&["sh", "-c", &script]).await,
            Outcome::Accepted { receipt: None }
        );
        let got: Message = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(got, message());
        assert!(
            matches!(sent(&["false"]).await, Outcome::Refused(why) if why.contains("exit status: 1"))
        );
        assert!(matches!(sent(&["/no/such"]).await, Outcome::Refused(_)));
    }
}
