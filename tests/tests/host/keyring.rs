//! Key rings follow the kernel's keys and drop no key too early.

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};
use tfo_common::keyring::{
    CONFIRMED_FOR_NS, Confirmed, Held, Key, KeyRing, KeyStore, Moment, RETIRED, Role, SLOTS, Searches, TRACKS,
};
use tfo_tests::keys::{self, STRANGER, ZERO};

/// Returns the n-th key of a series.
fn key(n: u32) -> Key {
    Key::from_words([n, 0, 0, 0])
}

/// Returns the content of a ring from slot 0 on, as the first words of its keys, which come from [`key`].
fn held(ring: &KeyRing) -> Vec<Option<u32>> {
    (0..SLOTS).map(|slot| ring.get(slot).map(|key| key.to_words()[0])).collect()
}

/// Returns the ring after a change of the kernel's keys, at time 0.
fn follow(ring: &KeyRing, current: impl Into<Option<u32>>, backup: impl Into<Option<u32>>) -> KeyRing {
    follow_all(ring, [current.into(), backup.into(), None])
}

/// Returns the ring after a change of the kernel's keys and the next key, at time 0.
fn follow_all(ring: &KeyRing, held: [Option<u32>; 3]) -> KeyRing {
    ring.follow(roles(held), Moment { seconds: 0, hits: &[0; TRACKS] })
}

/// Returns the keys by role: current, backup and next.
fn roles(keys: [Option<u32>; 3]) -> Held {
    let [current, backup, next] = keys.map(|n| n.map(key));
    Held { current, backup, next }
}

/// Returns whether the ring holds exactly `keys`, from slot 0 on.
fn holds(ring: &KeyRing, keys: &[Option<u32>]) -> bool {
    let (front, rest) = (&held(ring)[..keys.len()], &held(ring)[keys.len()..]);
    front == keys && rest.iter().all(Option::is_none)
}

#[test]
fn retires_the_newest_first() {
    let ring = follow(&KeyRing::EMPTY, 1, None);
    assert!(holds(&ring, &[Some(1), None]));
    let ring = follow(&ring, 2, 1);
    assert!(holds(&ring, &[Some(2), Some(1)]));
    let ring = follow(&ring, 3, 2);
    assert!(holds(&ring, &[Some(3), Some(2), None, Some(1)]));
    let ring = follow(&ring, 5, 4);
    assert!(holds(&ring, &[Some(5), Some(4), None, Some(3), Some(2), Some(1)]));
}

#[test]
fn a_key_of_another_host_is_the_newest_retired_one() {
    let moment = Moment { seconds: 7, hits: &[3; TRACKS] };
    let mut ring = (2..20).fold(follow(&KeyRing::EMPTY, 1, None), |ring, n| follow(&ring, n, n - 1));
    let before = held(&ring);
    ring = ring.with_newest(key(99), moment);
    let after = held(&ring);
    assert_eq!(after[..3], before[..3], "the kernel's keys stay");
    assert_eq!(after[3], Some(99));
    assert_eq!(after[4..], before[3..SLOTS - 1], "the others move on, and the oldest goes");
    assert_eq!((ring.since[3], ring.hits(3, &[5; TRACKS])), (7, 2));
    let tracks: BTreeSet<_> =
        (0..SLOTS).filter(|slot| ring.holds(*slot)).map(|slot| ring.track(slot)).collect();
    assert_eq!(tracks.len(), SLOTS - 1, "each key has a counter of its own; there is no next key");
    assert_eq!(held(&ring.with_newest(key(19), moment)), after, "a key that is there stays where it is");
}

#[test]
fn follows_keys_back() {
    let ring = follow(&follow(&KeyRing::EMPTY, 1, 2), 3, 4);
    // A retired key that the kernel takes again is no longer retired.
    let ring = follow(&ring, 2, 3);
    assert!(holds(&ring, &[Some(2), Some(3), None, Some(4), Some(1)]));
    // Current and backup key are exchanged.
    let ring = follow(&ring, 3, 2);
    assert!(holds(&ring, &[Some(3), Some(2), None, Some(4), Some(1)]));
}

