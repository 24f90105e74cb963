//! Interfaces of the walk, which come and go.

use std::process::Command;

use nix::unistd::gettid;
use tfo_userspace::lab::net::Namespace;

use crate::{
    netns::{IFACE, eventually, ip},
    wire::Wire,
};

/// Name of the second interface.
pub const SECOND: &str = "second";
/// Names of the interfaces.
pub const INTERFACES: [&str; 2] = [IFACE, SECOND];
/// Names of the interfaces while they are renamed.
pub const RENAMED: [&str; 2] = ["renamed0", "renamed1"];
/// Peers of the first interface, in the client's namespace, and of the second one.
const CLIENT: &str = "tfo-client";
const FAR: &str = "far";
/// Addresses of the first veth pair's ends, and networks whose addresses belong to the client, too, as in the lab.
const SERVERS: [&str; 2] = ["198.18.0.1", "2001:db8::1"];
const CLIENTS: [&str; 2] = ["198.18.0.2", "2001:db8::2"];
const SOURCES: [&str; 2] = ["198.19.0.0/16", "2001:db8:1::/112"];
const SERVER_MAC: &str = "02:00:00:00:00:01";
const CLIENT_MAC: &str = "02:00:00:00:00:02";

/// Two interfaces of the calling thread's namespace. The client's namespace has the other end of the first.
#[derive(Debug)]
pub struct Topology<'a> {
    client: &'a Namespace,
}

impl<'a> Topology<'a> {
    /// Adds the second interface. [`server_and_client`](crate::netns::server_and_client) must have made the first.
    pub fn new(client: &'a Namespace) -> Self {
        let topology = Self { client };
        topology.send_checksums();
        topology.make(1);
        topology
    }

    /// Makes an interface again, with its other end, and brings it up.
    pub fn make(&self, interface: usize) {
        if interface != 0 {
            ip(&format!("link add {SECOND} address {SERVER_MAC} type veth peer name {FAR}"));
            ip(&format!("link set {FAR} up"));
            return self.bring_up(interface);
        }
        // The server's namespace is that of this thread, which waits meanwhile.
        let server = gettid();
        let make = || {
            ip(&format!("link add {CLIENT} address {CLIENT_MAC} type veth peer name {IFACE} netns {server}"));
            join(CLIENT, CLIENTS, SERVERS, SERVER_MAC);
            Ok(())
        };
        self.client.run(make).expect("the client's namespace");
        self.send_checksums();
        ip(&format!("link set {IFACE} address {SERVER_MAC}"));
        self.bring_up(interface);
    }

    /// Brings an interface up, and restores the addresses and routes that it lost when it went down.
    pub fn bring_up(&self, interface: usize) {
        if interface != 0 {
            return ip(&format!("link set {SECOND} up"));
        }
        join(IFACE, SERVERS, CLIENTS, CLIENT_MAC);
        for (network, gateway) in SOURCES.into_iter().zip(CLIENTS) {
            ip(&format!("route replace {network} via {gateway}"));
        }
    }

    /// Waits until both ends of an interface, whose name is `now`, carry packets.
    pub fn wait_until_up(&self, interface: usize, now: &str) {
        let other_end = || match interface {
            0 => self.client.run(|| Ok(is_up(CLIENT))).expect("the client's namespace"),
            _ => is_up(FAR),
        };
        eventually("both ends are up", || is_up(now) && other_end());
    }

    /// Returns the other end of an interface.
    pub fn wire(&self, interface: usize) -> Wire {
        match interface {
            0 => self.client.run(|| Ok(Wire::blind(CLIENT))).expect("the client's namespace"),
            _ => Wire::blind(FAR),
        }
    }

    /// Makes the client send complete checksums, as over a wire.
    fn send_checksums(&self) {
        let off = || Ok(Command::new("ethtool").args(["-K", CLIENT, "tx", "off"]).output()?.status.success());
        assert!(self.client.run(off).expect("ethtool is installed"));
    }
}

/// Brings one end of the first veth pair up, with its addresses and those of its neighbour.
fn join(interface: &str, own: [&str; 2], others: [&str; 2], neighbour: &str) {
    ip(&format!("link set {interface} up"));
    for ((own, length), other) in own.into_iter().zip(["16", "64 nodad"]).zip(others) {
        ip(&format!("address replace dev {interface} {own}/{length}"));
        ip(&format!("neighbour replace {other} lladdr {neighbour} dev {interface} nud permanent"));
    }
}

/// Returns whether `interface` carries packets.
fn is_up(interface: &str) -> bool {
    let link = Command::new("ip").args(["-o", "link", "show", "dev", interface]).output();
    String::from_utf8_lossy(&link.expect("iproute2 is installed").stdout).contains(" state UP ")
}
