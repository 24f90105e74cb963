//! Terminal in tmux, as a user sees it.

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::netns::{PATIENCE, eventually};

/// Terminal with a shell in it, which ends with the test.
#[derive(Debug)]
pub struct Terminal {
    folder: TempDir,
}

impl Terminal {
    /// Opens a terminal of 100 columns and 30 rows.
    pub fn open() -> Self {
        let terminal = Self { folder: TempDir::new().expect("a folder") };
        // The prompt is not set by typing: text typed before the shell is ready would stand beside its first prompt.
        terminal.tmux(&["new-session", "-d", "-x", "100", "-y", "30", "exec env PS1='ready> ' ENV= sh"]);
        terminal.tmux(&["set", "-g", "status", "off"]);
        terminal.wait_for_shell();
        terminal
    }

    /// Runs a tmux command on its own server, without the user's configuration.
    fn tmux(&self, args: &[&str]) -> String {
        let socket = self.folder.path().join("socket");
        let output = Command::new("tmux")
            .args(["-f", "/dev/null", "-u", "-S"])
            .arg(socket)
            .args(args)
            .env_remove("TMUX")
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .output()
            .expect("tmux is installed");
        assert!(output.status.success(), "tmux {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Presses `keys`, named as in tmux.
    pub fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types a line.
    pub fn type_in(&self, line: &str) {
        self.press(&[line, "Enter"]);
    }

    /// Returns the text on the screen.
    pub fn picture(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Returns whether `text` is on the screen.
    pub fn shows(&self, text: &str) -> bool {
        self.picture().contains(text)
    }

    /// Waits until `text` is on the screen.
    pub fn wait_for(&self, text: &str) {
        let mut picture = String::new();
        let start = Instant::now();
        while !picture.contains(text) {
            assert!(start.elapsed() < PATIENCE, "the screen does not show {text:?}: {picture}");
            thread::sleep(Duration::from_millis(20));
            picture = self.picture();
        }
    }

    /// Waits until the shell waits for a command. tmux omits blanks at the end of a line.
    pub fn wait_for_shell(&self) {
        eventually("the shell is ready", || self.picture().lines().any(|line| line == "ready>"));
    }

    /// Changes the size.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }

    /// Returns the process called `tfo` in the foreground.
    pub fn tfo(&self) -> Option<i32> {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let children = format!("/proc/{0}/task/{0}/children", shell.trim());
        let children = std::fs::read_to_string(children).ok()?;
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        pids.into_iter().find(|pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "tfo")
        })
    }

    /// Panics unless the shell has a sane terminal again. Returns the exit status of the last command.
    pub fn assert_sane(&self) -> i32 {
        eventually("the cursor is back", || {
            self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]).trim() == "0 1"
        });
        self.type_in("echo \"status $?.\"; stty -a");
        self.wait_for("echoctl");
        let picture = self.picture();
        let modes: Vec<_> = picture.split(|c: char| !c.is_alphanumeric() && c != '-').collect();
        for mode in ["icanon", "isig", "echo", "opost", "icrnl", "onlcr"] {
            assert!(modes.contains(&mode), "{mode}: {picture}");
        }
        let (_, said) = picture.rsplit_once("\nstatus ").expect("the exit status");
        said.split_once('.').expect("a full stop").0.parse().expect("a number")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // This also ends the terminal of a test that panics.
        let socket = self.folder.path().join("socket");
        let _: std::io::Result<_> =
            Command::new("tmux").arg("-S").arg(socket).arg("kill-server").stderr(Stdio::null()).status();
    }
}
