//! A model of a fleet whose hosts learn a secret at different times.

use super::*;

const INTERVAL: u64 = 40;
const OVERLAP: u64 = 60;
/// Beginning of an interval.
const START: u64 = 1_000_000;

fn secret(number: u8) -> Secret {
    Secret::from_digits(format!("{number:064x}").as_bytes()).unwrap()
}

fn schedule() -> Schedule {
    Schedule::new(Duration::from_secs(INTERVAL)).unwrap()
}

fn succession(number: u8) -> Succession {
    Succession::new(secret(number), schedule(), Duration::from_secs(OVERLAP))
}

/// Whether a host at `now` recognises the cookies of a key.
fn knows(host: &Succession, now: u64, key: Key) -> bool {
    let held = host.held(now);
    [held.current, held.backup, held.next].contains(&Some(key))
        || host.earlier(now).iter().any(|known| known.key == key)
}

fn current(host: &Succession, now: u64) -> Key {
    host.held(now).current.unwrap()
}

#[test]
fn one_secret_is_the_schedule() {
    let (host, number) = (succession(1), START / INTERVAL);
    for now in START..START + 3 * INTERVAL {
        assert!(host.held(now) == schedule().held(&secret(1), now), "{now}");
        assert!(host.live(now).is_empty());
    }
    let earlier = host.earlier(START + 1);
    let expected: Vec<_> = (2..10).map(|age| secret(1).key(number - age)).collect();
    assert!(earlier.iter().map(|made| made.key).collect::<Vec<_>>() == expected);
    assert_eq!(earlier[0].made, (number - 2) * INTERVAL);
}

/// Hosts learn the secret at any second of the overlap, in any order. Each recognises the cookies of all others, at all
/// times, also if its clock is a few seconds off.
#[test]
fn no_host_meets_a_cookie_that_it_does_not_know() {
    let delays: Vec<u64> = (0..OVERLAP).step_by(7).chain([OVERLAP - 1]).collect();
    for offset in (0..INTERVAL).step_by(7) {
        let start = START + offset;
        let mut hosts: Vec<_> = delays.iter().map(|_| succession(1)).collect();
        for now in start - 10..start + 4 * OVERLAP + 3 * INTERVAL {
            for (host, delay) in hosts.iter_mut().zip(&delays) {
                if now >= start + delay {
                    host.learn(secret(2), now, false);
                    host.tidy(now);
                }
            }
            for (one, mine) in hosts.iter().zip(&delays) {
                for (other, its) in hosts.iter().zip(&delays) {
                    for skew in [0, 3] {
                        let key = current(other, now - skew);
                        assert!(knows(one, now, key), "{offset} {now}: {mine} meets {its}, {skew}");
                    }
                }
            }
        }
        let end = start + 4 * OVERLAP + 3 * INTERVAL;
        for host in &hosts {
            assert!(host.held(end) == schedule().held(&secret(2), end), "in the end all are as if new");
        }
    }
}

/// The keys that were in force come back after a start, in the order of their time.
#[test]
fn the_keys_of_the_secret_before_are_retired_ones() {
    let mut host = succession(1);
    assert_eq!(host.learn(secret(2), START, false), Learnt::New(START + OVERLAP));
    let mut seen: Vec<Key> = Vec::new();
    for now in START - 5 * INTERVAL..START + 6 * INTERVAL {
        let key = current(&host, now);
        if seen.last() != Some(&key) {
            seen.push(key);
        }
        if now < START {
            continue;
        }
        let (held, earlier) = (host.held(now), host.earlier(now));
        let recent = seen.iter().rev().take(6);
        for key in recent {
            let is_held = [held.current, held.backup, held.next].contains(&Some(*key));
            assert!(is_held || earlier.iter().any(|made| made.key == *key), "{now}");
        }
        assert!(earlier.len() <= RETIRED);
        for (at, made) in earlier.iter().enumerate() {
            assert!(earlier[..at].iter().all(|other| other.key != made.key), "{now}: twice");
        }
        let settled = earlier.iter().filter(|made| host.live(now).iter().all(|live| live.key != made.key));
        let times: Vec<_> = settled.map(|made| made.made).collect();
        assert!(times.is_sorted_by(|a, b| a >= b), "{now}: {times:?}");
    }
}

#[test]
fn the_kernel_has_both_secrets_during_the_overlap() {
    let mut host = succession(1);
    host.learn(secret(2), START, false);
    let from = START + OVERLAP;
    let number = |now| schedule().number(now);
    assert!(host.held(from - 1).current == Some(secret(1).key(number(from - 1))));
    for now in from..from + OVERLAP {
        let held = host.held(now);
        assert!(held.current == Some(secret(2).key(number(now))), "{now}");
        let made = number(from.max(now - INTERVAL / 2));
        assert!(held.backup == Some(secret(1).key(made)), "{now}");
    }
}

