//! TCP segments.

use super::{Carry, Ip, protocol};
use crate::keys::TestKey;

/// Flags of a TCP header. The ninth is in the byte of the data offset.
pub mod flag {
    /// Sender has no more data.
    pub const FIN: u16 = 0x001;
    /// Connection begins.
    pub const SYN: u16 = 0x002;
    /// Connection is reset.
    pub const RST: u16 = 0x004;
    /// Data is to be delivered at once.
    pub const PSH: u16 = 0x008;
    /// Acknowledgement number is valid.
    pub const ACK: u16 = 0x010;
    /// Urgent pointer is valid.
    pub const URG: u16 = 0x020;
    /// Congestion was seen; in a SYN, ECN is offered.
    pub const ECE: u16 = 0x040;
    /// Window was reduced; in a SYN, ECN is offered.
    pub const CWR: u16 = 0x080;
    /// Accurate ECN is offered, in a SYN and with the two flags before (RFC 9768).
    pub const AE: u16 = 0x100;
}

/// Option kinds.
mod kind {
    pub(super) const EOL: u8 = 0;
    pub(super) const NOP: u8 = 1;
    pub(super) const MSS: u8 = 2;
    pub(super) const WINDOW_SCALE: u8 = 3;
    pub(super) const SACK_PERMITTED: u8 = 4;
    pub(super) const TIMESTAMPS: u8 = 8;
    pub(super) const MD5: u8 = 19;
    pub(super) const AO: u8 = 29;
    pub(super) const FAST_OPEN: u8 = 34;
    pub(super) const EXPERIMENTAL: u8 = 254;
}

/// TCP segment in its IP packet.
#[derive(Clone, Debug)]
pub struct Tcp {
    ip: Ip,
    ports: (u16, u16),
    sequence: u32,
    acknowledged: u32,
    flags: u16,
    window: u16,
    options: Vec<u8>,
    data: Vec<u8>,
    data_offset: Option<u8>,
    cut: Option<usize>,
    trailer: Vec<u8>,
}

impl Tcp {
    /// Magic number of Fast Open under the experimental kind.
    pub const MAGIC: u16 = 0xf989;

    pub(super) fn new(ip: Ip, flags: u16) -> Self {
        Self {
            ip,
            ports: (40_000, 80),
            sequence: 0x0102_0304,
            acknowledged: 0,
            flags,
            window: 0xfaf0,
            options: Vec::new(),
            data: Vec::new(),
            data_offset: None,
            cut: None,
            trailer: Vec::new(),
        }
    }

    /// Sets the ports of source and destination.
    pub fn ports(mut self, source: u16, destination: u16) -> Self {
        self.ports = (source, destination);
        self
    }

    /// Sets the sequence number.
    pub fn sequence(mut self, sequence: u32) -> Self {
        self.sequence = sequence;
        self
    }

    /// Sets the acknowledgement number.
    pub fn acknowledging(mut self, number: u32) -> Self {
        self.acknowledged = number;
        self
    }

