//! The TCP options, walked as the kernel walks them.

use network_types::tcp::TcpHdr;

use crate::{
    bytes::Bytes,
    segment::{Cookie, FastOpen},
};

/// Greatest length of the option area in bytes, and so the greatest number of options.
pub const MAX: usize = 40;

const END_OF_LIST: u8 = 0;
const NO_OPERATION: u8 = 1;
/// Kind of the Fast Open option (RFC 7413, 4.1.1).
//= RFC 7413 section 9
//# Current and new implementations SHOULD use option (34).
const FAST_OPEN: u8 = 34;
/// Kind of an experimental option (RFC 6994). Fast Open's experiment identifier follows the length.
//= RFC 7413 section 9
//# Existing implementations that are using experimental option 254 per
//# [RFC6994] with magic number 0xF989 (16 bits) as allocated in the IANA
//# "TCP Experimental Option Experiment Identifiers (TCP ExIDs)" registry
//# by this document, SHOULD migrate to use this new option (34) by
//# default.
const EXPERIMENTAL: u8 = 254;
const EXPERIMENT_FAST_OPEN: [u8; 2] = 0xf989_u16.to_be_bytes();
/// Kind and length of a TCP-MD5 signature (RFC 2385, 3.0).
const MD5: u8 = 19;
const MD5_LEN: usize = 18;
/// Kind and least length of a TCP-AO signature (RFC 5925, 2.2).
const AO: u8 = 29;
const AO_MIN_LEN: usize = 4;

/// Walks through the first `area` bytes of `frame`, which are all TCP options of a segment.
///
/// `tcp_parse_options` (net/ipv4/tcp_input.c) stops without complaint at an end-of-list, at a length below two and at a
/// length past the end. It keeps what it has found by then. The last Fast Open option counts.
#[inline(always)]
pub fn options<B: Bytes + ?Sized>(frame: &B, area: usize) -> Options {
    // The verifier does not know it, and so does not follow each way through the options.
    let mut found = Options::NONE.opaque(frame);
    for _ in 0..MAX {
        let near = frame.near(found.0);
        let position = near.0;
        match option(frame.read_near(near), || frame.read(position + 2), area, position) {
            Item::End => break,
            // Nearly all turns of a long walk come here, so this path is the shortest.
            Item::NoOperation => found = found.advance(1),
            Item::TwoNoOperations => found = found.advance(2),
            Item::Other { len } => found = found.advance(len),
            Item::Signature { len } => found = found.signed().advance(len),
            Item::FastOpen { len, header } => {
                found = found.fast_open_at(position + header, len - header).advance(len);
            }
        }
    }
    found
}

/// Item at a position in the option area.
enum Item {
    /// The end of what the kernel reads.
    End,
    /// A no-operation, of one byte.
    NoOperation,
    /// Two of them.
    TwoNoOperations,
    /// An option of `len` bytes.
    Other { len: usize },
    /// A signature of `len` bytes.
    Signature { len: usize },
    /// A Fast Open option of `len` bytes, of which `header` bytes precede the cookie.
    FastOpen { len: usize, header: usize },
}

/// Returns the item at `position` in an area of `area` bytes, of which the `first` two bytes are these, and `more` reads the next.
#[inline(always)]
fn option(
    first: Option<[u8; 2]>,
    more: impl FnOnce() -> Option<[u8; 2]>,
    area: usize,
    position: usize,
) -> Item {
    // A lone last byte can only be an end, a no-operation or a broken option, so it can be ignored. Kind and length are
    // therefore read together, which takes one bounds check.
    let Some(option) = first else { return Item::End };
    // In words, so that no half of a register has to be extended.
    let option = usize::from(u16::from_le_bytes(option));
    let (kind, len) = (option & 0xff, option >> 8);
    let is = |of: u8| kind == usize::from(of);
    if kind <= usize::from(NO_OPERATION) {
        return match option.to_le_bytes() {
            _ if position >= area => Item::End,
            [NO_OPERATION, NO_OPERATION, ..] => Item::TwoNoOperations,
            [NO_OPERATION, ..] => Item::NoOperation,
            _ => Item::End,
        };
    }
    if len < 2 || position + len > area {
        return Item::End;
    }
    // The usual kinds are below those of interest.
    if kind < usize::from(MD5) {
        return Item::Other { len };
    }
    if is(FAST_OPEN) {
        return Item::FastOpen { len, header: 2 };
    }
    if is(EXPERIMENTAL) && len >= 4 && more() == Some(EXPERIMENT_FAST_OPEN) {
        return Item::FastOpen { len, header: 4 };
    }
    if is(MD5) && len == MD5_LEN || is(AO) && len >= AO_MIN_LEN {
        return Item::Signature { len };
    }
    Item::Other { len }
}

