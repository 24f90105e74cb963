//! `tfo run`.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;
use log::{LevelFilter, info};

use crate::{
    cli::Run,
    controller::{Controller, FOLLOW_EVERY, every},
    pins::Bpffs,
    screen,
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
    let outcome = serve(&mut controller, &mut signals).await;
    outcome.and(controller.stop().await)
}

async fn serve(controller: &mut Controller, signals: &mut Signals) -> Result<()> {
    let live = screen::is_terminal();
    let mut follow = every(FOLLOW_EVERY);
    let mut show = every(if live { DRAW_EVERY } else { LOG_EVERY });
    while !controller.is_idle() {
        tokio::select! {
            () = signals.next() => break,
            _ = follow.tick() => controller.step()?,
            _ = show.tick() => {
                let reports = controller.reports()?;
                if live {
                    let mut text = String::new();
                    for report in &reports {
                        writeln!(text, "{}", report.text())?;
                    }
                    screen::draw(&text)?;
                } else {
                    for report in &reports {
                        info!("{}: {}", report.interface, report.summary());
                    }
                }
            }
        }
    }
    Ok(())
}
