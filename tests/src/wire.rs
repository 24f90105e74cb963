//! Packet socket that sends and sees frames past the kernel's stack (packet(7)).

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

/// Size of the receive buffer, in bytes.
const ROOM: usize = 32 << 20;

/// Packet socket on an interface.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// Opens a socket on `interface` of the calling thread's namespace. It sees outgoing frames, and incoming ones
    /// behind the program in native mode.
    pub fn at(interface: &str) -> Self {
        let wire = Self::bound(interface, Some(SockProtocol::EthAll));
        setsockopt(&wire.0, sockopt::RcvBufForce, &ROOM).expect("room to receive, as root");
        wire
    }

    /// Opens a socket that sees no frames, which costs less time.
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
        // A frame is lost if the interface has no room for it, as on any wire.
        match send(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(_) | Err(Errno::ENOBUFS) => {}
            Err(error) => panic!("cannot send a frame: {error}"),
        }
    }

    /// Returns the next frame, if there is one.
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

/// TCP segment, as etherparse reads it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// Whether the SYN flag is set.
    pub syn: bool,
    /// Whether the ACK flag is set, so that `acknowledged` is valid.
    pub ack: bool,
    /// Whether the RST flag is set.
    pub rst: bool,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number: the next sequence number that the sender expects.
    pub acknowledged: u32,
    /// Window, not scaled.
    pub window: u16,
    /// Bytes of the options.
    pub options: Vec<u8>,
    /// Data behind the header.
    pub data: Vec<u8>,
    /// Length of the IP packet with its headers, in bytes.
    pub ip_len: usize,
    /// Whether the TCP checksum is right.
    pub sum_is_right: bool,
}

impl Seen {
    /// Parses `frame`, which begins with an Ethernet header. Returns `None` if it is not TCP.
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

    /// Returns whether it has a Fast Open option, of either kind.
    pub fn has_fast_open(&self) -> bool {
        kernel_walk(&self.options) != FastOpen::Absent
    }

    /// Returns whether it is a SYN-ACK.
    pub fn is_syn_ack(&self) -> bool {
        self.syn && self.ack
    }
}