#[test]
fn keeps_what_the_kernel_drops() {
    // Writing one key into the sysctl removes the backup key.
    let ring = follow(&follow(&KeyRing::EMPTY, 1, 2), 1, None);
    assert!(holds(&ring, &[Some(1), None, None, Some(2)]));
    let ring = follow(&ring, None, None);
    assert!(holds(&ring, &[None, None, None, Some(1), Some(2)]));
    let ring = follow(&ring, 3, None);
    assert!(holds(&ring, &[Some(3), None, None, Some(1), Some(2)]));
}

#[test]
fn drops_the_oldest_beyond_its_places() {
    let mut ring = KeyRing::EMPTY;
    for n in 1..=20 {
        ring = follow(&ring, n, None);
    }
    let newest: Vec<_> = (20 - RETIRED as u32..20).rev().map(Some).collect();
    assert!(holds(&ring, &[&[Some(20), None, None], &newest[..]].concat()));
    assert!(ring.retired().map(|key| Some(key.to_words()[0])).eq(newest));
}

#[test]
fn the_same_keys_again_change_only_the_generation() {
    let ring = follow(&follow(&KeyRing::EMPTY, 1, 2), 3, 1);
    let later = Moment { seconds: 7, hits: &[7; TRACKS] };
    let again = ring.follow(roles([Some(3), Some(1), None]), later);
    assert_eq!((ring.generation, again.generation), (2, 3));
    assert!(KeyRing { generation: 2, ..again } == ring);
}

#[test]
fn a_key_that_is_current_and_backup_stands_twice_but_retires_once() {
    let ring = follow(&KeyRing::EMPTY, 1, 1);
    assert!(holds(&ring, &[Some(1), Some(1)]));
    assert!(holds(&follow(&ring, 2, None), &[Some(2), None, None, Some(1)]));
}

/// A ring accepts a key of zeros. The controller must recognize "no key yet".
#[test]
fn a_key_of_zeros_is_a_key() {
    let zero = ZERO.key();
    let ring = follow(&KeyRing::EMPTY, 0, None);
    assert!(ring.holds(0) && !ring.holds(1) && ring.get(0) == Some(zero) && ring.get(1).is_none());
    let ring = follow(&ring, 1, None);
    assert!(ring.get(3) == Some(zero) && ring.retired().count() == 1);
    assert!(follow(&KeyRing::EMPTY, None, None).retired().next().is_none());
}

#[test]
fn setting_and_emptying_a_slot_leaves_the_others() {
    let mut ring = keys::ring();
    for slot in 0..SLOTS {
        let before = ring;
        ring.set(slot, None);
        assert!(!ring.holds(slot) && ring.get(slot).is_none() && ring.slots[slot].key().is_zero());
        assert_eq!(ring.present, before.present & !(1 << slot));
        ring.set(slot, Some(STRANGER.key()));
        assert!(ring.get(slot) == Some(STRANGER.key()) && ring.present == before.present);
        ring.set(slot, before.get(slot));
        assert!(ring == before);
    }
    assert!(ring.get(SLOTS).is_none());
}

#[test]
fn roles_are_those_of_the_slots() {
    let ring = keys::ring();
    for (slot, key) in keys::all().iter().enumerate() {
        assert!(ring.get(slot) == Some(key.key()));
        assert_eq!(
            Role::of_slot(slot),
            match slot {
                0 => Role::Current,
                1 => Role::Backup,
                2 => Role::Next,
                _ => Role::Retired,
            }
        );
    }
}

