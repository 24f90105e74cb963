//! Key schedule of a fleet. The time alone determines the keys of a host, as with tofurkey.

use std::time::Duration;

use anyhow::{Result, bail};
use tfo_common::keyring::Held;

use super::secret::Secret;
use crate::model::keys::DatedKey;

/// Shortest interval, the same as tofurkey's.
pub const SHORTEST: Duration = Duration::from_secs(10);
/// Longest interval, one week, the same as tofurkey's.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Usual interval, one day, the same as tofurkey's.
pub const USUAL: Duration = Duration::from_hours(24);

/// The schedule of a fleet. Key number N becomes the current key at N times the interval, in unix time.
///
/// In the first half of an interval, the backup key is the previous key, in the second half the following key. So the
/// kernels of hosts whose clocks differ by at most half an interval accept each other's cookies, without the program's
/// help.
//= RFC 7413 section 4.1.2
//# The cookie expires after a certain amount of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Time for which a key is current: an even number of seconds.
    interval: Duration,
}

impl Schedule {
    /// Makes a schedule with one key per `interval`: 10 seconds to one week, in an even number of seconds, as for
    /// tofurkey. All hosts of a fleet must have the same interval.
    pub fn new(interval: Duration) -> Result<Self> {
        if !(SHORTEST..=LONGEST).contains(&interval) {
            bail!("an interval of {interval:?} is out of range: a fleet's keys change every 10s to 1w");
        }
        if interval.subsec_nanos() != 0 || !interval.as_secs().is_multiple_of(2) {
            bail!(
                "an interval of {interval:?} has no half in whole seconds: give an even number of seconds, and \
                 the same to all hosts of the fleet"
            );
        }
        Ok(Self { interval })
    }

    /// Returns the time for which a key is current.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Returns the number of the current key at `unix_seconds`.
    pub fn number(&self, unix_seconds: u64) -> u64 {
        unix_seconds / self.interval.as_secs()
    }

    /// Returns the keys that a host holds at `unix_seconds`.
    ///
    /// In the first half of an interval they include the next key, although the kernel has no room for it.
    pub fn held(&self, secret: &Secret, unix_seconds: u64) -> Held {
        let number = self.number(unix_seconds);
        let current = Some(secret.key(number));
        let after = Some(secret.key(number + 1));
        if self.is_second_half(unix_seconds) {
            Held { current, backup: after, next: None }
        } else {
            // A clock that was never set begins at 0. Key 0 has no previous key.
            let before = number.checked_sub(1).map(|number| secret.key(number));
            Held { current, backup: before, next: after }
        }
    }

    /// Returns the unix second at which [`held`](Self::held) changes next, the beginning of the next half of an
    /// interval. It is always after `unix_seconds`.
    pub fn next_change(&self, unix_seconds: u64) -> u64 {
        let half = self.half();
        (unix_seconds - unix_seconds % half).saturating_add(half)
    }

    /// Returns the keys before the current one, newest first. Clients may have their cookies from hosts of the fleet.
    /// In the first half of an interval, the first of them is the backup key.
    pub fn earlier(&self, secret: &Secret, unix_seconds: u64) -> impl Iterator<Item = DatedKey> {
        let made = |number| DatedKey { key: secret.key(number), made: number * self.interval.as_secs() };
        (0..self.number(unix_seconds)).rev().map(made)
    }

    fn half(&self) -> u64 {
        self.interval.as_secs() / 2
    }

