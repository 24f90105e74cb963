//! `tfo run`.

use std::time::Duration;

use anyhow::Result;
use log::{LevelFilter, info, warn};

use crate::{
    cli::Run,
    controller::{Controller, FOLLOW_EVERY, every},
    counters::Report,
    pins::Bpffs,
    screen::Screen,
    signals::Signals,
};

/// How often live counters are drawn on a terminal.
const DRAW_EVERY: Duration = Duration::from_secs(1);
/// How often totals are logged without one.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Runs the controller until SIGINT, SIGTERM or `tfo unload`.
pub(super) async fn run(args: &Run, bpffs: &Bpffs, log_level: LevelFilter) -> Result<()> {
    // From the first attachment on a signal must find us ready to clean up.
    let mut signals = Signals::new()?;
    let mut controller = Controller::start(&args.interfaces, bpffs, args.attach, log_level).await?;
    let mut screen = Screen::open();
    let mut follow = every(FOLLOW_EVERY);
    let mut show = every(if screen.is_some() { DRAW_EVERY } else { LOG_EVERY });
    while !controller.is_idle() {
        tokio::select! {
            () = signals.next() => break,
            _ = follow.tick() => controller.step().await,
            _ = show.tick() => match controller.reports() {
                Ok(reports) => display(&reports, screen.as_mut()),
                Err(error) => warn!("{error:#}"),
            }
        }
    }
    controller.stop().await
}

/// Shows the counters, live on a terminal, else in the log.
fn display(reports: &[Report], screen: Option<&mut Screen>) {
    match screen {
        Some(screen) => {
            let text: Vec<_> = reports.iter().map(Report::text).collect();
            screen.draw(&text.join("\n"));
        }
        None => reports.iter().for_each(|report| info!("{}: {}", report.interface, report.summary())),
    }
}