#[test]
fn a_store_reads_the_ring_in_force() {
    let mut store = KeyStore::default();
    assert!(*store.current() == KeyRing::EMPTY);
    store.rings[1] = keys::ring();
    assert!(*store.current() == KeyRing::EMPTY);
    for (active, index) in [(0, 0), (1, 1), (2, 0), (3, 1), (u64::MAX, 1)] {
        store.active = active;
        assert_eq!(KeyStore::index(active), index);
        assert!(*store.current() == store.rings[index]);
    }
}

/// A confirmation holds for its time, also one from the future. The clock is read once per jiffy and confirmation.
#[test]
fn a_confirmation_holds_for_its_time() {
    let at = 1 << 40;
    for (now, is_recent) in [
        (at - 1, true),
        (at, true),
        (at + CONFIRMED_FOR_NS, true),
        (at + CONFIRMED_FOR_NS + 1, false),
        (u64::MAX, false),
    ] {
        assert_eq!(KeyStore::is_recent(at, now), is_recent, "{now}");
    }
    assert!(!KeyStore::is_recent(0, at) && KeyStore::is_recent(u64::MAX, at));

    let mut confirmed = Confirmed::NEVER;
    let mut asked = 0;
    let mut ask = |at, jiffy, now: u64| {
        let is_recent = confirmed.is_recent(at, jiffy, || {
            asked += 1;
            now
        });
        (is_recent, asked)
    };
    let late = at + CONFIRMED_FOR_NS + 1;
    assert_eq!(ask(at, 1, at), (true, 1));
    assert_eq!(ask(at, 1, late), (true, 1), "it is the same jiffy");
    assert_eq!(ask(at, 2, late), (false, 2));
    assert_eq!(ask(at, 2, late), (false, 2));
    assert_eq!(ask(late, 2, late), (true, 3), "it is confirmed anew");
    assert_eq!(ask(late, 2, late), (true, 3));
}

#[test]
fn the_next_key_has_its_own_place() {
    let ring = follow_all(&KeyRing::EMPTY, [Some(1), None, Some(2)]);
    assert!(holds(&ring, &[Some(1), None, Some(2)]) && ring.retired().count() == 0);
    // It becomes the current key, and another one is next.
    let ring = follow_all(&ring, [Some(2), Some(1), Some(3)]);
    assert!(holds(&ring, &[Some(2), Some(1), Some(3)]));
    // A next key that was never current may have made cookies on another host.
    let ring = follow_all(&ring, [Some(4), Some(2), Some(5)]);
    assert!(holds(&ring, &[Some(4), Some(2), Some(5), Some(1), Some(3)]));
    // A retired key becomes the next key.
    let ring = follow_all(&ring, [Some(4), Some(2), Some(1)]);
    assert!(holds(&ring, &[Some(4), Some(2), Some(1), Some(5), Some(3)]));
    // In the second half of a schedule's interval, the kernel's backup key may be the next key.
    let ring = follow_all(&ring, [Some(4), Some(1), Some(1)]);
    assert!(holds(&ring, &[Some(4), Some(1), Some(1), Some(2), Some(5), Some(3)]));
}

#[test]
fn translates_into_the_backup_or_else_the_current_key() {
    let translation = |slots: &[usize]| {
        let mut ring = keys::ring();
        (0..SLOTS).filter(|slot| !slots.contains(slot)).for_each(|slot| ring.set(slot, None));
        ring.translation().map(|key| key.key().to_words())
    };
    let (current, backup) = (Some(keys::CURRENT.0), Some(keys::BACKUP.0));
    let others: Vec<usize> = (2..SLOTS).collect();
    assert_eq!(translation(&[&[0, 1], &others[..]].concat()), backup);
    assert_eq!(translation(&[&[1], &others[..]].concat()), backup);
    assert_eq!(translation(&[&[0], &others[..]].concat()), current);
    assert_eq!((translation(&[0, 1]), translation(&[0])), (backup, current));
    // The kernel would refuse cookies of any other key as well.
    assert_eq!((translation(&others), translation(&[])), (None, None));
}

