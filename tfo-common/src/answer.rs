//! SYN-ACKs that the program sends in the kernel's place. Their sequence number is a SYN cookie, which the kernel itself
//! checks when the client's ACK comes (`cookie_v4_check`, `cookie_v6_check`).

use core::mem::size_of;

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    bytes::{Bytes, BytesMut},
    parse::option_area,
    segment::{Addresses, Family},
};

/// Facts about the host and its interface that decide on answers, which the controller keeps up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Host {
    /// Sum of the flags below, and the scale of the window.
    word: u64,
    /// MAC address of the interface in the low bytes, as in a frame. Frames to another one are not for this host.
    mac: u64,
}

impl Host {
    /// Flag that the kernel checks SYN cookies: `net.ipv4.tcp_syncookies` is not 0.
    pub const COOKIES: u64 = 1 << 8;
    /// Flag that listeners may accept Fast Open: bit 0x2 of `net.ipv4.tcp_fastopen`.
    pub const FAST_OPEN: u64 = 1 << 9;
    /// Flag that listeners take data without a Fast Open cookie: bit 0x200 of `net.ipv4.tcp_fastopen`.
    pub const NO_COOKIE: u64 = 1 << 10;
    /// Flag that the kernel finds a client's options in the timestamp of its ACK: `net.ipv4.tcp_timestamps` is 2. With 1,
    /// it subtracts a secret offset, which we don't know, first.
    pub const TIMESTAMPS: u64 = 1 << 11;
    /// Bits of the scale of the receive window that the kernel itself offers.
    const SCALE: u64 = 0xf;

    /// Returns the facts with these flags, and this scale of the receive window, from 0 to 14.
    pub const fn new(flags: u64, scale: u8) -> Self {
        Self { word: flags | scale as u64 & Self::SCALE, mac: 0 }
    }

    /// Returns the same facts for an interface with this MAC address. Without one, no SYN is answered.
    pub fn at(self, mac: Option<[u8; 6]>) -> Self {
        let [a, b, c, d, e, f] = mac.unwrap_or_default();
        Self { mac: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]), ..self }
    }

    /// Whether a frame with this header is for the interface.
    #[inline(always)]
    pub fn is_for(&self, [a, b, c, d, e, f, ..]: [u8; EthHdr::LEN]) -> bool {
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) == self.mac
    }

    /// Whether any bit of `flag` is set.
    #[inline(always)]
    pub const fn has(self, flag: u64) -> bool {
        self.word & flag != 0
    }

    /// Returns the scale of the receive window that the kernel itself offers.
    #[inline(always)]
    pub const fn scale(self) -> u8 {
        (self.word & Self::SCALE) as u8
    }
}

/// Facts about a listener that decide on answers. The program reads them from the socket once in a jiffy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Listener {
    /// Address of the socket in the kernel; 0 for none. It never leaves the kernel.
    pub socket: u64,
    /// Jiffy in which the rest was read.
    pub jiffy: u64,
    /// Sum of the flags below.
    pub flags: u32,
    /// Number of bytes that its first window may announce.
    pub window: u32,
}

impl Listener {
    /// Flag that the kernel takes SYN cookies for it for long enough ([`MARK_SECONDS`]).
    pub const MARKED: u32 = 1;
    /// Flag that it accepts Fast Open, if the host does.
    pub const FAST_OPEN: u32 = 2;
    /// Flag that it has Fast Open keys of its own.
    pub const OWN_KEYS: u32 = 4;
    /// Flag that it takes data without a Fast Open cookie.
    pub const NO_COOKIE: u32 = 8;
    /// Flag that the size of its receive window is set by hand, so that its scale is not the host's.
    pub const OWN_WINDOW: u32 = 16;

    /// Whether any bit of `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether the kernel would look at the Fast Open option of a SYN in another way than by the cookies that we know: by
    /// the listener's own key, or not at all because it takes data without a cookie (`tcp_try_fastopen`).
    #[inline(always)]
    pub const fn judges_itself(&self, host: Host, has_option: bool, data_len: u32) -> bool {
        if !host.has(Host::FAST_OPEN) || !self.has(Self::FAST_OPEN) {
            return false;
        }
        let takes_all = self.has(Self::NO_COOKIE) || host.has(Host::NO_COOKIE);
        has_option && self.has(Self::OWN_KEYS) || takes_all && (has_option || data_len > 0)
    }
}

