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

/// Source and destination address, as a cookie is made from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The family of both.
    pub family: Family,
    /// The bytes of the source, then of the destination address, as on the wire, eight to a little-endian word.
    /// IPv4 fills the first word only; the others are zero.
    pub words: [u64; 4],
}

impl Addresses {
    /// The addresses of an IPv4 header, from its bytes 12 to 20.
    #[inline(always)]
    pub const fn from_ipv4(bytes: [u8; 8]) -> Self {
        Self { family: Family::Ipv4, words: [u64::from_le_bytes(bytes), 0, 0, 0] }
    }

    /// The addresses of an IPv6 header, from its bytes 8 to 40.
    #[inline(always)]
    pub fn from_ipv6(bytes: [u8; 32]) -> Self {
        let (words, _) = bytes.as_chunks();
        Self { family: Family::Ipv6, words: core::array::from_fn(|i| u64::from_le_bytes(words[i])) }
    }
}

impl Addresses {
    /// The source as an IPv6 address, that of IPv4 mapped (RFC 4291, 2.5.5.2): its bytes as on the wire, four to a
    /// little-endian word.
    #[inline(always)]
    pub const fn source_v6(&self) -> [u32; 4] {
        let [w0, w1, ..] = self.words;
        match self.family {
            Family::Ipv4 => mapped(w0 as u32),
            Family::Ipv6 => [w0 as u32, (w0 >> 32) as u32, w1 as u32, (w1 >> 32) as u32],
        }
    }

    /// The same of the destination.
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
    /// There is none.
    Absent,
    /// There is one, which the kernel treats as absent.
    Ignored,
    /// It is empty.
    Request,
    /// It holds a cookie of eight bytes.
    Cookie(Cookie),
    /// It holds a cookie of another length that the kernel stores, and then refuses.
    BadLength,
}

/// A cookie of eight bytes, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Its bytes, as a little-endian word.
    pub value: u64,
    /// Where it begins, in bytes from the TCP header's first: odd or even.
    pub offset: u32,
}

/// A TCP SYN without ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whom it is from and to.
    pub addresses: Addresses,
    /// Its Fast Open option.
    pub fast_open: FastOpen,
    /// Where its TCP header begins, in bytes from the frame's first.
    pub tcp: u32,
    /// The bytes of data behind the TCP header, in this frame.
    pub data_len: u32,
}
