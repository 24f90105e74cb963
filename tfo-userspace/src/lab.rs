//! `tfo lab`: real Fast Open traffic between two network namespaces, watched by the program and by the kernel.
//!
//! The host's network is not touched: the namespaces have no name and end with the process. Only the pins lie where
//! other commands (`tfo counters`) find them, and they are removed at the end.

pub mod agreement;
pub mod client;
pub mod net;
pub mod script;
pub mod server;

use std::{
    fmt::Write as _,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use agreement::Agreement;
use anyhow::{Context as _, Result, bail};
use script::Script;

use crate::{
    daemon::controller::{Controller, FOLLOW_EVERY, Options, Retire},
    dataplane::{pins::Bpffs, preflight, unload},
    kernel::{
        sysctl::{self, KeySysctl},
        tcp_ext::TcpExt,
    },
    keys::keeper::Source,
    model::{services::Services, settings::AttachMode},
    util::{output::print, screen::Screen, signals::Signals, time::every},
    view::counters::Report,
};

/// Server's interface, with the program on it.
pub const INTERFACE: &str = "tfo-lab";
/// Time between drawings of the comparison on a terminal.
const DRAW_EVERY: Duration = Duration::from_millis(500);
/// Time between printed lines, without a terminal.
const PRINT_EVERY: Duration = Duration::from_secs(2);
/// Error when there are no counters to compare.
const UNLOADED: &str = "the lab's program was unloaded by somebody else";
/// Longest time that counters may take to settle after the clients have stopped.
const SETTLE: Duration = Duration::from_secs(3);

/// Runs the lab. Succeeds if our counters agree with the kernel's and every class was seen.
pub async fn run(duration: Option<Duration>, bpffs: &Bpffs) -> Result<ExitCode> {
    preflight()?;
    let mut signals = Signals::new()?;
    let _mount = bpffs.mount()?;
    let pins = bpffs.pins(INTERFACE);
    if !pins.has_controller()? {
        // These pins are from a killed lab, whose namespaces are gone.
        unload(&pins).await?;
    }

    let client = net::connect(INTERFACE).await.context("cannot set up the lab's network")?;
    let client = Arc::new(client);
    sysctl::write_mode(sysctl::CLIENT | sysctl::SERVER)?;
    let listeners = server::Listeners::start(&net::SERVERS)?;
    let (before, sysctl) = (TcpExt::read()?, KeySysctl::open()?);
    let interfaces = [INTERFACE.to_owned()];
    let options = Options {
        attach: AttachMode::Auto,
        source: Source::Kernel,
        retire: Retire::default(),
        services: Services::default(),
        file: None,
        // No order of `tfo hide` is kept for the lab.
        state: PathBuf::from("/nonexistent"),
        fleet: None,
    };
    let mut controller = Controller::new(&interfaces, bpffs, options).await?;
    controller.start().await?;

    let outcome = play(duration, &mut controller, &mut signals, before, || {
        Script::start(Arc::clone(&client), sysctl, pins)
    })
    .await;
    controller.stop().await?;
    drop(listeners);
    let (report, agreement, rounds) = outcome?;
    conclude(&report, &agreement, rounds)
}

/// Runs the script and waits for its last packets. Returns the counters, their comparison, and the number of rounds.
async fn play(
    duration: Option<Duration>,
    controller: &mut Controller,
    signals: &mut Signals,
    before: TcpExt,
    start: impl FnOnce() -> Result<Script>,
) -> Result<(Report, Agreement, u64)> {
    let script = start()?;
    let watched = watch(duration, controller, signals, &script, before).await;
    let rounds = script.join();
    watched?;
    let agreement = settle(controller, before).await?;
    let report = controller.reports()?.pop().context(UNLOADED)?;
    Ok((report, agreement, rounds?))
}

/// Shows the counters until the script has ended. Stops the script when the time is up or a signal comes.
async fn watch(
    duration: Option<Duration>,
    controller: &mut Controller,
    signals: &mut Signals,
    script: &Script,
    before: TcpExt,
) -> Result<()> {
    let mut screen = Screen::open();
    let end = duration.map(|duration| Instant::now() + duration);
    let mut follow = every(FOLLOW_EVERY);
    let mut show = every(if screen.is_some() { DRAW_EVERY } else { PRINT_EVERY });
    while !script.has_ended() {
        tokio::select! {
            _ = signals.next() => script.stop(),
            // Until it ends, the script waits for new keys to arrive in the map.
            _ = follow.tick() => controller.step().await,
            _ = show.tick() => {
                for (report, counters) in controller.reports()?.iter().zip(controller.counters()?) {
                    let agreement = Agreement::new(&counters, report.accepted(), TcpExt::read()? - before);
                    match &mut screen {
                        Some(screen) => screen.draw(&live_text(&report.text(), &agreement, script.rounds(), end)),
                        None => print(&format!("{} rounds: {}", script.rounds(), report.summary()))?,
                    }
                }
            }
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            script.stop();
        }
    }
    // The final report is printed in place of the last drawing.
    if let Some(screen) = &mut screen {
        screen.draw("");
    }
    Ok(())
}

fn live_text(report: &str, agreement: &Agreement, rounds: u64, end: Option<Instant>) -> String {
    let mut text = format!("tfo lab: real TCP Fast Open between two namespaces, {rounds} rounds");
    match end {
        Some(end) => {
            let left = end.saturating_duration_since(Instant::now()).as_secs();
            write!(text, ", {left} s left\n\n")
        }
        None => write!(text, ", Ctrl-C ends it\n\n"),
    }
    .expect("writing to a String cannot fail");
    // On a small terminal the end is cut off, so the comparison comes first.
    text.push_str(&agreement.text());
    text.push('\n');
    text.push_str(report);
    text
}

/// Waits for the last handshakes, until both sides have counted the same or [`SETTLE`] has passed.
async fn settle(controller: &Controller, before: TcpExt) -> Result<Agreement> {
    let deadline = Instant::now() + SETTLE;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let counters = controller.counters()?.pop().context(UNLOADED)?;
        let accepted = controller.reports()?.pop().and_then(|report| report.accepted());
        let agreement = Agreement::new(&counters, accepted, TcpExt::read()? - before);
        if agreement.holds() || Instant::now() > deadline {
            return Ok(agreement);
        }
    }
}

/// Prints the comparison. Fails if the counters differ, or a class was not seen.
fn conclude(report: &Report, agreement: &Agreement, rounds: u64) -> Result<ExitCode> {
    print(&format!("\n{}\n{}", report.text(), agreement.text()))?;
    if !agreement.holds() {
        bail!("tfo and the kernel have counted differently");
    }
    let missing = agreement.not_seen();
    if !missing.is_empty() {
        bail!("agrees with the kernel, but in {rounds} rounds these were never seen: {}", missing.join(", "));
    }
    print(&format!("\nagrees with the kernel: every class seen, {rounds} rounds"))?;
    Ok(ExitCode::SUCCESS)
}