/// Age in seconds up to which the mark of a listener is relied on. The kernel takes SYN cookies for 120 s after it
/// (`tcp_synq_no_recent_overflow`), and the client's ACK needs some of that time.
pub const MARK_SECONDS: u32 = 90;

/// Largest window that is announced, in bytes. It is no more than the kernel's own for any segment size that a SYN cookie
/// can hold, whose multiple the kernel announces (`tcp_select_initial_window`).
pub const WINDOW: u32 = 64_240;

/// SYN-ACK to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Reply {
    /// Fast Open cookie, as [`cookie::make`](crate::cookie::make) returns it.
    pub cookie: u64,
    /// Sequence number: the SYN cookie.
    pub sequence: u32,
    /// Offset of the IP header in the frame.
    pub network: u32,
    /// Window, in bytes.
    pub window: u32,
    /// Maximum segment size that is announced.
    pub mss: u32,
    /// Sum of the flags below.
    pub flags: u32,
    /// Value of our timestamp.
    pub timestamp: u32,
    /// Client's timestamp, as it stands in memory.
    pub echo: u32,
    /// Scale of the window.
    pub scale: u32,
}

impl Reply {
    /// Flag that it has a Fast Open cookie.
    pub const COOKIE: u32 = 1;
    /// Flag that it has timestamps, and with them the other options that the client offered.
    pub const TIMESTAMPS: u32 = 2;
    /// Flag that it permits selective acknowledgements.
    pub const SACK: u32 = 4;
    /// Flag that it has a scale of the window.
    pub const SCALE: u32 = 8;

    /// Whether any bit of `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Returns the length of its TCP header, in bytes.
    #[inline(always)]
    pub const fn tcp_len(&self) -> usize {
        let mut len = TcpHdr::LEN + 4;
        if self.has(Self::TIMESTAMPS) {
            len += 12;
        }
        if self.has(Self::SCALE) {
            len += 4;
        }
        if self.has(Self::COOKIE) {
            len += 12;
        }
        len
    }

    /// Returns the length of the whole frame, in bytes.
    #[inline(always)]
    pub const fn frame_len(&self, family: Family) -> usize {
        self.network as usize + network_len(family) + self.tcp_len()
    }

    /// Returns `frame`'s SYN, whose TCP header is at `tcp`, turned into this SYN-ACK, in place. VLAN tags stay. IP options
    /// and extension headers are gone. Returns false if the frame is too short for it; then nothing is changed.
    #[inline(always)]
    pub fn write<B: BytesMut + ?Sized>(&self, frame: &mut B, tcp: usize, addresses: &Addresses) -> bool {
        let network = self.network as usize;
        let (Some(ports), Some(isn)) = (frame.read(tcp), frame.read(tcp + 4)) else { return false };
        let (Some(destination), Some(source)) = (mac(frame, 0), mac(frame, 6)) else { return false };
        if frame.read::<1>(self.frame_len(addresses.family) - 1).is_none() {
            return false;
        }
        let middle = source.1 | destination.0 << 16;
        frame.write_words(0, [source.0, middle, destination.0 >> 16 | destination.1 << 16]);
        let [m0, m1] = (self.mss as u16).to_be_bytes();
        let [w0, w1] = (self.window as u16).to_be_bytes();
        let mut header = [
            u32::from_le_bytes(ports).rotate_left(16),
            self.sequence.to_be(),
            u32::from_be_bytes(isn).wrapping_add(1).to_be(),
            u32::from_le_bytes([(self.tcp_len() as u8 / 4) << 4, SYN_ACK, w0, w1]),
            0,
            u32::from_le_bytes([2, 4, m0, m1]),
        ];
        let tcp = network + network_len(addresses.family);
        let sum =
            self.write_options(frame, tcp + TcpHdr::LEN + MSS_LEN) + pseudo_sum(addresses, self.tcp_len());
        header[4] = u32::from(!fold(sum + sum_of(header)));
        let is_written = match addresses.family {
            Family::Ipv4 => frame.write_words(network, ipv4(addresses, self.tcp_len())),
            Family::Ipv6 => frame.write_words(network, ipv6(addresses, self.tcp_len())),
        };
        is_written && frame.write_words(tcp, header)
    }

