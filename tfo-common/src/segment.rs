//! The facts about a SYN that are copied out of its packet.

named! {
    /// The address family.
    pub enum Family {
        /// IPv4.
        Ipv4 = "ipv4",
        /// IPv6.
        Ipv6 = "ipv6",
    }
}

/// Source and destination address, in the form from which cookies are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Family of both addresses.
    pub family: Family,
    /// Bytes of the source, then of the destination address, as on the wire, eight to a little-endian word. IPv4 fills
    /// only the first word; the others are zero.
    pub words: [u64; 4],
}

impl Addresses {
    /// Returns the addresses of an IPv4 header, from its bytes 12 to 20.
    #[inline(always)]
    pub const fn from_ipv4(bytes: [u8; 8]) -> Self {
        Self { family: Family::Ipv4, words: [u64::from_le_bytes(bytes), 0, 0, 0] }
    }

    /// Returns the addresses of an IPv6 header, from its bytes 8 to 40.
    #[inline(always)]
    pub fn from_ipv6(bytes: [u8; 32]) -> Self {
        let (words, _) = bytes.as_chunks();
        Self { family: Family::Ipv6, words: core::array::from_fn(|i| u64::from_le_bytes(words[i])) }
    }
}

impl Addresses {
    /// Returns the source as an IPv6 address, as on the wire, four bytes to a little-endian word. An IPv4 address is
    /// mapped (RFC 4291, 2.5.5.2).
    #[inline(always)]
    pub const fn source_v6(&self) -> [u32; 4] {
        let [w0, w1, ..] = self.words;
        match self.family {
            Family::Ipv4 => mapped(w0 as u32),
            Family::Ipv6 => [w0 as u32, (w0 >> 32) as u32, w1 as u32, (w1 >> 32) as u32],
        }
    }

    /// Returns the destination in the form of [`source_v6`](Self::source_v6).
    #[inline(always)]
    pub const fn destination_v6(&self) -> [u32; 4] {
        let [w0, _, w2, w3] = self.words;
        match self.family {
            Family::Ipv4 => mapped((w0 >> 32) as u32),
            Family::Ipv6 => [w2 as u32, (w2 >> 32) as u32, w3 as u32, (w3 >> 32) as u32],
        }
    }
}

#[inline(always)]
const fn mapped(v4: u32) -> [u32; 4] {
    [0, 0, 0xffff_0000, v4]
}

/// The Fast Open option of a SYN, as the kernel understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastOpen {
    /// The SYN has no Fast Open option.
    Absent,
    /// The kernel treats the option as absent.
    Ignored,
    /// The option is empty: it asks for a cookie.
    Request,
    /// The option holds a cookie of eight bytes.
    Cookie(Cookie),
    /// The option holds a cookie of another length, which the kernel stores and then refuses.
    BadLength,
}

/// A cookie of eight bytes, and its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Bytes of the cookie, as a little-endian word.
    pub value: u64,
    /// Offset of the cookie from the TCP header's first byte: odd or even.
    pub offset: u32,
}

/// A TCP SYN without ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source and destination address.
    pub addresses: Addresses,
    /// Fast Open option.
    pub fast_open: FastOpen,
    /// Whether the SYN is signed: by an IPv6 authentication header (RFC 4302), or by a TCP-MD5 (RFC 2385) or TCP-AO option
    /// (RFC 5925). A change would break the signature.
    pub is_signed: bool,
    /// Whether more fragments of the packet follow, which may have more data.
    pub is_fragment: bool,
    /// Offset of the TCP header from the frame's first byte.
    pub tcp: u32,
    /// Number of bytes of data behind the TCP header, in this frame.
    pub data_len: u32,
}

impl Segment {
    /// Returns the same SYN in a frame with `bytes` more in front of its TCP header.
    #[inline(always)]
    #[must_use]
    pub const fn further_in(&self, bytes: usize) -> Self {
        Self { tcp: self.tcp + bytes as u32, ..*self }
    }
}
