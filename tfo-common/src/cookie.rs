//! The kernel's Fast Open cookie: SipHash-2-4 over the two addresses.

use crate::{
    keyring::Key,
    segment::{Addresses, Family},
};

/// The cookie that a server holding `key` gives to the source address of `addresses`.
///
/// `__tcp_fastopen_cookie_gen_cipher` (net/ipv4/tcp_fastopen.c): SipHash-2-4 over source then destination address as
/// on the wire (8 bytes for IPv4, 32 for IPv6). The result is the integer whose little-endian bytes are the cookie,
/// so `make(..).to_le_bytes()` is what stands in the packet.
#[inline(always)]
pub fn make(key: &Key, addresses: &Addresses) -> u64 {
    let mut hash = SipHash24::new(key);
    match addresses.family {
        Family::Ipv4 => {
            hash.word(addresses.words[0]);
            hash.finish(8)
        }
        Family::Ipv6 => {
            hash.word(addresses.words[0]);
            hash.word(addresses.words[1]);
            hash.word(addresses.words[2]);
            hash.word(addresses.words[3]);
            hash.finish(32)
        }
    }
}

/// A short, public name of a key: which key two hosts hold can be compared without showing it.
///
/// SipHash-2-4 under the key over a label of 16 bytes. A cookie hashes 8 or 32 bytes and SipHash covers the length,
/// so a fingerprint is never a cookie, whatever the addresses.
pub fn fingerprint(key: &Key) -> u64 {
    const LABEL: &[u8; 16] = b"tfo fingerprint\0";
    let (first, second) = LABEL.split_at(8);
    let mut hash = SipHash24::new(key);
    for half in [first, second] {
        let mut word = [0; 8];
        word.copy_from_slice(half);
        hash.word(u64::from_le_bytes(word));
    }
    hash.finish(16)
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) over whole 64-bit words, small enough to be inlined into XDP.
struct SipHash24 {
    v: [u64; 4],
}

impl SipHash24 {
    #[inline(always)]
    fn new(key: &Key) -> Self {
        Self {
            v: [
                key.k0 ^ 0x736f_6d65_7073_6575,
                key.k1 ^ 0x646f_7261_6e64_6f6d,
                key.k0 ^ 0x6c79_6765_6e65_7261,
                key.k1 ^ 0x7465_6462_7974_6573,
            ],
        }
    }

    /// Takes in eight bytes, as the little-endian word that they are.
    #[inline(always)]
    fn word(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.round();
        self.v[0] ^= word;
    }

    /// The hash of the `length` bytes taken in, a multiple of eight.
    #[inline(always)]
    fn finish(mut self, length: u64) -> u64 {
        self.word(length << 56);
        self.v[2] ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3]
    }

    #[inline(always)]
    fn round(&mut self) {
        let [v0, v1, v2, v3] = &mut self.v;
        *v0 = v0.wrapping_add(*v1);
        *v1 = v1.rotate_left(13) ^ *v0;
        *v0 = v0.rotate_left(32);
        *v2 = v2.wrapping_add(*v3);
        *v3 = v3.rotate_left(16) ^ *v2;
        *v0 = v0.wrapping_add(*v3);
        *v3 = v3.rotate_left(21) ^ *v0;
        *v2 = v2.wrapping_add(*v1);
        *v1 = v1.rotate_left(17) ^ *v2;
        *v2 = v2.rotate_left(32);
    }
}