    /// Writes the options behind the maximum segment size from `at` on, and returns the sum of their words.
    #[inline(always)]
    fn write_options<B: BytesMut + ?Sized>(&self, frame: &mut B, at: usize) -> u64 {
        let (mut at, mut sum) = (at, 0);
        if self.has(Self::TIMESTAMPS) {
            let [sack, permitted] = if self.has(Self::SACK) { [4, 2] } else { [1, 1] };
            let words = [u32::from_le_bytes([sack, permitted, 8, 10]), self.timestamp.to_be(), self.echo];
            frame.write_words(at, words);
            (at, sum) = (at + 12, sum + sum_of(words));
        }
        if self.has(Self::SCALE) {
            let words = [u32::from_le_bytes([1, 3, 3, self.scale as u8])];
            frame.write_words(at, words);
            (at, sum) = (at + 4, sum + sum_of(words));
        }
        if self.has(Self::COOKIE) {
            let [low, high] = halves(self.cookie);
            let words = [u32::from_le_bytes([1, 1, 34, 10]), low, high];
            frame.write_words(at, words);
            sum += sum_of(words);
        }
        sum
    }
}

/// Flags of a SYN-ACK.
const SYN_ACK: u8 = 0x12;
/// Time to live of a SYN-ACK (`IPDEFTTL`).
const TTL: u8 = 64;
const TCP: u8 = 6;

/// Returns the length of the IP header of a SYN-ACK.
#[inline(always)]
pub const fn network_len(family: Family) -> usize {
    match family {
        Family::Ipv4 => Ipv4Hdr::LEN,
        Family::Ipv6 => Ipv6Hdr::LEN,
    }
}

/// Length of the option with the maximum segment size.
const MSS_LEN: usize = 4;

/// Returns the words of the IPv4 header for `payload` bytes back to the source of `addresses`.
#[inline(always)]
const fn ipv4(addresses: &Addresses, payload: usize) -> [u32; 5] {
    const DONT_FRAGMENT: u8 = 0x40;

    let [l0, l1] = ((Ipv4Hdr::LEN + payload) as u16).to_be_bytes();
    let [addresses, ..] = addresses.words;
    let [source, destination] = halves(addresses);
    let mut words = [
        u32::from_le_bytes([0x45, 0, l0, l1]),
        u32::from_le_bytes([0, 0, DONT_FRAGMENT, 0]),
        u32::from_le_bytes([TTL, TCP, 0, 0]),
        destination,
        source,
    ];
    words[2] |= (!fold(sum_of(words)) as u32) << 16;
    words
}

/// Returns the words of the IPv6 header for `payload` bytes back to the source of `addresses`.
#[inline(always)]
const fn ipv6(addresses: &Addresses, payload: usize) -> [u32; 10] {
    let [l0, l1] = (payload as u16).to_be_bytes();
    let [s0, s1, d0, d1] = addresses.words;
    let ([d0, d1], [d2, d3], [s0, s1], [s2, s3]) = (halves(d0), halves(d1), halves(s0), halves(s1));
    [
        u32::from_le_bytes([0x60, 0, 0, 0]),
        u32::from_le_bytes([l0, l1, TCP, TTL]),
        d0,
        d1,
        d2,
        d3,
        s0,
        s1,
        s2,
        s3,
    ]
}

/// Returns the sum of the words of the pseudo-header for a TCP segment of `len` bytes (RFC 9293, 3.1).
#[inline(always)]
const fn pseudo_sum(addresses: &Addresses, len: usize) -> u64 {
    let [w0, w1, w2, w3] = addresses.words;
    let ends = match addresses.family {
        Family::Ipv4 => sum_of(halves(w0)),
        Family::Ipv6 => sum_of(halves(w0)) + sum_of(halves(w1)) + sum_of(halves(w2)) + sum_of(halves(w3)),
    };
    ends + (TCP as u16).to_be() as u64 + (len as u16).to_be() as u64
}

