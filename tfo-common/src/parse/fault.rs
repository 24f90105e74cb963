//! Reasons for which a frame is passed without being classified.

named! {
    /// Reason for which the kernel drops a frame before Fast Open can matter. A TCP segment that is not a SYN counts
    /// here only if its headers are too broken to tell.
    pub enum Malformed {
        /// The Ethernet header or a VLAN tag is cut short.
        LinkTruncated = "link_truncated",
        /// The IP header is cut short.
        IpTruncated = "ip_truncated",
        /// The IP version differs from the one that the frame announced.
        IpVersion = "ip_version",
        /// IPv4 header length below five words (`ip_rcv_core`).
        IpHeaderLength = "ip_header_length",
        /// The IP packet is longer than its frame, or shorter than its header (`ip_rcv_core`, `ip6_rcv_core`).
        IpTotalLength = "ip_total_length",
        /// An IPv6 extension header is cut short.
        ExtensionTruncated = "extension_truncated",
        /// The packet has fewer than 20 bytes for the TCP header (`tcp_v4_rcv`, `tcp_v6_rcv`).
        TcpTruncated = "tcp_truncated",
        /// TCP data offset below five words.
        TcpDataOffset = "tcp_data_offset",
        /// TCP data offset past the packet's end.
        TcpOptionsTruncated = "tcp_options_truncated",
        /// A SYN with RST or FIN: a listener drops it (`tcp_rcv_state_process`).
        TcpFlags = "tcp_flags",
    }
}

named! {
    /// Reason for which a frame that may be a good SYN is passed without being classified.
    pub enum Unsupported {
        /// More VLAN tags than the parser follows.
        VlanDepth = "vlan_depth",
        /// A fragment other than the first: it has no TCP header.
        LaterFragment = "later_fragment",
        /// A first fragment that ends inside the TCP header.
        FragmentedHeader = "fragmented_header",
        /// More IPv6 extension headers than the parser follows, or in an order that the kernel does not accept.
        ExtensionChain = "extension_chain",
        /// An IPv6 routing header that names further stops, or of a kind that hosts refuse.
        SourceRoute = "source_route",
    }
}

/// Reason for which a frame is passed without being classified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The kernel drops the frame.
    Malformed(Malformed),
    /// The parser does not follow the frame.
    Unsupported(Unsupported),
}

impl From<Malformed> for Fault {
    #[inline(always)]
    fn from(reason: Malformed) -> Self {
        Self::Malformed(reason)
    }
}

impl From<Unsupported> for Fault {
    #[inline(always)]
    fn from(reason: Unsupported) -> Self {
        Self::Unsupported(reason)
    }
}

impl Fault {
    /// Returns the reason's name.
    #[inline(always)]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed(reason) => reason.name(),
            Self::Unsupported(reason) => reason.name(),
        }
    }
}