    fn is_second_half(&self, unix_seconds: u64) -> bool {
        unix_seconds % self.interval.as_secs() >= self.half()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{keys::secret::tests::secret, model::keys::key_text};

    fn every(seconds: u64) -> Schedule {
        Schedule::new(Duration::from_secs(seconds)).unwrap()
    }

    /// Returns the numbers of the keys that are held, since keys have no `Debug`.
    fn numbers(schedule: &Schedule, secret: &Secret, now: u64) -> [Option<u64>; 3] {
        let held = schedule.held(secret, now);
        [held.current, held.backup, held.next].map(|key| {
            let key = key?;
            let around = schedule.number(now).saturating_sub(3)..schedule.number(now) + 4;
            Some(around.into_iter().find(|number| secret.key(*number) == key).expect("a key of the schedule"))
        })
    }

    #[test]
    fn keys_match_tofurkeys_test_vector() {
        let held = every(86400).held(&secret(), 1_000_000);
        assert_eq!(*held.current.map(key_text).unwrap(), "c998252e-8f89667d-31961e08-3897526b");
        assert_eq!(*held.backup.map(key_text).unwrap(), "1c9ca1a5-9d295055-f8e3d4df-7107b577");
        assert!(held.next.is_none());
    }

    #[test]
    fn the_backup_changes_in_the_middle_of_an_interval() {
        let secret = secret();
        // The times and numbers of tofurkey with -i 10, and of one day.
        for (interval, number) in [(10, 100_000), (86400, 20_000), (604_800, 2_900), (14, 77)] {
            let schedule = every(interval);
            for number in number..number + 3 {
                let start = number * interval;
                let first = [Some(number), Some(number - 1), Some(number + 1)];
                let second = [Some(number), Some(number + 1), None];
                for (now, expected) in [
                    (start - 1, [Some(number - 1), Some(number), None]),
                    (start, first),
                    (start + interval / 2 - 1, first),
                    (start + interval / 2, second),
                    (start + interval - 1, second),
                ] {
                    assert_eq!(numbers(&schedule, &secret, now), expected, "{interval} {now}");
                }
            }
        }
    }

    #[test]
    fn the_keys_change_exactly_when_announced() {
        let secret = secret();
        for interval in [10, 14, 60] {
            let schedule = every(interval);
            let start = 1_000_000;
            let mut announced = schedule.next_change(start);
            for now in start + 1..start + 4 * interval {
                let changes = schedule.held(&secret, now) != schedule.held(&secret, now - 1);
                assert_eq!(changes, now == announced, "{interval} {now}");
                if changes {
                    announced = schedule.next_change(now);
                    assert_eq!(announced, now + interval / 2);
                }
            }
        }
    }

    #[test]
    fn hosts_whose_clocks_differ_take_each_others_cookies() {
        let secret = secret();
        let interval = 40;
        let schedule = every(interval);
        // Two clocks that are wrong by a quarter in opposite directions differ by a half. The kernel's two keys
        // suffice.
        for difference in [0, 1, interval / 4, interval / 2] {
            for now in 1_000_000..1_000_000 + 2 * interval {
                let (slow, fast) = (schedule.held(&secret, now), schedule.held(&secret, now + difference));
                for (mine, other) in [(slow, fast), (fast, slow)] {
                    let taken = other.current == mine.current || other.current == mine.backup;
                    assert!(taken, "{difference} {now}");
                }
            }
        }
        // With one more second of difference, only the program recognises the other host's key.
        let beyond = interval / 2 + 1;
        let at = |now| schedule.held(&secret, now);
        let is_refused = |now: &u64| {
            let (mine, other) = (at(*now), at(*now + beyond));
            other.current != mine.current && other.current != mine.backup
        };
        let refused: Vec<_> = (1_000_000..1_000_000 + interval).filter(is_refused).collect();
        assert_eq!(refused.len(), 1);
        assert!(at(refused[0]).next == at(refused[0] + beyond).current);
    }

    #[test]
    fn earlier_keys_come_newest_first() {
        let (secret, schedule) = (secret(), every(10));
        for now in [1_000_000, 1_000_009] {
            let earlier: Vec<_> = schedule.earlier(&secret, now).take(3).collect();
            let made = |number| DatedKey { key: secret.key(number), made: number * 10 };
            assert!(earlier == [99_999, 99_998, 99_997].map(made));
        }
    }

    #[test]
    fn a_clock_that_was_never_set_is_no_panic() {
        let (secret, schedule) = (secret(), every(10));
        assert_eq!(numbers(&schedule, &secret, 0), [Some(0), None, Some(1)]);
        assert_eq!(numbers(&schedule, &secret, 5), [Some(0), Some(1), None]);
        assert_eq!(schedule.next_change(0), 5);
        assert_eq!(schedule.earlier(&secret, 0).count(), 0);
        assert_eq!(schedule.earlier(&secret, 25).count(), 2);
    }

    #[test]
    fn intervals_are_what_tofurkey_takes() {
        for seconds in [10, 12, 86400, 604_800] {
            assert_eq!(every(seconds).interval(), Duration::from_secs(seconds));
        }
        for (millis, complaint) in [
            (0, "out of range"),
            (9_999, "out of range"),
            (604_800_001, "out of range"),
            (11_000, "no half"),
            (10_500, "no half"),
            (11_500, "no half"),
        ] {
            let error = Schedule::new(Duration::from_millis(millis)).unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