    /// Sets the receive window.
    pub fn window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }

    /// Adds bytes to the option area, unchanged.
    pub fn option_bytes(mut self, bytes: &[u8]) -> Self {
        self.options.extend(bytes);
        self
    }

    /// Adds an option of any kind.
    pub fn option(self, kind: u8, value: &[u8]) -> Self {
        self.option_bytes(&[kind, value.len() as u8 + 2]).option_bytes(value)
    }

    /// Adds the end of the option list.
    pub fn eol(self) -> Self {
        self.option_bytes(&[kind::EOL])
    }

    /// Adds a no-operation.
    pub fn nop(self) -> Self {
        self.nops(1)
    }

    /// Adds no-operations.
    pub fn nops(self, count: usize) -> Self {
        self.option_bytes(&vec![kind::NOP; count])
    }

    /// Adds the maximum segment size.
    pub fn mss(self, mss: u16) -> Self {
        self.option(kind::MSS, &mss.to_be_bytes())
    }

    /// Adds the window scale.
    pub fn wscale(self, shift: u8) -> Self {
        self.option(kind::WINDOW_SCALE, &[shift])
    }

    /// Adds the offer of selective acknowledgements.
    pub fn sackok(self) -> Self {
        self.option(kind::SACK_PERMITTED, &[])
    }

    /// Adds timestamps.
    pub fn timestamps(self, value: u32, echo: u32) -> Self {
        self.option(kind::TIMESTAMPS, &[value.to_be_bytes(), echo.to_be_bytes()].concat())
    }

    /// Adds a Fast Open option with this cookie.
    pub fn fast_open(self, cookie: &[u8]) -> Self {
        self.option(kind::FAST_OPEN, cookie)
    }

    /// Adds an empty Fast Open option, which requests a cookie.
    pub fn request(self) -> Self {
        self.fast_open(&[])
    }

    /// Adds a Fast Open option with the cookie that `key` makes for this packet's addresses.
    pub fn cookie_of(self, key: TestKey) -> Self {
        let cookie = self.cookie(key);
        self.fast_open(&cookie)
    }

    /// Returns the cookie that `key` makes for this packet's addresses.
    pub fn cookie(&self, key: TestKey) -> [u8; 8] {
        let (source, destination) = self.ip.addresses();
        key.cookie(source, destination)
    }

    /// Adds a TCP-MD5 signature (RFC 2385).
    pub fn md5(self) -> Self {
        self.option(kind::MD5, &[0x5a; 16])
    }

    /// Adds a TCP-AO signature with a code of `len` bytes (RFC 5925).
    pub fn ao(self, len: usize) -> Self {
        self.option(kind::AO, &vec![0x5a; len + 2])
    }

    /// Adds an experimental option (RFC 6994) with this magic number.
    pub fn experimental(self, magic: u16, value: &[u8]) -> Self {
        self.option(kind::EXPERIMENTAL, &[&magic.to_be_bytes(), value].concat())
    }

    /// Adds Linux's options in their order (`tcp_options_write`). Behind a Fast Open option of 2 or 10 bytes, Linux
    /// adds two no-operations.
    pub fn linux_options(self) -> Self {
        self.mss(1460).sackok().timestamps(0x1234_5678, 0).nop().wscale(7)
    }

    /// Adds Linux's options without timestamps.
    pub fn linux_options_without_timestamps(self) -> Self {
        self.mss(1460).nops(2).sackok().nop().wscale(7)
    }

    /// Adds macOS's options in their order (XNU's `tcp_output`). Fast Open comes next, then end-of-list bytes.
    pub fn macos_options(self) -> Self {
        self.mss(1460).nop().wscale(6).nop().nop().timestamps(0x1234_5678, 0).sackok()
    }

    /// Adds Windows's options in their order, which include no timestamps.
    pub fn windows_options(self) -> Self {
        self.mss(1460).nop().wscale(8).nop().nop().sackok()
    }

    /// Adds FreeBSD's options in their order (`tcp_addoptions`), which is that of Windows with timestamps, too.
    pub fn freebsd_options(self) -> Self {
        self.mss(1460).nop().wscale(6).sackok().timestamps(0x1234_5678, 0)
    }

    /// Sets the data behind the header.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    /// Sets a wrong data offset, in words.
    pub fn data_offset(mut self, words: u8) -> Self {
        self.data_offset = Some(words);
        self
    }

    /// Cuts the segment to `len` bytes, in an IP packet of that length.
    pub fn cut(mut self, len: usize) -> Self {
        self.cut = Some(len);
        self
    }

    /// Adds bytes behind the end of the IP packet, as Ethernet pads a short frame.
    pub fn trailer(mut self, len: usize) -> Self {
        self.trailer = vec![0xee; len];
        self
    }

    /// Returns the TCP segment alone.
    pub fn segment(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), kind::EOL);
        let words = self.data_offset.unwrap_or_else(|| {
            assert!(options.len() <= 40, "{} bytes of TCP options do not fit", options.len());
            5 + (options.len() / 4) as u8
        });
        let offset_and_flags = u16::from(words) << 12 | self.flags;

        let mut segment = Vec::new();
        segment.extend(self.ports.0.to_be_bytes());
        segment.extend(self.ports.1.to_be_bytes());
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.acknowledged.to_be_bytes());
        segment.extend(offset_and_flags.to_be_bytes());
        segment.extend(self.window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(options);
        segment.extend(&self.data);
        let sum = self.ip.checksum(protocol::TCP, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    /// Returns the bytes of the frame.
    pub fn build(self) -> Vec<u8> {
        let mut segment = self.segment();
        segment.truncate(self.cut.unwrap_or(segment.len()));
        let mut frame = self.ip.carrying(protocol::TCP, &segment);
        frame.extend(self.trailer);
        frame
    }
}

impl From<Tcp> for Vec<u8> {
    fn from(tcp: Tcp) -> Self {
        tcp.build()
    }
}