#[test]
fn a_key_keeps_its_age_and_its_counter() {
    let at = |ring: &KeyRing, seconds, count, held| {
        ring.follow(roles(held), Moment { seconds, hits: &[count; TRACKS] })
    };
    let of = |ring: &KeyRing, n, count| {
        let slot = ring.find(key(n)).expect("the key is there");
        (ring.since[slot], ring.hits(slot, &[count; TRACKS]))
    };
    let ring = at(&KeyRing::EMPTY, 10, 100, [Some(1), None, None]);
    assert_eq!(of(&ring, 1, 107), (10, 7));
    let ring = at(&ring, 20, 150, [Some(2), Some(1), Some(3)]);
    assert_eq!([1, 2, 3].map(|n| of(&ring, n, 160)), [(10, 60), (20, 10), (20, 10)]);
    let ring = at(&ring, 30, 200, [Some(3), Some(2), Some(4)]);
    assert_eq!([1, 2, 3, 4].map(|n| of(&ring, n, 200)), [(10, 100), (20, 50), (20, 50), (30, 0)]);
    // A key that is dropped and returns has a new age and a new counter.
    let ring = at(&ring.without_retired(|_| false), 40, 300, [Some(4), Some(3), Some(1)]);
    assert_eq!([1, 2, 3, 4].map(|n| of(&ring, n, 301)), [(40, 1), (20, 151), (20, 151), (30, 101)]);
    // Counters below their earlier values were reset.
    assert_eq!(of(&ring, 4, 0), (30, 0));
}

#[test]
fn a_hit_is_that_of_the_keys_own_counter() {
    let mut ring = KeyRing::EMPTY;
    for n in 1..=20 {
        ring = follow_all(&ring, [Some(n + 1), Some(n), Some(n + 2)]);
    }
    let mut hits = [0; TRACKS];
    for slot in 0..SLOTS {
        hits[usize::from(ring.tracks[slot])] += 1 << slot;
    }
    assert_eq!(hits.iter().sum::<u64>(), (1 << SLOTS) - 1);
    for slot in 0..SLOTS {
        assert_eq!(ring.hits(slot, &hits), 1 << slot);
    }
}

