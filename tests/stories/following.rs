//! The live view in a real terminal.

use std::process::Command;

use crate::harness::{Installation, wait_for};

/// A terminal of a given size that runs one command line.
struct Terminal {
    session: String,
}

impl Terminal {
    fn open(qctl: &Installation, line: &str) -> Self {
        let session = format!("qctl-{}", uuid::Uuid::new_v4().simple());
        let home = format!("QCTL_HOME={}", qctl.home().display());
        let path = format!(
            "PATH={}:{}",
            qctl.bin().display(),
            std::env::var("PATH").unwrap()
        );
        let ran = Command::new("tmux")
            .args([
                "-L",
                &session,
                "-f",
                "/dev/null",
                "new-session",
                "-d",
                "-s",
                &session,
            ])
            .args([
                "-x",
                "100",
                "-y",
                "30",
                "env",
                &home,
                &path,
                "LANG=C.UTF-8",
                "sh",
            ])
            .env("LANG", "C.UTF-8")
            .current_dir(qctl.folder())
            .status()
            .unwrap();
        assert!(ran.success());
        let terminal = Self { session };
        terminal.keys(&[line, "Enter"]);
        terminal
    }

    fn keys(&self, keys: &[&str]) {
        let ran = Command::new("tmux")
            .args(["-L", &self.session, "send-keys", "-t", &self.session])
            .args(keys)
            .status()
            .unwrap();
        assert!(ran.success());
    }

    fn screen(&self) -> String {
        let output = Command::new("tmux")
            .args([
                "-L",
                &self.session,
                "capture-pane",
                "-p",
                "-t",
                &self.session,
            ])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn until(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        wait_for(|| Some(self.screen()).filter(|screen| condition(screen)))
            .unwrap_or_else(|| panic!("waited in vain until {what}:\n{}", self.screen()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux")
            .args(["-L", &self.session, "kill-server"])
            .output();
    }
}

#[test]
fn the_view_has_a_bar_the_last_lines_and_an_end() {
    let qctl = Installation::start();
    let terminal = Terminal::open(
        &qctl,
        "qctl submit --name pictures --follow --shell 'for i in 1 2 3; do echo [$i/3] img_$i.png; done; \
         while [ ! -e go ]; do sleep 0.05; done; echo all done'",
    );
    let screen = terminal.until("progress is shown", |screen| {
        screen.contains("3/3") && screen.contains("img_3.png")
    });
    assert!(screen.contains("pictures"), "{screen}");
    qctl.file("go", "");
    let screen = terminal.until("the end is told", |screen| screen.contains("succeeded"));
    assert!(
        screen.contains("all done") && screen.contains("/jobs/1"),
        "{screen}"
    );
}

#[test]
fn ctrl_c_leaves_the_job_running_and_says_how_to_come_back() {
    let qctl = Installation::start();
    let terminal = Terminal::open(
        &qctl,
        "qctl submit --follow --shell 'echo started; sleep 600'; echo code=$?",
    );
    terminal.until("it runs", |screen| {
        screen.lines().any(|line| line.trim() == "started")
    });
    terminal.keys(&["C-c"]);
    let screen = terminal.until("the command ended", |screen| screen.contains("code=130"));
    assert!(screen.contains("qctl logs -f 1"), "{screen}");
    assert_eq!(qctl.job(1)["state"], "running");
}
