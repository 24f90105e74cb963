//! The kernel's Fast Open cookie: SipHash-2-4 over the two addresses.

use crate::segment::{Addresses, Family};

/// A SipHash key: the kernel's 16 bytes as two little-endian words.
///
/// `tcp_fastopen_reset_cipher` (net/ipv4/tcp_fastopen.c). It has no `Debug`: a key is never printed.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Key {
    /// The first eight bytes, little-endian.
    pub k0: u64,
    /// The last eight bytes, little-endian.
    pub k1: u64,
}

impl Key {
    /// Returns the key whose four words are written `%08x-%08x-%08x-%08x` in `net.ipv4.tcp_fastopen_key`.
    ///
    /// `proc_tcp_fastopen_key` (net/ipv4/sysctl_net_ipv4.c) stores each word little-endian, in order.
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { k0: words[0] as u64 | (words[1] as u64) << 32, k1: words[2] as u64 | (words[3] as u64) << 32 }
    }

    /// Returns the four words, as the sysctl writes them.
    pub const fn to_words(self) -> [u32; 4] {
        [self.k0 as u32, (self.k0 >> 32) as u32, self.k1 as u32, (self.k1 >> 32) as u32]
    }

    /// Whether this is the key of zeros, which means "none yet": the sysctl shows it before any key was set.
    pub const fn is_zero(self) -> bool {
        self.k0 == 0 && self.k1 == 0
    }
}

/// Returns the cookie that a server holding `key` gives to the source address of `addresses`.
///
/// `__tcp_fastopen_cookie_gen_cipher` (net/ipv4/tcp_fastopen.c): SipHash-2-4 over source then destination address as
/// on the wire (8 bytes for IPv4, 32 for IPv6). The result is the integer whose little-endian bytes are the cookie,
/// so `make(..).to_le_bytes()` is what stands in the packet.
//= RFC 7413 section 4.1.2
//# The cookie SHOULD be a MAC tag with the following properties.
//= RFC 7413 section 4.1.2
//# The cookie authenticates the client's (source) IP address of the SYN
//# packet.
#[inline(always)]
pub fn make(key: &Key, addresses: &Addresses) -> u64 {
    ExpandedKey::new(key).cookie(addresses)
}

/// State of SipHash-2-4 under a key, just before it takes in the first word of the message. Computed once, it saves
/// that work for each packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ExpandedKey {
    v: [u64; 4],
}

impl ExpandedKey {
    /// Computes the state for `key`.
    #[inline(always)]
    pub const fn new(key: &Key) -> Self {
        let mut v = [
            key.k0 ^ 0x736f_6d65_7073_6575,
            key.k1 ^ 0x646f_7261_6e64_6f6d,
            key.k0 ^ 0x6c79_6765_6e65_7261,
            key.k1 ^ 0x7465_6462_7974_6573,
        ];
        // The half of the first round that does not use v[3], into which the message goes.
        v[0] = v[0].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[0] = v[0].rotate_left(32);
        Self { v }
    }

    /// Returns the key itself.
    pub const fn key(&self) -> Key {
        Key { k0: self.v[2] ^ 0x6c79_6765_6e65_7261, k1: self.v[3] ^ 0x7465_6462_7974_6573 }
    }

    /// Returns the cookie for `addresses`: see [`make`].
    #[inline(always)]
    pub fn cookie(&self, addresses: &Addresses) -> u64 {
        let [first, second, third, fourth] = addresses.words;
        let mut hash = SipHash24::begin(self, first);
        match addresses.family {
            Family::Ipv4 => hash.finish(8),
            Family::Ipv6 => {
                hash.word(second);
                hash.word(third);
                hash.word(fourth);
                hash.finish(32)
            }
        }
    }

    /// Returns the portable cookie for the source of `addresses`, at the services that have `tag`. It is the same whatever
    /// the destination, so it holds on every host with the key, behind any address translation of the destination.
    ///
    /// SipHash-2-4 under the key over the tag and the source address: 12 bytes for IPv4, 24 for IPv6. SipHash covers the
    /// length, and nothing else that is hashed under a key has these lengths. So such a cookie is never the kernel's, and
    /// one of a service is never that of a service with another tag.
    #[inline(always)]
    pub fn portable(&self, addresses: &Addresses, tag: u64) -> u64 {
        let [first, second, ..] = addresses.words;
        let mut hash = SipHash24::begin(self, tag);
        match addresses.family {
            Family::Ipv4 => hash.finish_with(first & 0xffff_ffff, 12),
            Family::Ipv6 => {
                hash.word(first);
                hash.word(second);
                hash.finish(24)
            }
        }
    }
}

/// Returns a short, public name of a key. It shows whether two hosts hold the same key, without showing the key.
///
/// SipHash-2-4 under the key over a label of 16 bytes. A cookie hashes 8 or 32 bytes and SipHash covers the length,
/// so a fingerprint is never a cookie, whatever the addresses.
pub fn fingerprint(key: &Key) -> u64 {
    const LABEL: &[u8; 16] = b"tfo fingerprint\0";
    let (words, _) = LABEL.as_chunks();
    let mut hash = SipHash24::begin(&ExpandedKey::new(key), u64::from_le_bytes(words[0]));
    hash.word(u64::from_le_bytes(words[1]));
    hash.finish(16)
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) over whole 64-bit words, small enough to be inlined into XDP.
struct SipHash24 {
    v: [u64; 4],
}

impl SipHash24 {
    /// Takes in the first eight bytes, as a little-endian word.
    #[inline(always)]
    fn begin(key: &ExpandedKey, word: u64) -> Self {
        let mut hash = Self { v: key.v };
        hash.v[3] ^= word;
        hash.second_half();
        hash.round();
        hash.v[0] ^= word;
        hash
    }

    /// Takes in eight bytes, as a little-endian word.
    #[inline(always)]
    fn word(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.round();
        self.v[0] ^= word;
    }

    /// Returns the hash of the bytes taken in. `length` is their number, a multiple of eight.
    #[inline(always)]
    fn finish(self, length: u64) -> u64 {
        self.finish_with(0, length)
    }

    /// Takes in the last, less than eight bytes, as a little-endian word, and returns the hash. `length` is the number of all
    /// bytes.
    #[inline(always)]
    fn finish_with(mut self, last: u64, length: u64) -> u64 {
        self.word(length << 56 | last);
        self.v[2] ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3]
    }

    #[inline(always)]
    fn round(&mut self) {
        let [v0, v1, ..] = &mut self.v;
        *v0 = v0.wrapping_add(*v1);
        *v1 = v1.rotate_left(13) ^ *v0;
        *v0 = v0.rotate_left(32);
        self.second_half();
    }

    /// Computes the part of a round that depends on v2 and v3.
    #[inline(always)]
    fn second_half(&mut self) {
        let [v0, v1, v2, v3] = &mut self.v;
        *v2 = v2.wrapping_add(*v3);
        *v3 = v3.rotate_left(16) ^ *v2;
        *v0 = v0.wrapping_add(*v3);
        *v3 = v3.rotate_left(21) ^ *v0;
        *v2 = v2.wrapping_add(*v1);
        *v1 = v1.rotate_left(17) ^ *v2;
        *v2 = v2.rotate_left(32);
    }
}
