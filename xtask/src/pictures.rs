//! `cargo xtask pictures`: makes the pictures of the README from a real run.
//!
//! nginx serves, curl visits with Fast Open, and `tfo run` watches, in network namespaces that end with this process.

mod camera;
mod site;
mod visitors;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use camera::Terminal;
use site::{Background, Site};
use visitors::Visitors;

use crate::{
    build, packages, setup,
    workspace::{command, empty_dir, is_root, remove_dir, root, run, step, target_dir},
};

/// Longest time for something to start.
const PATIENCE: Duration = Duration::from_secs(20);
/// Largest picture that is committed, in bytes.
const LARGEST: u64 = 300_000;

/// Arguments of `cargo xtask pictures`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Length of the run in seconds: the page shows as much
    #[arg(long = "for", value_name = "SECS", default_value_t = 240, value_parser = clap::value_parser!(u64).range(60..))]
    seconds: u64,
    /// Folder that the pictures are written to
    #[arg(long, value_name = "DIR", default_value = "docs/pictures")]
    into: PathBuf,
}

/// Runs server, clients and `tfo`, and writes `top.png` and `report.png`.
pub(crate) fn pictures(args: &Args) -> Result<()> {
    ensure!(is_root(), "`cargo xtask pictures` makes namespaces and loads a program: run it as root");
    setup::ensure()?;
    packages::ensure(&packages::FOR_PICTURES)?;
    let tfo = build::build(&build::Args::debug())?;
    let folder = target_dir()?.join("pictures");
    empty_dir(&folder)?;

    let into = root().join(&args.into);
    fs::create_dir_all(&into).with_context(|| format!("cannot create {}", into.display()))?;
    Run { tfo, folder: folder.clone(), into }.play(Duration::from_secs(args.seconds))?;
    remove_dir(&folder)
}

/// Run of `tfo`, and the paths of its files.
struct Run {
    tfo: PathBuf,
    /// Files that are needed during the run.
    folder: PathBuf,
    /// Folder of the pictures.
    into: PathBuf,
}

impl Run {
    /// Lets clients visit for `length`. The screen is taken after three quarters, the page at the end.
    fn play(&self, length: Duration) -> Result<()> {
        let site = Site::build()?;
        let _nginx = site.serve(&self.folder)?;
        let _tfo = self.start_tfo()?;
        let terminal = Terminal::open(&self.folder.join("tmux"), &self.command(&["top", "-i", site::IFACE]))?;

        step(&format!("clients visit for {} s", length.as_secs()));
        let mut visitors = Visitors::new(&site);
        let start = Instant::now();
        let visit = |visitors: &mut Visitors, until: Duration| -> Result<()> {
            while start.elapsed() < until {
                visitors.visit()?;
            }
            Ok(())
        };
        // Selects the outcomes: a selected row of SYNs has its plot in inverse colours.
        terminal.press("Tab")?;
        visit(&mut visitors, length * 5 / 8)?;
        // From here on, cookies of earlier keys are refused.
        run(&mut self.command(&["keys", "rotate", "--emergency", "-i", site::IFACE]))?;
        visit(&mut visitors, length * 3 / 4)?;
        let screen = terminal.capture()?;
        visit(&mut visitors, length)?;

        let page = self.folder.join("report.html");
        run(self.command(&["report", "-i", site::IFACE, "--html"]).arg(&page))?;
        self.take("top.png", |to| camera::screen(&screen, &self.folder, to))?;
        self.take("report.png", |to| camera::page(&page, &self.folder, to))
    }

    /// Returns the command `tfo ARGS`.
    fn command(&self, args: &[&str]) -> Command {
        let mut tfo = command(&self.tfo);
        tfo.args(args);
        tfo
    }

    /// Starts `tfo run`, and waits until its controller answers.
    fn start_tfo(&self) -> Result<Background> {
        let log = self.folder.join("tfo.log");
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut tfo = self.command(&["run", "-i", site::IFACE, "--mode", "accelerate"]);
        tfo.args(["--keys", "random", "--rotate", "20s"]).stdout(file.try_clone()?).stderr(file);
        let mut tfo = Background::start(&mut tfo)?;
        let is_up = || Ok(self.command(&["status", "-i", site::IFACE]).output()?.status.success());
        wait_until(is_up, || {
            ensure!(!tfo.has_ended()?, "`tfo run` ended: {} says why", log.display());
            Ok(())
        })?;
        Ok(tfo)
    }

    /// Has `write` make the picture `name`, and checks its size.
    fn take(&self, name: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let picture = self.into.join(name);
        write(&picture)?;
        let bytes = fs::metadata(&picture)?.len();
        ensure!(bytes <= LARGEST, "{} has {bytes} bytes, more than {LARGEST}", picture.display());
        step(&format!("{}: {bytes} bytes", picture.display()));
        Ok(())
    }
}

/// Waits until `holds` returns true. Fails if `goes_on` fails, or after [`PATIENCE`].
fn wait_until(
    mut holds: impl FnMut() -> Result<bool>,
    mut goes_on: impl FnMut() -> Result<()>,
) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        goes_on()?;
        if start.elapsed() > PATIENCE {
            bail!("not ready after {} s", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
