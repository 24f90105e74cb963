//! The TCP options, walked as the kernel walks them.

use network_types::tcp::TcpHdr;

use crate::{
    bytes::Bytes,
    segment::{Cookie, FastOpen},
};

/// The bytes that the option area has at most, and with them the options.
pub const MAX: usize = 40;

const END_OF_LIST: u8 = 0;
const NO_OPERATION: u8 = 1;
/// RFC 7413, 4.1.1.
const FAST_OPEN: u8 = 34;
/// RFC 6994, with Fast Open's experiment identifier.
const EXPERIMENTAL: u8 = 254;
const EXPERIMENT_FAST_OPEN: [u8; 2] = 0xf989_u16.to_be_bytes();

/// The Fast Open option among those from `start` to `end`, as the kernel understands it.
///
/// `tcp_parse_options` (net/ipv4/tcp_input.c): it stops without complaint at an end-of-list, at a length below two
/// and at a length past the end, keeps what it has found by then, and the last Fast Open option counts.
#[inline(always)]
pub(super) fn fast_open<B: Bytes + ?Sized>(frame: &B, start: usize, end: usize) -> FastOpen {
    let area = end - start;
    let mut walk = Walk::START;
    for _ in 0..MAX {
        walk = walk.opaque(frame);
        let position = walk.position();
        match option(frame, start, area, position) {
            Item::End => break,
            // Nearly all turns of a long walk: the shortest way through one.
            Item::NoOperation => walk = walk.advance(1),
            Item::Other { len } => walk = walk.advance(len),
            Item::FastOpen { len, header } => {
                walk = walk.found(position + header, len - header).advance(len);
            }
        }
    }
    walk.fast_open(frame, start)
}

/// What stands at a place in the option area.
enum Item {
    /// Nothing more that the kernel reads.
    End,
    /// One byte.
    NoOperation,
    /// An option of `len` bytes.
    Other { len: usize },
    /// One for Fast Open, of which `header` bytes stand before the cookie.
    FastOpen { len: usize, header: usize },
}

/// What stands at `position` in the area.
#[inline(always)]
fn option<B: Bytes + ?Sized>(frame: &B, start: usize, area: usize, position: usize) -> Item {
    // A lone last byte can only be an end, a no-operation or a broken option: it says nothing. So kind and length are read
    // together, which also keeps the verifier's view of both in one bounds check.
    if position + 2 > area {
        return Item::End;
    }
    let Some([kind, len]) = frame.read(start + position) else { return Item::End };
    if kind == END_OF_LIST {
        return Item::End;
    }
    if kind == NO_OPERATION {
        return Item::NoOperation;
    }
    let len = usize::from(len);
    if len < 2 || position + len > area {
        return Item::End;
    }
    if kind == FAST_OPEN {
        return Item::FastOpen { len, header: 2 };
    }
    if kind == EXPERIMENTAL && len >= 4 && frame.read(start + position + 2) == Some(EXPERIMENT_FAST_OPEN) {
        return Item::FastOpen { len, header: 4 };
    }
    Item::Other { len }
}

/// The length of the option area of the TCP header at `tcp`.
#[inline(always)]
pub fn area<B: Bytes + ?Sized>(frame: &B, tcp: usize) -> Option<usize> {
    let [data_offset] = frame.read(tcp + super::tcp::DATA_OFFSET)?;
    (usize::from(data_offset >> 4) * 4).checked_sub(TcpHdr::LEN)
}

/// The bytes of the `area` bytes of options from `start` on that are of a Fast Open option, one that the kernel minds or not: a bit
/// for each, the first byte's lowest.
#[inline(always)]
pub fn fast_open_places<B: Bytes + ?Sized>(frame: &B, start: usize, area: usize) -> u64 {
    // The position stands above the places: see [`Bytes::opaque`].
    const POSITION: u32 = 48;
    const PLACES: u64 = (1 << MAX) - 1;

    let mut walk = 0;
    for _ in 0..MAX {
        walk = frame.opaque(walk);
        let position = (walk >> POSITION & 0x3f) as usize;
        let len = match option(frame, start, area, position) {
            Item::End => break,
            Item::NoOperation => 1,
            Item::Other { len } => len,
            Item::FastOpen { len, .. } => {
                walk |= ((1_u64 << (len & 0x3f)) - 1) << position & PLACES;
                len
            }
        };
        walk += (len as u64) << POSITION;
    }
    walk & PLACES
}

