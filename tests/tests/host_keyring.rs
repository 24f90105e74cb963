//! Key rings follow the kernel's keys and forget none too early.

use proptest::{collection::vec, prelude::*};
use tfo_common::keyring::{Key, KeyRing, KeyStore, RETIRED, Role, SLOTS};
use tfo_tests::keys::{BACKUP, CURRENT, RETIRED as OLD, STRANGER, TestKey, ZERO};

/// The n-th key of a series.
fn key(n: u32) -> Key {
    Key::from_words([n, 0, 0, 0])
}

/// What a ring holds, from slot 0 on: the first words of its keys, which are those of [`key`].
fn held(ring: &KeyRing) -> Vec<Option<u32>> {
    (0..SLOTS).map(|slot| ring.get(slot).map(|key| key.to_words()[0])).collect()
}

/// [`held`] with nothing behind.
fn holds(ring: &KeyRing, keys: &[Option<u32>]) -> bool {
    let (front, rest) = (&held(ring)[..keys.len()], &held(ring)[keys.len()..]);
    front == keys && rest.iter().all(Option::is_none)
}

#[test]
fn retires_the_newest_first() {
    let ring = KeyRing::EMPTY.follow(Some(key(1)), None);
    assert!(holds(&ring, &[Some(1), None]));
    let ring = ring.follow(Some(key(2)), Some(key(1)));
    assert!(holds(&ring, &[Some(2), Some(1)]));
    let ring = ring.follow(Some(key(3)), Some(key(2)));
    assert!(holds(&ring, &[Some(3), Some(2), Some(1)]));
    let ring = ring.follow(Some(key(5)), Some(key(4)));
    assert!(holds(&ring, &[Some(5), Some(4), Some(3), Some(2), Some(1)]));
}

#[test]
fn follows_keys_back() {
    let ring = KeyRing::EMPTY.follow(Some(key(1)), Some(key(2))).follow(Some(key(3)), Some(key(4)));
    // A retired key that the kernel takes up again is retired no more.
    let ring = ring.follow(Some(key(2)), Some(key(3)));
    assert!(holds(&ring, &[Some(2), Some(3), Some(4), Some(1)]));
    // Current and backup change places.
    let ring = ring.follow(Some(key(3)), Some(key(2)));
    assert!(holds(&ring, &[Some(3), Some(2), Some(4), Some(1)]));
}

#[test]
fn keeps_what_the_kernel_drops() {
    // Writing one key into the sysctl removes the backup.
    let ring = KeyRing::EMPTY.follow(Some(key(1)), Some(key(2))).follow(Some(key(1)), None);
    assert!(holds(&ring, &[Some(1), None, Some(2)]));
    let ring = ring.follow(None, None);
    assert!(holds(&ring, &[None, None, Some(1), Some(2)]));
    let ring = ring.follow(Some(key(3)), None);
    assert!(holds(&ring, &[Some(3), None, Some(1), Some(2)]));
}

#[test]
fn drops_the_oldest_beyond_its_places() {
    let mut ring = KeyRing::EMPTY;
    for n in 1..=20 {
        ring = ring.follow(Some(key(n)), None);
    }
    let newest: Vec<_> = (20 - RETIRED as u32..20).rev().map(Some).collect();
    assert!(holds(&ring, &[&[Some(20), None], &newest[..]].concat()));
    assert!(ring.retired().map(|key| Some(key.to_words()[0])).eq(newest));
}

#[test]
fn the_same_keys_again_change_only_the_generation() {
    let ring = KeyRing::EMPTY.follow(Some(key(1)), Some(key(2))).follow(Some(key(3)), Some(key(1)));
    let again = ring.follow(Some(key(3)), Some(key(1)));
    assert!(again.slots == ring.slots && again.present == ring.present);
    assert_eq!((ring.generation, again.generation), (2, 3));
}

#[test]
fn a_key_that_is_current_and_backup_stands_twice_but_retires_once() {
    let ring = KeyRing::EMPTY.follow(Some(key(1)), Some(key(1)));
    assert!(holds(&ring, &[Some(1), Some(1)]));
    assert!(holds(&ring.follow(Some(key(2)), None), &[Some(2), None, Some(1)]));
}

/// "None yet" is for the controller to find; a ring takes any key.
#[test]
fn a_key_of_zeros_is_a_key() {
    let zero = ZERO.key();
    let ring = KeyRing::EMPTY.follow(Some(zero), None);
    assert!(ring.holds(0) && !ring.holds(1) && ring.get(0) == Some(zero) && ring.get(1).is_none());
    let ring = ring.follow(Some(key(1)), None);
    assert!(ring.get(2) == Some(zero) && ring.retired().count() == 1);
    assert!(KeyRing::EMPTY.follow(None, None).retired().next().is_none());
}

#[test]
fn setting_and_emptying_a_slot_leaves_the_others() {
    let mut ring = tfo_tests::keys::ring();
    for slot in 0..SLOTS {
        let before = ring;
        ring.set(slot, None);
        assert!(!ring.holds(slot) && ring.get(slot).is_none() && ring.slots[slot].is_zero());
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
    let ring = tfo_tests::keys::ring();
    let keys: Vec<TestKey> = [CURRENT, BACKUP].into_iter().chain(OLD).collect();
    assert_eq!(keys.len(), SLOTS);
    for (slot, key) in keys.iter().enumerate() {
        assert!(ring.get(slot) == Some(key.key()));
        assert_eq!(
            Role::of_slot(slot),
            match slot {
                0 => Role::Current,
                1 => Role::Backup,
                _ => Role::Retired,
            }
        );
    }
}

#[test]
fn a_store_reads_the_ring_in_force() {
    let mut store = KeyStore::default();
    assert!(*store.current() == KeyRing::EMPTY);
    store.rings[1] = tfo_tests::keys::ring();
    assert!(*store.current() == KeyRing::EMPTY);
    for (active, index) in [(0, 0), (1, 1), (2, 0), (3, 1), (u64::MAX, 1)] {
        store.active = active;
        assert_eq!(KeyStore::index(active), index);
        assert!(*store.current() == store.rings[index]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However the kernel's keys change: they are always in the ring, no retired key stands twice or is one of them,
    /// and what has left the kernel is kept in the order of its leaving.
    #[test]
    fn follows_any_history(history in vec((any_key(), any_key()), 0..40)) {
        let mut ring = KeyRing::EMPTY;
        // The retired keys without a limit, newest first: the simplest way to say it.
        let mut left: Vec<u32> = Vec::new();
        let mut kernel: Vec<u32> = Vec::new();
        for (n, (current, backup)) in history.into_iter().enumerate() {
            ring = ring.follow(current.map(key), backup.map(key));
            let before = kernel;
            kernel = current.into_iter().chain(backup).collect();
            left.splice(0..0, before);
            let mut seen = kernel.clone();
            left.retain(|key| !seen.contains(key) && { seen.push(*key); true });
            left.truncate(RETIRED);

            prop_assert_eq!(ring.generation, n as u64 + 1);
            prop_assert_eq!(&held(&ring)[..2], &[current, backup]);
            let retired: Vec<u32> = ring.retired().map(|key| key.to_words()[0]).collect();
            prop_assert_eq!(&retired, &left);
        }
    }
}

/// One of a few keys, zero among them, or none.
fn any_key() -> impl Strategy<Value = Option<u32>> {
    prop::option::weighted(0.8, 0..14_u32)
}
