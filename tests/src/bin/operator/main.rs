//! Operator of a booted Debian: installs tfo, serves under it, reloads, restarts, upgrades, reboots, removes it.
//! `cargo xtask dist --try` starts this in a virtual machine, which it changes and reboots: never run it elsewhere.
//!
//! Each step prints a line, `try: ok: STEP: what was seen` or `try: failed: STEP: why`, and the last line is `try: done`.
//! While steps go on, [`traffic`] visits a server with Fast Open, and [`counts`] sees that no counter shrinks.

mod counts;
mod machine;
mod steps;
mod traffic;

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};

use self::machine::run;

/// File that only exists in the virtual machine.
const PERMISSION: &str = "/etc/tfo-may-be-tried-here";

fn main() -> ExitCode {
    match play() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("try: failed: {}", one_line(&format!("{error:#}")));
            // For whoever has to find out why.
            println!("{}", run("journalctl --no-pager --unit tfo | tail -n 40").unwrap_or_default());
            drop(run("systemctl poweroff"));
            ExitCode::FAILURE
        }
    }
}

fn play() -> Result<()> {
    ensure!(
        PathBuf::from(PERMISSION).exists(),
        "this changes and reboots the machine, which has no {PERMISSION}"
    );
    let packages = env::args().nth(1).context("the argument is a folder with the packages")?;
    if machine::was_rebooted() {
        steps::after_reboot()?;
        println!("try: done");
        run("systemctl poweroff").map(drop)
    } else {
        steps::before_reboot(&PathBuf::from(packages))?;
        run("systemctl reboot").map(drop)
    }
}

/// Carries out one step, and prints what it has seen.
fn step(name: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
    let seen = work().with_context(|| name.to_owned())?;
    println!("try: ok: {name}: {}", one_line(&seen));
    Ok(())
}

fn one_line(text: &str) -> String {
    text.trim().replace('\n', " | ")
}