#[test]
fn a_key_is_found_where_it_stands() {
    let ring = keys::ring_without_next();
    for (slot, key) in keys::all().iter().enumerate() {
        assert_eq!(ring.find(key.key()), (slot != 2).then_some(slot));
    }
    // An empty slot holds zeros, but not the key of zeros.
    assert_eq!(ring.find(ZERO.key()), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// After any changes: the held keys are in the ring, no retired key stands twice or is held, and former keys are
    /// kept in the order in which they left.
    #[test]
    fn follows_any_history(history in vec(any_held(), 0..40)) {
        let mut ring = KeyRing::EMPTY;
        // Retired keys without a limit, newest first: a simple model.
        let mut left: Vec<u32> = Vec::new();
        let mut kernel: Vec<u32> = Vec::new();
        for (n, now) in history.into_iter().enumerate() {
            ring = follow_all(&ring, now);
            let before = kernel;
            kernel = now.into_iter().flatten().collect();
            left.splice(0..0, before);
            let mut seen = kernel.clone();
            left.retain(|key| !seen.contains(key) && { seen.push(*key); true });
            left.truncate(RETIRED);

            prop_assert_eq!(ring.generation, n as u64 + 1);
            prop_assert_eq!(&held(&ring)[..3], &now);
            let retired: Vec<u32> = ring.retired().map(|key| key.to_words()[0]).collect();
            prop_assert_eq!(&retired, &left);
            prop_assert_eq!(&held(&ring)[3..3 + left.len()], &left.iter().copied().map(Some).collect::<Vec<_>>());
        }
    }

    /// A key that stays keeps its age and counter. A new one gets the present age, and a counter that no key has in
    /// this ring or the one before, since the program may still count under the old ring.
    #[test]
    fn no_two_keys_share_a_counter(history in vec((any_held(), 0..1_u8 << 4), 1..40)) {
        let mut ring = KeyRing::EMPTY;
        for (n, (now, forget)) in history.into_iter().enumerate() {
            let hits: [u64; TRACKS] = std::array::from_fn(|track| (1000 * n + track) as u64);
            let seconds = 100 + n as u64;
            // Retired keys are dropped sometimes. That does not free their counters at once, either.
            let after = match forget {
                0..12 => ring.follow(roles(now), Moment { seconds, hits: &hits }),
                _ => ring.without_retired(|slot| slot % 2 == usize::from(forget % 2)),
            };
            for slot in 0..SLOTS {
                // A key that stands twice is found at its first place.
                let Some(key) = after.get(slot).filter(|key| after.find(*key) == Some(slot)) else { continue };
                let track = usize::from(after.tracks[slot]);
                prop_assert!(track < TRACKS);
                let entry = (after.since[slot], after.base[slot], track);
                match ring.find(key) {
                    Some(from) => {
                        let before = (ring.since[from], ring.base[from], usize::from(ring.tracks[from]));
                        prop_assert_eq!(entry, before);
                    }
                    None => prop_assert_eq!(entry, (seconds, hits[track], track)),
                }
                for other in [&ring, &after] {
                    for slot in (0..SLOTS).filter(|slot| other.holds(*slot)) {
                        let same_track = usize::from(other.tracks[slot]) == track;
                        prop_assert!(!same_track || other.get(slot) == Some(key));
                    }
                }
            }
            ring = after;
        }
    }

    /// Only the named retired keys are dropped. The others close up in their order.
    #[test]
    fn drops_the_retired_keys_that_are_named(history in vec(any_held(), 0..20), keep: [bool; SLOTS]) {
        let mut ring = history.into_iter().fold(KeyRing::EMPTY, |ring, now| follow_all(&ring, now));
        for slot in 0..SLOTS {
            (ring.since[slot], ring.base[slot]) = (10 + slot as u64, 20 + slot as u64);
        }
        let mut asked = Vec::new();
        let after = ring.without_retired(|slot| {
            asked.push(slot);
            keep[slot]
        });
        prop_assert_eq!(&asked, &(3..SLOTS).filter(|slot| ring.holds(*slot)).collect::<Vec<_>>());
        prop_assert_eq!(after.generation, ring.generation + 1);

        let kept: Vec<usize> = asked.into_iter().filter(|slot| keep[*slot]).collect();
        let entry = |ring: &KeyRing, slot: usize| {
            let key = ring.get(slot).map(Key::to_words);
            key.map(|key| (key, ring.since[slot], ring.base[slot], ring.tracks[slot]))
        };
        for slot in 0..3 {
            prop_assert_eq!(entry(&after, slot), entry(&ring, slot));
        }
        for slot in 3..SLOTS {
            prop_assert_eq!(entry(&after, slot), kept.get(slot - 3).and_then(|from| entry(&ring, *from)));
        }
    }
}

/// Generates a current, a backup and a next key.
fn any_held() -> impl Strategy<Value = [Option<u32>; 3]> {
    [any_key(), any_key(), any_key()]
}

/// Generates a key of a few, zero among them, or none.
fn any_key() -> impl Strategy<Value = Option<u32>> {
    prop::option::weighted(0.8, 0..14_u32)
}

#[test]
fn the_budget_for_searches_is_renewed_each_jiffy() {
    let mut searches = Searches::NEW;
    for jiffy in [5, 6, 9] {
        for _ in 0..3 {
            assert!(searches.may_search(jiffy, 3));
            // A cookie that is found spends nothing.
            assert!(searches.may_search(jiffy, 3));
            searches.spend();
        }
        let skipped = searches.skipped;
        assert!(!searches.may_search(jiffy, 3));
        assert_eq!(searches.skipped, skipped + 1);
    }
    assert!(!searches.may_search(1, 0));
}
