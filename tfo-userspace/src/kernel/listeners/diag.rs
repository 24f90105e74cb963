//! Which sockets listen: asked of sock_diag(7).

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
pub(super) struct Listening {
    /// Where it listens.
    pub address: SocketAddr,
    /// Of an IPv6 socket: whether IPv4 is not for it.
    pub ipv6_only: Option<bool>,
    /// What waits to be accepted.
    pub backlog: Backlog,
    /// The socket's inode; 0 where it has none.
    pub inode: u64,
}

/// Every listening TCP socket of the calling thread's network namespace, by port.
pub(super) fn listening() -> Result<Vec<Listening>> {
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
            SockDiagMessage::InetResponse(response) => Some(Listening::from(*response)),
            _ => None,
        }));
    }
    found.sort_by_key(|listening| (listening.address.port(), listening.address.ip(), listening.inode));
    Ok(found)
}

impl From<InetResponse> for Listening {
    /// Of a listener, sock_diag gives what waits as its receive queue, and the limit as its send queue
    /// (`tcp_diag_get_info`).
    fn from(InetResponse { header, nlas }: InetResponse) -> Self {
        let SocketId { source_address, source_port, .. } = header.socket_id;
        let ipv6_only = nlas.iter().find_map(|nla| match nla {
            Nla::SkV6Only(only) => Some(*only),
            _ => None,
        });
        Self {
            address: SocketAddr::new(source_address, source_port),
            ipv6_only: ipv6_only.filter(|_| matches!(source_address, IpAddr::V6(_))),
            backlog: Backlog { waiting: header.recv_queue, limit: header.send_queue },
            inode: u64::from(header.inode),
        }
    }
}