/// What [`fast_open`] finds in the `AREA` bytes from `start` on, where they are laid out as a real system does; `None` for all
/// others. No walk: a few words are compared.
#[inline(always)]
pub(super) fn usual<const AREA: usize, B: Bytes + ?Sized>(frame: &B, start: usize) -> Option<FastOpen> {
    const MSS: [u8; 2] = [2, 4];
    const SACK_PERMITTED: [u8; 2] = [4, 2];
    const TIMESTAMPS: [u8; 2] = [8, 10];

    if AREA == 0 {
        return Some(FastOpen::Absent);
    }
    // One bounds check for all that follows; the others are folded into it.
    let _: [u8; AREA] = frame.read(start)?;
    if !is(frame, start, MSS) {
        return None;
    }
    if AREA == 4 {
        // Small stacks and scanners offer nothing else.
        Some(FastOpen::Absent)
    } else if AREA >= 20 && is(frame, start + 4, pair(SACK_PERMITTED, TIMESTAMPS)) {
        // Linux.
        if is_window_scale(frame, start + 16) { tail::<AREA, 20, B>(frame, start) } else { None }
    } else if is(frame, start + 4, pair(NOPS, SACK_PERMITTED)) {
        // Linux without timestamps.
        if is_window_scale(frame, start + 8) { tail::<AREA, 12, B>(frame, start) } else { None }
    } else if !is_window_scale(frame, start + 4) {
        None
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

/// The Fast Open option at `AT`, with nothing but padding behind it; or none, with nothing but padding from there on.
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

/// Whether there are `len` bytes of padding at `at`: two, or none.
#[inline(always)]
fn is_padding<B: Bytes + ?Sized>(frame: &B, at: usize, len: usize) -> bool {
    len == 0 || len == 2 && (is(frame, at, NOPS) || is(frame, at, [END_OF_LIST; 2]))
}

/// Whether a no-operation and then the window's scale stand at `at`.
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

/// All that the walk knows, in one word: see [`Bytes::opaque`].
///
/// | bits | meaning |
/// |---|---|
/// | 0..8 | position in the option area |
/// | 8..16 | position of the cookie |
/// | 16..24 | length of the cookie |
/// | 24 | a Fast Open option was seen |
/// | 25 | the last one that the kernel minds has a cookie, or is a request |
#[derive(Clone, Copy)]
struct Walk(u32);

impl Walk {
    const START: Self = Self(0);
    const SEEN: u32 = 1 << 24;
    const VALID: u32 = 1 << 25;
    const POSITION: u32 = 0xff;

    #[inline(always)]
    fn opaque<B: Bytes + ?Sized>(self, frame: &B) -> Self {
        Self(frame.opaque(self.0.into()) as u32)
    }

    #[inline(always)]
    const fn position(self) -> usize {
        (self.0 & 0x3f) as usize
    }

    /// Goes on by `len` bytes: at most 40 in all, so the sum stays inside its field.
    #[inline(always)]
    const fn advance(self, len: usize) -> Self {
        Self(self.0 + len as u32)
    }

    /// Notes an option whose cookie of `len` bytes begins at `cookie`: `tcp_parse_fastopen_option`.
    #[inline(always)]
    const fn found(self, cookie: usize, len: usize) -> Self {
        // An odd length is no Fast Open option, and an earlier one stands.
        if len & 1 == 1 {
            return Self(self.0 | Self::SEEN);
        }
        let position = self.0 & Self::POSITION;
        // Any other length that cannot be a cookie (RFC 7413 allows 4 to 16 bytes) makes it forget an earlier one.
        if len != 0 && (len < 4 || len > 16) {
            return Self(position | Self::SEEN);
        }
        Self(position | (cookie as u32) << 8 | (len as u32) << 16 | Self::SEEN | Self::VALID)
    }

    #[inline(always)]
    fn fast_open<B: Bytes + ?Sized>(self, frame: &B, start: usize) -> FastOpen {
        if self.0 & Self::VALID == 0 {
            return if self.0 & Self::SEEN == 0 { FastOpen::Absent } else { FastOpen::Ignored };
        }
        let cookie = (self.0 >> 8 & 0x3f) as usize;
        match self.0 >> 16 & 0x1f {
            0 => FastOpen::Request,
            8 => match frame.read(start + cookie) {
                Some(bytes) => FastOpen::Cookie(Cookie {
                    value: u64::from_le_bytes(bytes),
                    offset: (TcpHdr::LEN + cookie) as u32,
                }),
                // Unreachable: the option ends inside the area, and the area inside the frame.
                None => FastOpen::Ignored,
            },
            _ => FastOpen::BadLength,
        }
    }
}