/// Returns the length of the option area of the TCP header at `tcp`.
#[inline(always)]
pub fn area<B: Bytes + ?Sized>(frame: &B, tcp: usize) -> Option<usize> {
    let [data_offset] = frame.read(tcp + super::tcp::DATA_OFFSET)?;
    (usize::from(data_offset >> 4) * 4).checked_sub(TcpHdr::LEN)
}

/// Returns a bitmap of the bytes that belong to Fast Open options, even ones that the kernel ignores, among the `area`
/// bytes of options from `start` on. The lowest bit is for the first byte.
#[inline(always)]
pub fn fast_open_places<B: Bytes + ?Sized>(frame: &B, start: usize, area: usize) -> u64 {
    // The position stands above the bitmap, so that one word has all state: see [`Bytes::opaque`].
    const POSITION: u32 = 48;
    const PLACES: u64 = (1 << MAX) - 1;

    let mut walk = 0;
    for _ in 0..MAX {
        walk = frame.opaque(walk);
        let position = (walk >> POSITION & 0x3f) as usize;
        let len =
            match option(frame.read(start + position), || frame.read(start + position + 2), area, position) {
                Item::End => break,
                Item::NoOperation => 1,
                Item::TwoNoOperations => 2,
                Item::Other { len } | Item::Signature { len } => len,
                Item::FastOpen { len, .. } => {
                    walk |= ((1_u64 << (len & 0x3f)) - 1) << position & PLACES;
                    len
                }
            };
        walk += (len as u64) << POSITION;
    }
    walk & PLACES
}

/// Returns the Fast Open option that [`options`] finds in the `AREA` bytes from `start` on, if they are laid out as a real system does, or
/// `None`. No such layout has a signature. It compares a few words and walks nothing.
#[inline(always)]
pub(super) fn usual<const AREA: usize, B: Bytes + ?Sized>(frame: &B, start: usize) -> Option<FastOpen> {
    const MSS: [u8; 2] = [2, 4];
    const SACK_PERMITTED: [u8; 2] = [4, 2];
    const TIMESTAMPS: [u8; 2] = [8, 10];

    if AREA == 0 {
        return Some(FastOpen::Absent);
    }
    // One bounds check for all reads below: theirs are folded into it.
    let _: [u8; AREA] = frame.read(start)?;
    if !is(frame, start, MSS) {
        return None;
    }
    if AREA == 4 {
        // Small stacks and scanners offer only the MSS.
        Some(FastOpen::Absent)
    } else if AREA >= 20 && is(frame, start + 4, pair(SACK_PERMITTED, TIMESTAMPS)) {
        // Linux.
        if is_window_scale(frame, start + 16) { tail::<AREA, 20, B>(frame, start) } else { None }
    } else if is(frame, start + 4, pair(NOPS, SACK_PERMITTED)) {
        // Linux without timestamps.
        if is_window_scale(frame, start + 8) { tail::<AREA, 12, B>(frame, start) } else { None }
    } else if !is_window_scale(frame, start + 4) {
        None
    } else if AREA >= 20 && is(frame, start + 8, pair(SACK_PERMITTED, TIMESTAMPS)) {
        // FreeBSD, and Windows with timestamps.
        tail::<AREA, 20, B>(frame, start)
    } else if is(frame, start + 8, pair(NOPS, SACK_PERMITTED)) {
        // Windows.
        tail::<AREA, 12, B>(frame, start)
    } else if AREA >= 22
        && is(frame, start + 8, pair(NOPS, TIMESTAMPS))
        && is(frame, start + 20, SACK_PERMITTED)
    {
        // macOS.
        tail::<AREA, 22, B>(frame, start)
    } else {
        None
    }
}

/// Returns the Fast Open option at `AT`, or its absence, if nothing but padding follows.
#[inline(always)]
fn tail<const AREA: usize, const AT: usize, B: Bytes + ?Sized>(frame: &B, start: usize) -> Option<FastOpen> {
    let at = start + AT;
    if AREA == AT {
        Some(FastOpen::Absent)
    } else if AREA >= AT + 10 && is(frame, at, [FAST_OPEN, 10]) && is_padding(frame, at + 10, AREA - AT - 10)
    {
        Some(FastOpen::Cookie(Cookie {
            value: u64::from_le_bytes(frame.read(at + 2)?),
            offset: (TcpHdr::LEN + AT + 2) as u32,
        }))
    } else if is(frame, at, [FAST_OPEN, 2]) && is_padding(frame, at + 2, AREA - AT - 2) {
        Some(FastOpen::Request)
    } else if is_padding(frame, at, AREA - AT) {
        Some(FastOpen::Absent)
    } else {
        None
    }
}

const NOPS: [u8; 2] = [NO_OPERATION; 2];