/// Returns the two halves of a word, the lower one first.
#[inline(always)]
const fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

/// Returns the sum of `words`.
#[inline(always)]
const fn sum_of<const N: usize>(words: [u32; N]) -> u64 {
    let (mut sum, mut at) = (0, 0);
    while at < N {
        sum += words[at] as u64;
        at += 1;
    }
    sum
}

/// Reads the MAC address at `at`: its first four bytes, and the other two.
#[inline(always)]
fn mac<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<(u32, u32)> {
    let (first, rest) =
        (frame.read(at).map(u32::from_le_bytes)?, frame.read(at + 4).map(u16::from_le_bytes)?);
    Some((first, rest.into()))
}

/// Folds a sum of little-endian words, far below 2^40, into 16 bits (RFC 1071).
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Input of the kernel's maker of SYN cookies: an IP header of which it reads the addresses, and a TCP header of which it
/// reads ports, sequence number and maximum segment size (`bpf_tcp_raw_gen_syncookie_ipv4`, `_ipv6`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Input {
    /// IP header: its first 20 bytes for IPv4, all 40 for IPv6.
    pub network: [u32; Ipv6Hdr::LEN / 4],
    /// TCP header of [`INPUT_TCP`] bytes.
    pub tcp: [u32; INPUT_TCP / 4],
}

/// Length of the TCP header in [`Input`], in bytes.
pub const INPUT_TCP: usize = TcpHdr::LEN + 4;

impl Input {
    /// Fills it in for a SYN with these `ports` and sequence number, as they stand in memory, which offers `mss`.
    #[inline(always)]
    pub fn fill(&mut self, addresses: &Addresses, ports: u32, isn: u32, mss: u16) {
        match addresses.family {
            Family::Ipv4 => [self.network[3], self.network[4]] = halves(addresses.words[0]),
            Family::Ipv6 => {
                [self.network[2], self.network[3]] = halves(addresses.words[0]);
                [self.network[4], self.network[5]] = halves(addresses.words[1]);
                [self.network[6], self.network[7]] = halves(addresses.words[2]);
                [self.network[8], self.network[9]] = halves(addresses.words[3]);
            }
        }
        let [m0, m1] = mss.to_be_bytes();
        [self.tcp[0], self.tcp[1]] = [ports, isn];
        self.tcp[3] = u32::from_le_bytes([(INPUT_TCP as u8 / 4) << 4, 2, 0, 0]);
        self.tcp[5] = u32::from_le_bytes([2, 4, m0, m1]);
    }
}

/// Options of a SYN that an answer may take up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Maximum segment size.
    pub mss: Option<u16>,
    /// Client's timestamp, as it stands in memory; `None` unless the options are laid out as a known system does.
    pub timestamp: Option<u32>,
    /// Scale of the client's window. Without a timestamp it is `None`.
    pub scale: Option<u8>,
    /// Whether the client permits selective acknowledgements. Without a timestamp it is false.
    pub sack: bool,
}

impl Offer {
    /// Reads the options of the SYN at `tcp`. All real systems send the maximum segment size first. The others are looked
    /// for in the layouts of Linux, macOS and FreeBSD, and only if `with_timestamps`.
    #[inline(always)]
    pub fn read<B: Bytes + ?Sized>(frame: &B, tcp: usize, with_timestamps: bool) -> Self {
        let mut offer = Self::default();
        let at = tcp + TcpHdr::LEN;
        let (Some(area), Some([kind, len, m0, m1])) = (option_area(frame, tcp), frame.read(at)) else {
            return offer;
        };
        if area < 4 || kind != 2 || len != 4 {
            return offer;
        }
        offer.mss = Some(u16::from_be_bytes([m0, m1]));
        if !with_timestamps || area < 20 {
            return offer;
        }
        let Some(words) = frame.read::<16>(at + 4) else { return offer };
        let word = |index: usize| {
            [words[4 * index], words[4 * index + 1], words[4 * index + 2], words[4 * index + 3]]
        };
        match (word(0), word(1), word(2), word(3)) {
            // Linux.
            ([4, 2, 8, 10], timestamp, _, [1, 3, 3, scale]) => {
                (offer.timestamp, offer.scale, offer.sack) =
                    (Some(u32::from_le_bytes(timestamp)), Some(scale), true);
            }
            // FreeBSD.
            ([1, 3, 3, scale], [4, 2, 8, 10], timestamp, _) => {
                (offer.timestamp, offer.scale, offer.sack) =
                    (Some(u32::from_le_bytes(timestamp)), Some(scale), true);
            }
            // macOS.
            ([1, 3, 3, scale], [1, 1, 8, 10], timestamp, _) => {
                let sack = area >= 24 && frame.read(at + 20) == Some([4, 2]);
                (offer.timestamp, offer.scale, offer.sack) =
                    (Some(u32::from_le_bytes(timestamp)), Some(scale), sack);
            }
            _ => {}
        }
        offer
    }
}

