//! Live counters on a terminal, and plain output elsewhere.

use std::{
    fs::File,
    io::Read as _,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use nix::pty::{Winsize, openpty};
use tfo_tests::{
    netns::{assert_clean, binary, eventually, ip, sandbox},
    terminal::Terminal,
};

/// Runs `tfo ARGS` on a terminal of 80 × 24 until `is_drawn` is true of its output, then sends Ctrl-C. Returns the
/// whole output.
fn on_a_terminal(args: &[&str], is_drawn: impl Fn(&str) -> bool) -> String {
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).expect("a pseudo-terminal");
    let slave = || Stdio::from(pty.slave.try_clone().expect("another descriptor"));
    let child = Command::new(binary())
        .args(args)
        .stdin(Stdio::null())
        .stdout(slave())
        .stderr(slave())
        .spawn()
        .expect("tfo starts");
    let mut child = KillOnDrop(child);
    drop(pty.slave);

    let written = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&written);
    let mut master = File::from(pty.master);
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        // When the last writer has closed the terminal, reading fails.
        while let Ok(read @ 1..) = master.read(&mut buffer) {
            sink.lock().expect("no panic").extend(&buffer[..read]);
        }
    });
    let so_far = || String::from_utf8_lossy(&written.lock().expect("no panic")).into_owned();
    eventually("the screen is drawn", || is_drawn(&so_far()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0.id() as i32), nix::sys::signal::Signal::SIGINT)
        .expect("tfo runs");
    let status = child.0.wait().expect("tfo ends");
    reader.join().expect("no panic");
    assert!(status.success(), "{status}: {}", so_far());
    so_far()
}

/// Child that is killed if the test panics.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // It may have ended already.
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<_> = self.0.wait();
    }
}

/// Returns the lines of the tallest screen in `text`. Each screen begins with a move to the first cell.
fn tallest(text: &str) -> usize {
    text.split("\u{1b}[1;1H").skip(1).map(|screen| screen.matches("\u{1b}[K").count()).max().unwrap_or(0)
}

#[test]
fn run_shows_live_counters() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let text = on_a_terminal(&["run", "-i", "v0"], |text| {
            text.contains("v0  observe  native  counting since") && text.contains("no SYN yet")
        });
        assert!((2..24).contains(&tallest(&text)), "{text}");
        assert_clean("v0");
    });
}

/// A warning stays below the counters while they are redrawn, and is on the terminal in the end.
#[test]
fn log_lines_stay_below_live_counters() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let terminal = Terminal::open();
        terminal.type_in(&format!("{} run -i v0", binary().display()));
        let (counters, warning) = ("v0  observe  native  counting since", "WARN v0: the interface is gone");
        terminal.wait_for(counters);
        ip("link del v0");
        terminal.wait_for(warning);
        eventually("the counters are drawn without it", || !terminal.shows(counters));
        for round in ["one", "another"] {
            ip("link add v0 type veth peer name v1");
            terminal.wait_for(counters);
            let picture = terminal.picture();
            let (above, below) = picture.split_once(counters).unwrap();
            assert!(!above.contains(warning) && below.contains(warning), "{round}: {picture}");
            ip("link del v0");
            eventually("they are drawn without it", || !terminal.shows(counters));
        }
        assert_eq!(terminal.picture().matches(warning).count(), 3, "{}", terminal.picture());

        // On a small terminal the counters take half of the lines, and the newest log lines are shown.
        ip("link add v0 type veth peer name v1");
        terminal.resize(100, 8);
        terminal.wait_for("v0: the interface is back");
        terminal.wait_for(counters);
        terminal.resize(100, 30);
        eventually("there is room again", || {
            let picture = terminal.picture();
            picture.starts_with(counters) && picture.matches("v0: the interface is back").count() == 3
        });

        terminal.press(&["C-c"]);
        terminal.wait_for_shell();
        // The shell may be ready before all output has arrived.
        let mut picture = String::new();
        let is_written = |picture: &str| {
            let end = picture.rfind(counters).map_or("", |at| &picture[at..]);
            end.matches("v0: the interface is back").count() == 3 && end.matches(warning).count() == 3
        };
        let end = Instant::now() + Duration::from_secs(10);
        while !is_written(&picture) {
            assert!(Instant::now() < end, "not each line once, behind the last picture: {picture}");
            picture = terminal.picture();
        }
        assert_eq!(terminal.assert_sane(), 0);
        assert_clean("v0");
    });
}

#[test]
fn the_lab_shows_the_comparison_while_it_runs() {
    sandbox(|| {
        let text = on_a_terminal(&["lab"], |text| tallest(text) >= 20);
        assert!(tallest(&text) < 24, "{text}");
        assert!(text.contains("Ctrl-C ends it") && text.contains("TCPFastOpenPassiveAltKey"), "{text}");
        assert!(text.contains("agrees with the kernel: every class seen"), "{text}");
    });
}
