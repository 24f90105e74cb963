//! SYNs from an address that never answers, so that their handshakes do not end.

use std::{net::IpAddr, ops::Range};

use tfo_common::segment::Family;
use tfo_userspace::lab::{
    client::Syn,
    net::{Namespace, server, source},
};

use crate::netns::{IFACE, ip, server_and_client};

/// Address from which the client sends forged SYNs.
pub fn forged(family: Family) -> IpAddr {
    source(family, 0x707)
}

/// Runs `test` with a client that can send SYNs from [`forged`] addresses. Answers to them get lost.
pub fn with_forger(test: impl FnOnce(Namespace) + Send) {
    server_and_client(|client| {
        for family in [Family::Ipv4, Family::Ipv6] {
            // The client would reset the answers. Without the neighbour's entry, the kernel would find that nobody is
            // there. Either would end the handshake.
            let address = forged(family);
            ip(&format!("route add {address} dev {IFACE}"));
            ip(&format!("neigh add {address} lladdr 02:00:00:00:00:99 nud permanent dev {IFACE}"));
        }
        test(client);
    });
}

/// Sends a SYN from a forged address and each of the ports `from`.
pub fn forge(
    client: &Namespace,
    family: Family,
    from: Range<u16>,
    to: u16,
    make: impl Fn(Syn) -> Syn + Sync,
) {
    let send = || {
        from.clone()
            .try_for_each(|port| make(Syn::new(port, to, 1)).send(forged(family), server(family).ip()))
    };
    client.run(send).expect("the client can send from any of its addresses");
}