/// Maximum segment size of a SYN without the option: `TCP_MSS_DEFAULT`, and for IPv6 that of the smallest link.
#[inline(always)]
pub const fn default_mss(family: Family) -> u16 {
    match family {
        Family::Ipv4 => 536,
        Family::Ipv6 => 1220,
    }
}

/// Returns our timestamp with the client's options in its lowest bits (`cookie_init_timestamp`). `now_ms` is the kernel's
/// monotonic clock, in milliseconds.
#[inline(always)]
pub const fn timestamp(now_ms: u32, scale: Option<u8>, sack: bool) -> u32 {
    const BITS: u32 = 6;
    const WITHOUT_SCALE: u32 = 0xf;
    const MOST: u8 = 14;
    const SACK: u32 = 1 << 4;

    let scale = match scale {
        None => WITHOUT_SCALE,
        Some(scale) if scale > MOST => MOST as u32,
        Some(scale) => scale as u32,
    };
    let options = scale | if sack { SACK } else { 0 };
    let now = now_ms & !((1 << BITS) - 1) | options;
    if now > now_ms { now.wrapping_sub(1 << BITS) } else { now }
}

/// Whether both ends can be those of a connection: neither is a group of hosts, the host itself, or none
/// (`ip_route_input_slow`, `tcp_v6_conn_request`).
#[inline(always)]
pub const fn is_between_hosts(addresses: &Addresses) -> bool {
    let [w0, w1, w2, w3] = addresses.words;
    match addresses.family {
        Family::Ipv4 => is_host_v4(w0 as u8) && is_host_v4((w0 >> 32) as u8),
        Family::Ipv6 => is_host_v6(w0, w1) && is_host_v6(w2, w3),
    }
}

/// Whether an IPv4 address with this first byte is that of a host on a network.
#[inline(always)]
const fn is_host_v4(first: u8) -> bool {
    first != 0 && first != 127 && first < 224
}

/// Whether an IPv6 address of these words is that of a host on a network. Unspecified, loopback and IPv4-mapped addresses
/// begin with eight zero bytes, as multicast ones begin with 0xff.
#[inline(always)]
const fn is_host_v6(first: u64, _second: u64) -> bool {
    first != 0 && first as u8 != 0xff
}

const _: () = {
    assert!(size_of::<Host>() == 16 && size_of::<Listener>() == 24 && size_of::<Reply>() == 40);
    assert!(size_of::<Input>() == Ipv6Hdr::LEN + INPUT_TCP);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_holds_the_options_and_is_never_ahead() {
        assert_eq!(timestamp(0x1000, Some(7), true), 0x1000 - 64 + 0x17);
        assert_eq!(timestamp(0x103f, Some(7), true), 0x1017);
        assert_eq!(timestamp(0x103f, None, false), 0x100f);
        assert_eq!(timestamp(0x103f, Some(20), false), 0x100e);
        assert_eq!(timestamp(3, None, false), (0xf_u32).wrapping_sub(64), "the clock wraps");
    }

    #[test]
    fn a_sum_is_folded() {
        assert_eq!(fold(0x1_0000_0000), 1);
        assert_eq!(fold(0xffff_ffff), 0xffff);
        assert_eq!(fold(0x1_ffff_ffff), 1);
        assert_eq!(fold(0x0012_3456), 0x3468);
    }
}
