//! Two network namespaces without names, joined by a veth pair.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    thread,
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

/// Where the server listens. RFC 2544 and RFC 3849: addresses that nobody routes.
pub const SERVERS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 7413),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 7413),
];
/// The client's own addresses.
const CLIENTS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2))];
/// The networks all of whose addresses are the client's too, so that it can be many clients.
const SOURCES: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(198, 19, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0)), 112),
];
const PREFIX: [u8; 2] = [16, 64];
/// The client's interface.
const CLIENT_INTERFACE: &str = "tfo-client";

/// The server's address of `family`.
pub fn server(family: Family) -> SocketAddr {
    SERVERS[family.index()]
}

/// The `number`th client's address of `family`.
pub fn source(family: Family, number: u16) -> IpAddr {
    match SOURCES[family.index()].0 {
        IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() | u32::from(number))),
        IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from_bits(network.to_bits() | u128::from(number))),
    }
}

/// A network namespace, kept alive by a descriptor.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// A new, empty one. The calling thread stays where it is.
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

    /// The calling thread's.
    pub fn current() -> Result<Self> {
        let path = "/proc/thread-self/ns/net";
        Ok(Self(File::open(path).with_context(|| format!("cannot open {path}"))?))
    }

    /// Moves the calling thread, and it only, into this namespace.
    pub fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// Runs `work` in this namespace, on a thread of its own.
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

/// One end of the veth pair.
#[derive(Clone, Copy)]
struct End<'a> {
    interface: &'a str,
    mac: [u8; 6],
    addresses: [IpAddr; 2],
}

/// Moves the calling thread into a new namespace, the server's, with `interface` joined to another new one, the
/// client's, which it returns.
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
    // One end is up only once the other is.
    wait_until_up(&handle, interface).await?;
    client.run(|| block_on(async { wait_until_up(&netlink()?, CLIENT_INTERFACE).await }))?;
    Ok(client)
}

/// Makes every address of [`SOURCES`] the client's own.
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

/// The kernel's table of local addresses (RT_TABLE_LOCAL).
const LOCAL_TABLE: u32 = 255;

/// Settings of a new namespace, before it has interfaces.
fn prepare() -> Result<()> {
    let settings = [
        // A client that met resets goes on using Fast Open.
        ("ipv4/tcp_fastopen_blackhole_timeout_sec", "0"),
        // Room for every forged SYN: under pressure the kernel switches Fast Open off.
        ("ipv4/tcp_max_syn_backlog", "65536"),
        ("core/somaxconn", "65536"),
    ];
    for (name, value) in settings {
        let path = format!("/proc/sys/net/{name}");
        fs::write(&path, value).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

/// Sets the calling thread's namespace up: loopback, the end of the veth pair that is in it, and where the other is.
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
        // It can be used at once: nobody else could have it.
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        request.execute().await.with_context(|| format!("cannot add {address} to {name}"))?;
    }
    up(index).await.with_context(|| format!("cannot bring {name} up"))?;
    for address in other.addresses {
        // Nobody has to be asked, so no first packet waits for an answer.
        let neighbour = handle.neighbours().add(index, address).link_layer_address(&other.mac);
        neighbour.execute().await.with_context(|| format!("cannot add the neighbour {address} of {name}"))?;
    }
    Ok(())
}

/// Waits until `interface` carries packets: the kernel gets round to that up to a second after both ends are up.
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

/// An rtnetlink socket in the calling thread's namespace, served by the current runtime.
fn netlink() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}
