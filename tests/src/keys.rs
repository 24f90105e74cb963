//! Keys of the tests and their cookies, computed with the crate `siphasher`, not with our code.

use std::{
    fmt::{self, Display, Formatter},
    hash::Hasher,
    net::IpAddr,
};

use siphasher::sip::SipHasher24;
use tfo_common::keyring::{self, Key, KeyRing, RETIRED as RETIRED_SLOTS, SLOTS};

/// Key, as the four words of `net.ipv4.tcp_fastopen_key`. [`Display`] writes them as the sysctl does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestKey(pub [u32; 4]);

/// The kernel's primary key. Its words differ in the two byte orders.
pub const CURRENT: TestKey = TestKey([0xa0bf_63f7, 0xed80_3d81, 0xcd64_1d30, 0xcebc_4a90]);
/// The kernel's backup key.
pub const BACKUP: TestKey = TestKey([0xa1a1_a1a1, 0xb2b2_b2b2, 0xc3c3_c3c3, 0xd4d4_d4d4]);
/// Key that the kernel holds next, by a schedule.
pub const NEXT: TestKey = TestKey([0x0e0f_1011, 0x7172_7374, 0x2526_2728, 0xf9fa_fbfc]);
/// Keys that the kernel no longer holds, newest first.
pub const RETIRED: [TestKey; RETIRED_SLOTS] = retired();
/// Key that this host never had.
pub const STRANGER: TestKey = TestKey([0xdead_beef, 0x0bad_cafe, 0x0123_4567, 0x89ab_cdef]);
/// Key that the sysctl shows before one was set.
pub const ZERO: TestKey = TestKey([0; 4]);

const fn retired() -> [TestKey; RETIRED_SLOTS] {
    let mut keys = [ZERO; RETIRED_SLOTS];
    let mut i = 0;
    while i < RETIRED_SLOTS {
        let word = 0x1001_0203 + (i as u32) * 0x0101_0000;
        keys[i] = TestKey([word, !word, word.swap_bytes(), word ^ 0x5a5a_5a5a]);
        i += 1;
    }
    keys
}

/// Returns all keys but the stranger's and zero, in the order of a ring's slots.
pub fn all() -> [TestKey; SLOTS] {
    let mut keys = [CURRENT; SLOTS];
    keys[1] = BACKUP;
    keys[2] = NEXT;
    keys[3..].copy_from_slice(&RETIRED);
    keys
}

/// Returns the ring that holds all keys but the stranger's and zero.
pub fn ring() -> KeyRing {
    let mut ring = KeyRing::EMPTY;
    for (slot, key) in all().iter().enumerate() {
        ring.set(slot, Some(key.key()));
    }
    ring
}

/// Returns the ring of a host without a schedule: the kernel's keys and retired ones, but no next key.
pub fn ring_without_next() -> KeyRing {
    let mut ring = ring();
    ring.set(keyring::NEXT, None);
    ring
}

impl TestKey {
    /// Returns the key as a ring holds it.
    pub fn key(self) -> Key {
        Key::from_words(self.0)
    }

    /// Returns the cookie for these addresses, which must be of one family: SipHash-2-4 over both as on the wire, under
    /// the words of the key in little-endian order. The result is stored in little-endian order, too
    /// (net/ipv4/tcp_fastopen.c).
    pub fn cookie(self, source: IpAddr, destination: IpAddr) -> [u8; 8] {
        let mut hasher = self.hasher();
        for address in [source, destination] {
            write(&mut hasher, address);
        }
        hasher.finish().to_le_bytes()
    }

    /// Returns a hash under the words of the key in little-endian order.
    fn hasher(self) -> SipHasher24 {
        let mut bytes = [0; 16];
        for (place, word) in bytes.chunks_mut(4).zip(self.0) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        SipHasher24::new_with_key(&bytes)
    }
}

impl Display for TestKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a:08x}-{b:08x}-{c:08x}-{d:08x}")
    }
}

/// Returns the portable cookie for `source` at the services with `tag`: SipHash-2-4 under the key over the little-endian tag
/// and the address, stored in little-endian order.
pub fn portable(key: TestKey, tag: u64, source: IpAddr) -> [u8; 8] {
    let mut hasher = key.hasher();
    hasher.write(&tag.to_le_bytes());
    write(&mut hasher, source);
    hasher.finish().to_le_bytes()
}

fn write(hasher: &mut SipHasher24, address: IpAddr) {
    match address {
        IpAddr::V4(address) => hasher.write(&address.octets()),
        IpAddr::V6(address) => hasher.write(&address.octets()),
    }
}
