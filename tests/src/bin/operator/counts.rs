//! Reader of `tfo counters`: no counter may shrink.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::machine::run;

/// Number of packets, by place in the report.
type Counts = BTreeMap<String, u64>;

/// Reads the counters of all services.
fn read() -> Result<Counts> {
    let text = run("tfo counters --json")?;
    let report: Value = serde_json::from_str(&text).context("`tfo counters` wrote no JSON")?;
    let mut counts = Counts::new();
    for row in report["syn"].as_array().context("there is no syn")? {
        let name = format!("{} {} {}", row["family"], row["class"], row["verdict"]);
        counts.insert(name, row["packets"].as_u64().context("there is no packets")?);
    }
    Ok(counts)
}

/// Returns the number of SYNs that tfo has counted.
pub(crate) fn total() -> Result<u64> {
    Ok(read()?.values().sum())
}

/// Returns the number of SYNs of a class.
pub(crate) fn class(name: &str) -> Result<u64> {
    let name = format!("\"{name}\"");
    Ok(read()?.iter().filter(|(row, _)| row.contains(&name)).map(|(_, packets)| packets).sum())
}

/// Reader of the counters on a thread of its own.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u32>>,
}

impl Watch {
    /// Begins to read.
    pub(crate) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut last, mut readings) = (Counts::new(), 0);
            while !stopped.load(Ordering::Relaxed) {
                // Between the new binary and the restart of its service, the maps are of another layout: no reading.
                if let Ok(now) = read() {
                    compare(&last, &now)?;
                    (last, readings) = (now, readings + 1);
                }
                thread::sleep(Duration::from_millis(300));
            }
            Ok(readings)
        });
        Self { stop, thread }
    }

    /// Fails if a counter has shrunk until now.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(!self.thread.is_finished(), "a counter has shrunk");
        Ok(())
    }

    /// Ends it. Returns the number of readings.
    pub(crate) fn end(self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let readings = self.thread.join().map_err(|_| anyhow!("the reader of the counters panicked"))??;
        ensure!(readings > 1, "the counters were read {readings} times, which shows nothing");
        Ok(readings)
    }
}

/// Fails if a counter of `last` is smaller now.
fn compare(last: &Counts, now: &Counts) -> Result<()> {
    for (row, before) in last {
        let after = now.get(row).copied().unwrap_or(0);
        if after < *before {
            bail!("{row} was {before}, and is {after} now");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_shrinks_is_seen() {
        let counts = |packets| Counts::from([("plain".to_owned(), packets)]);
        assert!(compare(&counts(1), &counts(2)).is_ok());
        assert!(compare(&counts(2), &counts(1)).is_err());
        assert!(compare(&counts(2), &Counts::new()).is_err(), "a row that is gone");
    }
}
