//! Frames on an interface, past the kernel's stack: what is sent, and what is seen there (packet(7)).

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
        sockopt,
    },
};
use tfo_common::segment::FastOpen;

use crate::oracle::kernel_walk;

/// Room for what is seen and not yet read, in bytes.
const ROOM: usize = 32 << 20;

/// A place on the wire.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// At `interface` of the calling thread's namespace: sends frames, and sees those that come, after the program in native
    /// mode, and those that go.
    pub fn at(interface: &str) -> Self {
        let wire = Self::bound(interface, Some(SockProtocol::EthAll));
        setsockopt(&wire.0, sockopt::RcvBufForce, &ROOM).expect("room to receive, as root");
        wire
    }

    /// The same that sees nothing, and loses no time with it.
    pub fn blind(interface: &str) -> Self {
        Self::bound(interface, None)
    }

    fn bound(interface: &str, protocol: Option<SockProtocol>) -> Self {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .expect("tier 3 needs root: a packet socket");
        let mut addresses = getifaddrs().expect("the interfaces");
        let address = addresses.find_map(|found| {
            let address = found.address.filter(|_| found.interface_name == interface)?;
            address.as_link_addr().copied()
        });
        bind(socket.as_raw_fd(), &address.unwrap_or_else(|| panic!("there is no interface {interface}")))
            .unwrap_or_else(|error| panic!("cannot bind to {interface}: {error}"));
        Self(socket)
    }

    /// Sends `frame`.
    pub fn send(&self, frame: &[u8]) {
        // What the interface has no room for is lost, as on any wire.
        match send(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(_) | Err(Errno::ENOBUFS) => {}
            Err(error) => panic!("cannot send a frame: {error}"),
        }
    }

    /// The next frame that was seen, if there is one by now.
    pub fn seen(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; usize::from(u16::MAX) + 64];
        match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            Ok(len) => frame.truncate(len),
            Err(Errno::EAGAIN) => return None,
            Err(error) => panic!("cannot receive a frame: {error}"),
        }
        Some(frame)
    }
}

/// A TCP segment, as etherparse reads it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Who sent it.
    pub from: SocketAddr,
    /// Whom to.
    pub to: SocketAddr,
    /// Whether it begins a connection.
    pub syn: bool,
    /// Whether it acknowledges `acknowledged`.
    pub ack: bool,
    /// Whether it ends one at once.
    pub rst: bool,
    /// Its sequence number.
    pub sequence: u32,
    /// The sequence number that it expects next.
    pub acknowledged: u32,
    /// Its window, as it stands there.
    pub window: u16,
    /// Its options.
    pub options: Vec<u8>,
    /// Its data.
    pub data: Vec<u8>,
    /// How long the IP packet is, headers and all.
    pub ip_len: usize,
    /// Whether its TCP checksum is right.
    pub sum_is_right: bool,
}

impl Seen {
    /// What is in `frame`, which begins with an Ethernet header, if it is TCP.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
        let (from, to, ip_len, sum) = match packet.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                let ends = (IpAddr::from(header.source_addr()), IpAddr::from(header.destination_addr()));
                let sum = tcp.calc_checksum_ipv4(header.source(), header.destination()).ok()?;
                (ends.0, ends.1, usize::from(header.total_len()), sum)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                let ends = (IpAddr::from(header.source_addr()), IpAddr::from(header.destination_addr()));
                let sum = tcp.calc_checksum_ipv6(header.source(), header.destination()).ok()?;
                (ends.0, ends.1, 40 + usize::from(header.payload_length()), sum)
            }
            NetSlice::Arp(_) => return None,
        };
        Some(Self {
            from: SocketAddr::new(from, tcp.source_port()),
            to: SocketAddr::new(to, tcp.destination_port()),
            syn: tcp.syn(),
            ack: tcp.ack(),
            rst: tcp.rst(),
            sequence: tcp.sequence_number(),
            acknowledged: tcp.acknowledgment_number(),
            window: tcp.window_size(),
            options: tcp.options().to_vec(),
            data: tcp.payload().to_vec(),
            ip_len,
            sum_is_right: sum == tcp.checksum(),
        })
    }

    /// Whether it has a Fast Open option, of whatever kind.
    pub fn has_fast_open(&self) -> bool {
        kernel_walk(&self.options) != FastOpen::Absent
    }

    /// Whether it is the answer to a SYN.
    pub fn is_syn_ack(&self) -> bool {
        self.syn && self.ack
    }
}
