//! The clock, durations as users write them, and tickers.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo, Timestamp};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Parses a duration as users write it, such as `90s`, `4h`, `1h 30m` or `1w`. A day has 24 hours.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "give a number and its unit, such as 90s, 15m, 4h, 1d or 1w";
    let span: Span = text.parse().map_err(|_| FORM.to_owned())?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours());
    let duration = duration.map_err(|_| format!("months and years have no fixed length: {FORM}"))?;
    Duration::try_from(duration).map_err(|_| format!("it is negative: {FORM}"))
}

/// Returns the time in seconds since 1970 (UTC).
pub fn unix_seconds() -> u64 {
    Timestamp::now().as_second().try_into().unwrap_or(0)
}

/// Returns a ticker that does not make up for ticks that were missed.
pub fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let duration = |text| parse_duration(text).map(|duration| duration.as_secs());
        for (text, seconds) in [
            ("10s", 10),
            ("15m", 900),
            ("4h", 14_400),
            ("1d", 86_400),
            ("1w", 604_800),
            ("0s", 0),
            ("007m", 420),
            ("1h30m", 5_400),
            ("1 h", 3_600),
        ] {
            assert_eq!(duration(text), Ok(seconds), "{text}");
        }
        for (text, complaint) in [
            ("", "give a number"),
            ("h", "give a number"),
            ("-1h", "negative"),
            ("14400", "give a number"),
            ("1y", "no fixed length"),
            ("1mo", "no fixed length"),
            ("1x", "give a number"),
            ("18446744073709551616s", "give a number"),
        ] {
            let error = duration(text).unwrap_err();
            assert!(error.contains(complaint), "{text:?}: {error}");
        }
    }
}
