//! Clocks, durations as users write them, and tickers.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The units of [`parse_duration`], in seconds.
const UNITS: [(char, u64); 5] =
    [('s', 1), ('m', 60), ('h', 60 * 60), ('d', 24 * 60 * 60), ('w', 7 * 24 * 60 * 60)];

/// A duration on the command line: a whole number and its unit, `s`, `m`, `h`, `d` or `w`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "give a whole number and its unit, s, m, h, d or w: 90s, 15m, 4h, 1d, 1w";
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(FORM.to_owned());
    }
    let unit = &text[digits.len()..];
    if unit.is_empty() {
        return Err(format!("{text} of what? {FORM}"));
    }
    let Some((_, seconds)) = UNITS.iter().find(|(name, _)| unit.chars().eq([*name])) else {
        return Err(format!("{unit:?} is no unit: {FORM}"));
    };
    let duration = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(*seconds));
    duration.map(Duration::from_secs).ok_or_else(|| format!("{text} is too long"))
}

/// Seconds since 1970 (UTC).
pub fn unix_seconds() -> u64 {
    Timestamp::now().as_second().try_into().unwrap_or(0)
}

/// A ticker that never tries to catch up.
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
        ] {
            assert_eq!(duration(text), Ok(seconds), "{text}");
        }
        for (text, complaint) in [
            ("", "whole number"),
            ("h", "whole number"),
            ("-1h", "whole number"),
            ("+1h", "whole number"),
            ("1.5h", "whole number"),
            ("1h30m", "whole number"),
            (" 1h", "whole number"),
            ("14400", "14400 of what?"),
            ("1y", "no unit"),
            ("1 h", "no unit"),
            ("1H", "no unit"),
            ("1ms", "no unit"),
            ("1é", "no unit"),
            ("18446744073709551616s", "too long"),
            ("18446744073709551615w", "too long"),
        ] {
            let error = duration(text).unwrap_err();
            assert!(error.contains(complaint), "{text:?}: {error}");
        }
    }
}
