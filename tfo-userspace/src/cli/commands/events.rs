//! `tfo events`.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    cli::args::Events,
    control::{Request, send},
    dataplane::pins::Bpffs,
    util::output::{json, print},
    view::events::{Event, Host, MAX_ANSWERED, Recent, Why},
};

/// Time between requests with `--follow`.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Prints the last events, and with `--follow` each new one.
pub(super) async fn run(args: &Events, bpffs: &Bpffs) -> Result<()> {
    let mut interfaces = HashMap::new();
    for pins in super::attached(args.select.interface.as_deref(), bpffs)? {
        interfaces.insert(pins.interface().to_owned(), (pins, Seen::default()));
    }
    loop {
        for (interface, (pins, seen)) in &mut interfaces {
            let request =
                Request::Events { interface: interface.clone(), after: seen.last, most: MAX_ANSWERED };
            let recent: Recent =
                serde_json::from_str(&send(pins, &request).await?).context("the answer is not valid")?;
            // This reads every process, so it is done only if an event needs it.
            let has_refused = recent.events.iter().any(|event| event.why == Why::Refused);
            let host = has_refused.then(Host::ask).flatten();
            for event in recent.events {
                seen.last = event.number;
                show(args, if let Some(host) = &host { host.explain(event) } else { event })?;
            }
            if recent.lost > seen.lost && !args.select.json {
                eprintln!(
                    "{interface}: events of {} more packets were lost: there were too many",
                    recent.lost - seen.lost
                );
            }
            seen.lost = recent.lost;
        }
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

#[derive(Default)]
struct Seen {
    last: u64,
    lost: u64,
}

fn show(args: &Events, event: Event) -> Result<()> {
    let event = if args.anonymize { event.anonymized() } else { event };
    print(&if args.select.json { json(&event)? } else { event.text() })
}