/// Whether the `len` bytes at `at` are padding: two bytes, or an empty rest.
#[inline(always)]
fn is_padding<B: Bytes + ?Sized>(frame: &B, at: usize, len: usize) -> bool {
    len == 0 || len == 2 && (is(frame, at, NOPS) || is(frame, at, [END_OF_LIST; 2]))
}

/// Whether a no-operation and then the window scale stand at `at`.
#[inline(always)]
fn is_window_scale<B: Bytes + ?Sized>(frame: &B, at: usize) -> bool {
    is(frame, at, [NO_OPERATION, 3]) && is(frame, at + 2, [3])
}

/// Whether these bytes stand at `at`.
#[inline(always)]
fn is<const N: usize, B: Bytes + ?Sized>(frame: &B, at: usize, bytes: [u8; N]) -> bool {
    frame.read(at) == Some(bytes)
}

const fn pair([a, b]: [u8; 2], [c, d]: [u8; 2]) -> [u8; 4] {
    [a, b, c, d]
}

/// Result of [`options()`], with the position that it has come to, in one word: see [`Bytes::opaque`].
///
/// | bits | meaning |
/// |---|---|
/// | 0..8 | position in the option area |
/// | 8..16 | position of the cookie |
/// | 16..24 | length of the cookie |
/// | 24 | a Fast Open option was seen |
/// | 25 | the last Fast Open option of even length is a request, or has a cookie of a legal length |
/// | 26 | a signature was seen |
#[derive(Clone, Copy, Debug)]
pub struct Options(u64);

impl Options {
    const NONE: Self = Self(0);
    const SEEN: u64 = 1 << 24;
    const VALID: u64 = 1 << 25;
    const SIGNED: u64 = 1 << 26;
    const POSITION: u64 = 0xff;

    /// Returns the word, for [`from_word`](Self::from_word).
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Returns what [`word`](Self::word) has returned the word of.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[inline(always)]
    fn opaque<B: Bytes + ?Sized>(self, frame: &B) -> Self {
        Self(frame.opaque(self.0))
    }

    /// Goes on by `len` bytes. They are at most 40 in all, so the sum stays inside its field.
    #[inline(always)]
    const fn advance(self, len: usize) -> Self {
        Self(self.0 + len as u64)
    }

    /// Notes a signature.
    #[inline(always)]
    const fn signed(self) -> Self {
        Self(self.0 | Self::SIGNED)
    }

    /// Whether there is a signature, before or behind the Fast Open option.
    #[inline(always)]
    pub const fn is_signed(self) -> bool {
        self.0 & Self::SIGNED != 0
    }

    /// Notes a Fast Open option with a cookie of `len` bytes at `cookie`, as `tcp_parse_fastopen_option` does.
    #[inline(always)]
    const fn fast_open_at(self, cookie: usize, len: usize) -> Self {
        // The kernel ignores an option of odd length, and an earlier one stands.
        //= RFC 7413 section 4.1.1
        //# The number MUST be even.
        //= RFC 7413 section 4.1.1
        //# Options with invalid Length values or without the SYN flag set MUST be
        //# ignored.
        if len & 1 == 1 {
            return Self(self.0 | Self::SEEN);
        }
        let rest = self.0 & (Self::POSITION | Self::SIGNED);
        // Any other length that cannot be a cookie (RFC 7413 allows 4 to 16 bytes) makes the kernel forget an earlier
        // option.
        if len != 0 && (len < 4 || len > 16) {
            return Self(rest | Self::SEEN);
        }
        Self(rest | (cookie as u64) << 8 | (len as u64) << 16 | Self::SEEN | Self::VALID)
    }

    /// Returns the Fast Open option, as the kernel understands it. `options` begins with the first one.
    #[inline(always)]
    pub fn fast_open<B: Bytes + ?Sized>(self, options: &B) -> FastOpen {
        const LENGTH: u64 = 0x1f << 16;
        const COOKIE: u64 = 8 << 16;

        if self.0 & (Self::VALID | LENGTH) == Self::VALID | COOKIE {
            let cookie = options.near(self.0 >> 8);
            return match options.read_near(cookie) {
                Some(bytes) => FastOpen::Cookie(Cookie {
                    value: u64::from_le_bytes(bytes),
                    offset: (TcpHdr::LEN + cookie.0) as u32,
                }),
                // Unreachable: the option ends inside the area, and the area inside the frame.
                None => FastOpen::Ignored,
            };
        }
        if self.0 & Self::VALID == 0 {
            return if self.0 & Self::SEEN == 0 { FastOpen::Absent } else { FastOpen::Ignored };
        }
        if self.0 & LENGTH == 0 { FastOpen::Request } else { FastOpen::BadLength }
    }
}
