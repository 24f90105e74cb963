//! Pictures: of a terminal by tmux, of a page by Chromium.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anstyle_svg::{Term, WIN10_CONSOLE};
use anyhow::{Context as _, Result, ensure};

use super::{site::Background, wait_until};
use crate::workspace::{command, describe, ignore_missing, output, run};

/// Columns and rows of the terminal.
const TERMINAL: [&str; 2] = ["112", "30"];
/// Width and height of the window that shows the page, in CSS pixels.
const PAGE: (u32, u32) = (1000, 1170);

/// Terminal in which a program runs. It ends when dropped.
pub(super) struct Terminal {
    socket: PathBuf,
    _server: Background,
}

impl Terminal {
    /// Opens a terminal, with a separate tmux server at `socket`, and runs `program` in it.
    pub(super) fn open(socket: &Path, program: &Command) -> Result<Self> {
        let mut server = tmux(socket);
        // Not as a daemon: it ends with this process.
        server.arg("-D").stdout(Stdio::null());
        let server = Background::start(&mut server)?;
        wait_until(|| Ok(socket.exists()), || Ok(()))?;
        run(tmux(socket)
            .args(["new-session", "-d", "-x", TERMINAL[0], "-y", TERMINAL[1], "--"])
            .arg(program.get_program())
            .args(program.get_args()))?;
        run(tmux(socket).args(["set", "-g", "status", "off"]))?;
        Ok(Self { socket: socket.to_owned(), _server: server })
    }

    /// Presses a key, by the name that tmux has for it.
    pub(super) fn press(&self, key: &str) -> Result<()> {
        run(tmux(&self.socket).args(["send-keys", key]))
    }

    /// Returns the screen, with its colours as ANSI sequences.
    pub(super) fn capture(&self) -> Result<String> {
        output(tmux(&self.socket).args(["capture-pane", "-e", "-p"]))
    }
}

/// Returns a command for tmux without the user's configuration.
fn tmux(socket: &Path) -> Command {
    let mut tmux = command("tmux");
    tmux.args(["-f", "/dev/null", "-u", "-S"]).arg(socket).env_remove("TMUX").env("TERM", "xterm-256color");
    tmux
}

/// Writes a picture of the screen `ansi`. Temporary files go to `folder`.
pub(super) fn screen(ansi: &str, folder: &Path, picture: &Path) -> Result<()> {
    let svg = Term::new().palette(WIN10_CONSOLE).render_svg(ansi.trim_end());
    let size = (size(&svg, "width")?, size(&svg, "height")?);
    // A bitmap: the columns of the SVG stand apart where a reader's font lacks the characters of the plots.
    let path = folder.join("top.html");
    fs::write(&path, format!("<!DOCTYPE html><meta charset=\"utf-8\"><style>{STYLE}</style>{svg}"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    chromium(&path, size, folder, picture)
}

/// Style of the page around the SVG: no margins, and a font that has all characters and comes with Chromium's package.
const STYLE: &str =
    "body { margin: 0 } svg { display: block } body svg tspan { font-family: 'DejaVu Sans Mono' }";

/// Returns the width or height of the drawing, in pixels; `name` is the attribute.
fn size(svg: &str, name: &str) -> Result<u32> {
    let (_, rest) =
        svg.split_once(&format!("{name}=\"")).with_context(|| format!("the SVG has no {name}"))?;
    let (number, _) = rest.split_once("px\"").with_context(|| format!("{name} is not in pixels"))?;
    number.parse().with_context(|| format!("{name} of the SVG: {number}"))
}

/// Writes a picture of the upper part of the HTML file `html`.
pub(super) fn page(html: &Path, folder: &Path, picture: &Path) -> Result<()> {
    chromium(html, PAGE, folder, picture)
}

/// Writes a picture of `file` in a window of that size.
fn chromium(file: &Path, (width, height): (u32, u32), folder: &Path, picture: &Path) -> Result<()> {
    let profile = folder.join("chromium");
    ignore_missing(fs::remove_file(picture))?;
    let mut chromium = command("chromium");
    chromium
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--force-device-scale-factor=1.5"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={width},{height}"))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("file://{}", file.display()))
        .env("HOME", &profile)
        .stdin(Stdio::null());
    let done = chromium.output().with_context(|| format!("cannot start `{}`", describe(&chromium)))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success() && picture.is_file(), "chromium made no picture: {}", said.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_that_of_the_svg() {
        let svg = Term::new().min_width_px(100).render_svg("\u{1b}[32mtfo\u{1b}[0m\nsecond line");
        assert!(size(&svg, "width").unwrap() >= 100);
        assert!((36..100).contains(&size(&svg, "height").unwrap()));
        assert!(size(&svg, "depth").is_err());
    }
}