/// While the kernel's keys change, cookies can be translated only into a key that it holds before and after.
#[test]
fn the_kernels_keys_never_change_at_once() {
    for offset in 0..INTERVAL {
        let mut host = succession(1);
        host.learn(secret(2), START + offset, false);
        let mut before = host.held(START);
        for now in START..START + 3 * OVERLAP + 3 * INTERVAL {
            let held = host.held(now);
            let stays = [held.current, held.backup];
            assert!(stays.contains(&before.current) || stays.contains(&before.backup), "{offset} {now}");
            before = held;
        }
    }
}

#[test]
fn a_secret_that_is_put_back_does_not_come_in_force() {
    let mut host = succession(1);
    assert_eq!(host.learn(secret(1), START, false), Learnt::Nothing);
    assert_eq!(host.learn(secret(2), START, false), Learnt::New(START + OVERLAP));
    assert_eq!(host.learn(secret(2), START + 1, false), Learnt::Nothing);
    assert_eq!(host.learn(secret(1), START + 2, false), Learnt::Withdrawn);
    assert_eq!(host.learn(secret(1), START + 3, false), Learnt::Nothing);
    let now = START + 2 * OVERLAP;
    assert!(host.held(now) == schedule().held(&secret(1), now));
    assert!(knows(&host, now, secret(2).key(schedule().number(now))), "others may have used it");
    assert_eq!(host.learn(secret(2), now, false), Learnt::New(now + OVERLAP));
    assert!(current(&host, now + OVERLAP) == secret(2).key(schedule().number(now + OVERLAP)));
}

#[test]
fn a_secret_waits_for_the_word() {
    let mut host = succession(1);
    assert!(!host.put_in_force(START));
    assert_eq!(host.learn(secret(2), START, true), Learnt::New(UNTIL_TOLD));
    let late = START + 100 * INTERVAL;
    assert!(host.held(late) == schedule().held(&secret(1), late));
    assert!(knows(&host, late, secret(2).key(schedule().number(late))));
    assert_eq!(host.next(late), Some((secret(2).fingerprint(), UNTIL_TOLD)));
    assert!(host.put_in_force(late));
    assert_eq!((host.fingerprint(late), host.next(late)), (secret(2).fingerprint(), None));
    assert!(!host.put_in_force(late));
}

#[test]
fn an_emergency_leaves_one_secret() {
    let mut host = succession(1);
    host.learn(secret(2), START, false);
    host.purge();
    assert!(host.is_purging());
    assert!(host.held(START) == schedule().held(&secret(2), START));
    let old: Vec<_> = (0..3).map(|age| secret(1).key(schedule().number(START) + 1 - age)).collect();
    assert!(old.iter().all(|key| !knows(&host, START, *key)));
    assert!(host.earlier(START).iter().all(|made| !old.contains(&made.key)));
}

#[test]
fn there_are_never_more_than_a_few() {
    let mut host = succession(1);
    for number in 2..40 {
        host.learn(secret(number), START, number % 3 == 0);
        assert!(host.entries.len() <= MOST);
        assert!(host.held(START) == schedule().held(&secret(1), START), "the one in force stays");
        assert!(host.live(START).capacity() == 3 * MOST, "it has not grown");
        assert!(host.earlier(START).len() <= RETIRED);
    }
}

#[test]
fn a_secret_is_forgotten_with_its_keys() {
    let mut host = succession(1);
    host.learn(secret(2), START, false);
    let mut now = START;
    while !host.tidy(now) {
        now += 1;
        assert!(now < START + 20 * INTERVAL);
    }
    assert_eq!(host.entries.len(), 1);
    assert!(
        host.earlier(now - 1)
            .iter()
            .all(|made| (2..30).all(|age| made.key != secret(1).key(schedule().number(now) + 1 - age)))
    );
}

#[test]
fn it_comes_back_as_it_was() {
    let mut host = succession(1);
    host.learn(secret(2), START, false);
    host.learn(secret(3), START, true);
    let text = host.text().unwrap();
    assert!(text.len() <= ENTRY * (1 + host.entries.len()));
    let back = Succession::parse(&text, schedule(), Duration::from_secs(OVERLAP)).unwrap();
    for now in [START, START + OVERLAP, START + 3 * OVERLAP] {
        assert!(back.held(now) == host.held(now) && back.live(now) == host.live(now));
    }
    for broken in [
        "",
        "{}",
        "{\"version\":1,\"secrets\":[]}",
        "{\"version\":1,\"secrets\":[{\"secret\":\"07\",\"from\":0}]}",
    ] {
        let error = Succession::parse(broken.as_bytes(), schedule(), Duration::ZERO).err().unwrap();
        assert!(!format!("{error:#}").contains("07"));
    }
    for length in 0..text.len() - 1 {
        assert!(Succession::parse(&text[..length], schedule(), Duration::ZERO).is_err(), "{length}");
    }
}
