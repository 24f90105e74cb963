//! Random histories of a key ring, compared with a simple model.

use arbitrary::{Arbitrary, Unstructured};
use tfo_common::keyring::{Held, Key, KeyRing, KeyStore, Moment, NEWEST, RETIRED, SLOTS, TRACKS};

/// Step in the history of a ring.
#[derive(Arbitrary)]
enum Step {
    /// Change of the kernel's current and backup key, and of the next one.
    Follow([Number; 3]),
    /// Removal of the retired keys of these bits.
    Drop(u8),
    /// Addition of an older key.
    Oldest(Number),
    /// Arrival of cookies of the key in a slot, in this ring or in the one before, which a program may still be
    /// reading.
    Cookies { slot: u8, count: u8, late: bool },
}

/// Number of a key. There are few, so that they recur.
#[derive(Arbitrary, Clone, Copy)]
struct Number(u8);

impl Number {
    fn get(self) -> Option<u8> {
        (self.0 & 15).checked_sub(1)
    }
}

fn key(n: u8) -> Key {
    Key::from_words([n.into(), 0, 0, 0])
}

/// Key in the model.
#[derive(Clone, Copy)]
struct Entry {
    n: u8,
    since: u64,
    cookies: u64,
}

/// Expected content of a ring.
#[derive(Default)]
struct Model {
    held: [Option<u8>; 3],
    /// Retired keys, newest first.
    retired: Vec<u8>,
    /// Held and retired keys, each once.
    entries: Vec<Entry>,
}

impl Model {
    fn follow(&mut self, held: [Option<u8>; 3], now: u64) {
        let before = self.held.into_iter().flatten().chain(self.retired.drain(..));
        let mut retired: Vec<u8> = Vec::new();
        for n in before {
            if !held.contains(&Some(n)) && !retired.contains(&n) {
                retired.push(n);
            }
        }
        retired.truncate(RETIRED);
        (self.held, self.retired) = (held, retired);
        self.update(now);
    }

    fn drop(&mut self, bits: u8, now: u64) {
        let mut place = 0;
        self.retired.retain(|_| {
            place += 1;
            bits >> (place - 1) & 1 == 0
        });
        self.update(now);
    }

    /// Adds an old key. Returns whether there was room and the key was new.
    fn add_oldest(&mut self, n: u8, now: u64) -> bool {
        let is_new = self.retired.len() < RETIRED && self.entry(n).is_none();
        if is_new {
            self.retired.push(n);
            self.update(now);
        }
        is_new
    }

    /// Keeps the age and count of keys that stay. New ones begin now.
    fn update(&mut self, now: u64) {
        let mut entries: Vec<Entry> = Vec::new();
        for n in self.held.into_iter().flatten().chain(self.retired.iter().copied()) {
            if !entries.iter().any(|entry| entry.n == n) {
                entries.push(self.entry(n).copied().unwrap_or(Entry { n, since: now, cookies: 0 }));
            }
        }
        self.entries = entries;
    }

    fn entry(&self, n: u8) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.n == n)
    }
}

/// Checks one history.
pub fn check(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let (mut model, mut store, mut hits) = (Model::default(), KeyStore::default(), [0_u64; TRACKS]);
    let mut now = 1000;
    while !input.is_empty() {
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        now += 1;
        let ring = *store.current();
        let moment = Moment { seconds: now, hits: &hits };
        let (next, is_changed) = match step {
            Step::Follow(numbers) => {
                let numbers = numbers.map(Number::get);
                model.follow(numbers, now);
                let [current, backup, next] = numbers.map(|n| n.map(key));
                (ring.follow(Held { current, backup, next }, moment), true)
            }
            Step::Drop(bits) => {
                model.drop(bits, now);
                (ring.without_retired(|slot| bits >> (slot - NEWEST) & 1 == 0), true)
            }
            Step::Oldest(number) => {
                let n = number.get().unwrap_or_default();
                let is_new = model.add_oldest(n, now);
                (ring.with_oldest(key(n), moment), is_new)
            }
            Step::Cookies { slot, count, late } => {
                let before = &store.rings[KeyStore::index(store.active + 1)];
                count_cookies(if late { before } else { &ring }, slot, count, &mut hits, &mut model);
                assert_matches(&ring, &model, &hits);
                continue;
            }
        };
        assert_eq!(next.generation, ring.generation + u64::from(is_changed));
        // As on publication, the ring goes into the inactive place, which then becomes active.
        store.rings[KeyStore::index(store.active + 1)] = next;
        store.active += 1;
        assert!(*store.current() == next && store.rings[KeyStore::index(store.active + 1)] == ring);
        assert_matches(&next, &model, &hits);
    }
}

/// Counts cookies of a key under `ring`. They are counted at the key's first slot, by which a cookie is found.
fn count_cookies(ring: &KeyRing, slot: u8, count: u8, hits: &mut [u64; TRACKS], model: &mut Model) {
    let Some(key) = ring.get(usize::from(slot) % SLOTS) else { return };
    let slot = ring.find(key).expect("it is there");
    hits[usize::from(ring.tracks[slot])] += u64::from(count);
    let n = key.to_words()[0] as u8;
    if let Some(entry) = model.entries.iter_mut().find(|entry| entry.n == n) {
        entry.cookies += u64::from(count);
    }
}

fn assert_matches(ring: &KeyRing, model: &Model, hits: &[u64; TRACKS]) {
    let number = |slot| ring.get(slot).map(|key| key.to_words()[0] as u8);
    assert_eq!([0, 1, 2].map(number), model.held);
    // There is no gap among the retired keys, no key stands twice, and none of them is held.
    let retired: Vec<_> = (NEWEST..SLOTS).map(number).collect();
    let expected = model.retired.iter().copied().map(Some).chain([None; RETIRED]);
    assert_eq!(retired, expected.take(RETIRED).collect::<Vec<_>>());
    assert!(ring.retired().map(|key| key.to_words()[0] as u8).eq(model.retired.iter().copied()));
    for slot in (0..SLOTS).filter(|slot| !ring.holds(*slot)) {
        assert!(ring.slots[slot].key().is_zero(), "an empty slot holds no key");
    }
    assert_eq!(ring.present >> SLOTS, 0);
    // Each key has its own age and its own cookies.
    let mut tracks = Vec::new();
    for entry in &model.entries {
        let slot = ring.find(key(entry.n)).expect("every key of the model is in the ring");
        assert_eq!(
            (ring.since[slot], ring.hits(slot, hits)),
            (entry.since, entry.cookies),
            "key {}",
            entry.n
        );
        tracks.push(ring.tracks[slot]);
    }
    tracks.sort_unstable();
    tracks.dedup();
    assert_eq!(tracks.len(), model.entries.len(), "keys share a counter");
}
