//! Two network namespaces without names, joined by a veth pair.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    process, thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::TryStreamExt as _;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags},
        link::{LinkAttribute, LinkMessage, State},
        route::{RouteScope, RouteType},
    },
};
use tfo_common::segment::Family;

use crate::{kernel::interface::Interface, util::runtime::block_on};

/// Addresses and port of the server. RFC 2544 and RFC 3849 reserve these addresses, so nobody routes them.
pub const SERVERS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 7413),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 7413),
];
/// Client's own addresses.
const CLIENTS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2))];
/// Networks in which all addresses belong to the client, too, so that it can act as many clients.
const SOURCES: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(198, 19, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0)), 112),
];
const PREFIX: [u8; 2] = [16, 64];
/// Name of the client's interface.
pub const CLIENT_INTERFACE: &str = "tfo-client";

/// Returns the server's address of `family`.
pub fn server(family: Family) -> SocketAddr {
    SERVERS[family.index()]
}

/// Returns the address of client `number` of `family`.
pub fn source(family: Family, number: u16) -> IpAddr {
    match SOURCES[family.index()].0 {
        IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() | u32::from(number))),
        IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from_bits(network.to_bits() | u128::from(number))),
    }
}

/// Network namespace, kept alive by a descriptor.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// Makes an empty namespace. The calling thread stays in its own.
    pub fn new() -> Result<Self> {
        let made = thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
                    Self::current()
                })
                .join()
        });
        made.map_err(|_| anyhow!("the thread that makes a network namespace panicked"))?
    }

    /// Opens the calling thread's namespace.
    pub fn current() -> Result<Self> {
        let path = "/proc/thread-self/ns/net";
        Ok(Self(File::open(path).with_context(|| format!("cannot open {path}"))?))
    }

    /// Returns a path to it, for other programs while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }

    /// Moves the calling thread, and no other, into this namespace.
    pub fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// Runs `work` in this namespace, on another thread, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let done = thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    work()
                })
                .join()
        });
        done.map_err(|_| anyhow!("a thread in another network namespace panicked"))?
    }
}

/// End of the veth pair.
#[derive(Clone, Copy)]
struct End<'a> {
    interface: &'a str,
    mac: [u8; 6],
    addresses: [IpAddr; 2],
}

/// Moves the calling thread into a new namespace for the server, and returns a new namespace for the client. A veth
/// pair joins them, with `interface` as the server's end.
pub async fn connect(interface: &str) -> Result<Namespace> {
    // Locally administered addresses.
    let server_end = End { interface, mac: [2, 0, 0, 0, 0, 1], addresses: SERVERS.map(|server| server.ip()) };
    let client_end = End { interface: CLIENT_INTERFACE, mac: [2, 0, 0, 0, 0, 2], addresses: CLIENTS };

    let client = Namespace::new()?;
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let handle = netlink()?;
    let veth = LinkVeth::new(interface, CLIENT_INTERFACE).build();
    handle.link().add(veth).execute().await.context("cannot make a veth pair")?;
    let peer = Interface::find(CLIENT_INTERFACE).await?.index;
    let moved = LinkUnspec::new_with_index(peer).setns_by_fd(client.0.as_raw_fd()).build();
    handle.link().set(moved).execute().await.context("cannot move the client's interface")?;

    client.run(|| {
        block_on(async {
            let handle = netlink()?;
            configure(&handle, client_end, server_end).await?;
            add_sources(&handle).await
        })
    })?;
    configure(&handle, server_end, client_end).await?;
    for ((network, length), gateway) in SOURCES.into_iter().zip(CLIENTS) {
        let route =
            RouteMessageBuilder::<IpAddr>::new().destination_prefix(network, length)?.gateway(gateway)?;
        handle.route().add(route.build()).execute().await.context("cannot add the route to the clients")?;
    }
    // Each end is up only when the other is, too.
    wait_until_up(&handle, interface).await?;
    client.run(|| block_on(async { wait_until_up(&netlink()?, CLIENT_INTERFACE).await }))?;
    Ok(client)
}

/// Gives the client every address of [`SOURCES`].
async fn add_sources(handle: &Handle) -> Result<()> {
    let lo = Interface::find("lo").await?.index;
    for (network, length) in SOURCES {
        let local = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(network, length)?
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .table_id(LOCAL_TABLE)
            .output_interface(lo);
        let added = handle.route().add(local.build()).execute().await;
        added.context("cannot give the client its many addresses")?;
    }
    Ok(())
}

/// Kernel's routing table of local addresses (RT_TABLE_LOCAL).
const LOCAL_TABLE: u32 = 255;

/// Writes the sysctls of the calling thread's namespace.
fn prepare() -> Result<()> {
    let settings = [
        // Resets do not make a client stop using Fast Open.
        ("ipv4/tcp_fastopen_blackhole_timeout_sec", "0"),
        // Room for every forged SYN: under pressure, the kernel switches Fast Open off.
        ("ipv4/tcp_max_syn_backlog", "65536"),
        ("core/somaxconn", "65536"),
    ];
    for (name, value) in settings {
        let path = format!("/proc/sys/net/{name}");
        fs::write(&path, value).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

/// Sets up the calling thread's namespace: sysctls, loopback, its end of the veth pair, and the addresses of the other
/// end.
async fn configure(handle: &Handle, end: End<'_>, other: End<'_>) -> Result<()> {
    prepare()?;
    let lo = Interface::find("lo").await?.index;
    let up = |index| handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute();
    up(lo).await.context("cannot bring lo up")?;

    let name = end.interface;
    let index = Interface::find(name).await?.index;
    let mac = LinkUnspec::new_with_index(index).address(end.mac.to_vec()).build();
    handle
        .link()
        .set(mac)
        .execute()
        .await
        .with_context(|| format!("cannot set the MAC address of {name}"))?;
    for (address, prefix) in end.addresses.into_iter().zip(PREFIX) {
        let mut request = handle.address().add(index, address, prefix);
        // Without duplicate address detection, it can be used at once.
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        request.execute().await.with_context(|| format!("cannot add {address} to {name}"))?;
    }
    up(index).await.with_context(|| format!("cannot bring {name} up"))?;
    for address in other.addresses {
        // With a fixed neighbour entry, the first packet does not wait for an answer by ARP or neighbour discovery.
        let neighbour = handle.neighbours().add(index, address).link_layer_address(&other.mac);
        neighbour.execute().await.with_context(|| format!("cannot add the neighbour {address} of {name}"))?;
    }
    Ok(())
}

/// Waits until `interface` carries packets. After both ends are up, that can take the kernel a second.
async fn wait_until_up(handle: &Handle, interface: &str) -> Result<()> {
    for _ in 0..500 {
        let links = handle.link().get().match_name(interface.to_owned()).execute().try_next().await?;
        let is_up = |link: LinkMessage| link.attributes.contains(&LinkAttribute::OperState(State::Up));
        if links.is_some_and(is_up) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("{interface} is not up after 5 s")
}

/// Opens an rtnetlink socket in the calling thread's namespace, served by the current runtime.
fn netlink() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}
