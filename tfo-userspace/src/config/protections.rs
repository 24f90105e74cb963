//! Protections of a service in the configuration file.

use std::time::Duration;

use tfo_common::limit;

use super::table::{Table, choice, flag, number, text};
use crate::{
    kernel::{clock::jiffies_per_second, syncookies},
    model::guards::{Answer, Clamp, Fair, Guards, Hide, Limit, Once, Shed, SourceLen},
    util::time::parse_duration,
};

/// Reads the protections from the table of a service.
pub(super) fn guards(table: &mut Table) -> Guards {
    Guards {
        hide: table.switch("hide", |table| Some(Hide { dry_run: dry_run(table) })),
        once: table.switch("once", once),
        fair: table.switch("fair", fair),
        clamp: table.switch("clamp", clamp),
        shed: table.switch("shed", shed),
        answer: table.switch("answer", answer),
    }
}

fn dry_run(table: &mut Table) -> bool {
    table.get("dry_run", flag).unwrap_or(false)
}

fn once(table: &mut Table) -> Option<Once> {
    let remember = table.get("remember", text(seconds)).unwrap_or(Once::DEFAULT_REMEMBER);
    let same = table.get("match", choice).unwrap_or_default();
    Some(Once { remember, same, dry_run: dry_run(table) })
}

fn fair(table: &mut Table) -> Option<Fair> {
    table.need("limit", "\"6/min\"");
    let limit = limit(table, "limit", "burst");
    let (source, dry_run) = (source(table), dry_run(table));
    Some(Fair { limit: limit?, source, dry_run })
}

fn clamp(table: &mut Table) -> Option<Clamp> {
    let factor = table.get("factor", number(1..=100)).unwrap_or(Clamp::DEFAULT_FACTOR);
    Some(Clamp { factor, dry_run: dry_run(table) })
}

fn shed(table: &mut Table) -> Option<Shed> {
    if !table.has("per_source") {
        table.need("limit", "\"8/s\" (or a limit per_source)");
    }
    Some(Shed {
        limit: limit(table, "limit", "burst"),
        per_source: limit(table, "per_source", "per_source_burst"),
        source: source(table),
        drop: table.get("drop", flag).unwrap_or(false),
        others: table.get("others", flag).unwrap_or(false),
        own_keys: table.get("own_keys", flag).unwrap_or(false),
        dry_run: dry_run(table),
    })
}

fn answer(table: &mut Table) -> Option<Answer> {
    if let Err(error) = syncookies::support() {
        table.refuse(&format!("{error:#}"));
    }
    Some(Answer {
        waits: table.get("when", text(waits)).unwrap_or(true),
        above: table.get("above", number(1..=u32::MAX)),
        release: table.get("release", text(seconds)).unwrap_or(Answer::DEFAULT_RELEASE),
        dry_run: dry_run(table),
    })
}

/// Reads the rate limit from the key `limit`, and its burst from the key `burst`.
fn limit(table: &mut Table, limit: &'static str, burst: &'static str) -> Option<Limit> {
    if !table.has(limit) && table.has(burst) {
        let what = format!("{burst} needs {limit}: add {limit}, or remove {burst}");
        table.faults.add(table.place(burst), what);
    }
    let (count_per, key) = (table.get(limit, text(rate)), burst);
    let burst = table.get(key, |value| {
        let burst = number(1..=u32::MAX)(value)?;
        count_per.map_or(Ok(()), |(count, per)| check_burst(count, per, burst))?;
        Ok(burst)
    });
    let (count, per) = count_per?;
    Some(Limit { count, per, burst: burst.unwrap_or(count) })
}

/// Checks that `burst` allows the rate of `count` in `per`. Each tick of the kernel's clock grants at most the burst.
fn check_burst(count: u32, per: Duration, burst: u32) -> Result<(), String> {
    // If the frequency can't be read, `tfo run` fails at its start and gives the reason.
    let Ok(hz) = jiffies_per_second() else { return Ok(()) };
    let least = limit::Limit::least_burst(count.into(), per.as_secs() * hz);
    if u64::from(burst) >= least {
        return Ok(());
    }
    Err(format!(
        "{burst} is too small for {count} in {} s: each of the {hz} ticks per second of the kernel's clock grants at \
         most the burst; it takes at least {least}",
        per.as_secs()
    ))
}

fn source(table: &mut Table) -> SourceLen {
    let default = SourceLen::default();
    SourceLen {
        v4: table.get("source_v4", number(8..=32)).unwrap_or(default.v4),
        v6: table.get("source_v6", number(16..=128)).unwrap_or(default.v6),
    }
}

fn waits(text: &str) -> Result<bool, String> {
    match text {
        "flood" => Ok(true),
        "always" => Ok(false),
        other => Err(format!("`{other}` is neither \"flood\" nor \"always\"")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let is_fit = |time: &Duration| (1..=60 * 60).contains(&time.as_secs());
    Some(parse_duration(text)?)
        .filter(is_fit)
        .ok_or_else(|| format!("{text} is out of range; it takes 1s to 1h"))
}

/// Parses a rate: a number of SYNs, and the time for them.
fn rate(text: &str) -> Result<(u32, Duration), String> {
    let form = || format!("`{text}` is not a limit; write a number per s, min or h: 10/s, 600/min, 36000/h");
    let (count, unit) = text.split_once('/').ok_or_else(form)?;
    let seconds = match unit {
        "s" => 1,
        "min" => 60,
        "h" => 60 * 60,
        _ => return Err(form()),
    };
    let is_number = count.bytes().all(|byte| byte.is_ascii_digit());
    let count = count.parse().ok().filter(|count| is_number && *count > 0).ok_or_else(form)?;
    Ok((count, Duration::from_secs(seconds)))
}
