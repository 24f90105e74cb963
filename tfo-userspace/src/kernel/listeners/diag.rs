//! The list of listening sockets, from sock_diag(7).

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

use super::Backlog;
use crate::kernel::netlink;

/// A listening socket, as sock_diag shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListeningSocket {
    /// Local address and port.
    pub address: SocketAddr,
    /// Whether an IPv6 socket refuses IPv4; `None` for an IPv4 socket.
    pub ipv6_only: Option<bool>,
    /// The accept queue.
    pub backlog: Backlog,
    /// Inode of the socket; 0 if it has no inode.
    pub inode: u64,
    /// Cookie of the socket. The kernel makes one when sock_diag shows the socket (`sock_gen_cookie`).
    pub cookie: u64,
}

/// Returns the listening TCP sockets of the calling thread's network namespace, sorted by port.
pub(super) fn listening_sockets() -> Result<Vec<ListeningSocket>> {
    let mut found = Vec::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let question = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id,
        });
        let answers = netlink::dump(NETLINK_SOCK_DIAG, question).context(
            "cannot ask the kernel which sockets listen (sock_diag): it needs CONFIG_INET_TCP_DIAG (modprobe tcp_diag)",
        )?;
        found.extend(answers.into_iter().filter_map(|answer| match answer {
            SockDiagMessage::InetResponse(response) => Some(ListeningSocket::from(*response)),
            _ => None,
        }));
    }
    found.sort_by_key(|socket| (socket.address.port(), socket.address.ip(), socket.inode));
    Ok(found)
}

impl From<InetResponse> for ListeningSocket {
    /// Converts a response. For a listener, sock_diag shows the number of waiting connections as its receive queue, and
    /// their limit as its send queue (`tcp_diag_get_info`).
    fn from(InetResponse { header, nlas }: InetResponse) -> Self {
        let SocketId { source_address, source_port, cookie: [a, b, c, d, e, f, g, h], .. } = header.socket_id;
        // The lower half comes first (`sock_diag_save_cookie`).
        let [low, high] = [[a, b, c, d], [e, f, g, h]].map(u32::from_ne_bytes);
        let ipv6_only = nlas.iter().find_map(|nla| match nla {
            Nla::SkV6Only(only) => Some(*only),
            _ => None,
        });
        Self {
            address: SocketAddr::new(source_address, source_port),
            ipv6_only: ipv6_only.filter(|_| matches!(source_address, IpAddr::V6(_))),
            backlog: Backlog { waiting: header.recv_queue, limit: header.send_queue },
            inode: u64::from(header.inode),
            cookie: u64::from(low) | u64::from(high) << 32,
        }
    }
}
