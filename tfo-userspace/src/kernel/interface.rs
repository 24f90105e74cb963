//! Network interfaces, read over rtnetlink: names, link layers, and the XDP programs on them.

use anyhow::{Context as _, Result, bail};
use futures_util::TryStreamExt as _;
use nix::ifaddrs::getifaddrs;
use rtnetlink::{
    LinkGetRequest,
    packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
};
use tfo_common::{info::Attach, parse::LinkLayer};

use super::ethtool::hides_vlans;

/// The longest name of an interface, in bytes: IFNAMSIZ with its zero.
const LONGEST_NAME: usize = libc::IFNAMSIZ - 1;

/// Accepts the names that the kernel accepts (`dev_valid_name`). An error says what is wrong.
pub fn parse_name(name: &str) -> Result<String, String> {
    let why = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > LONGEST_NAME {
        format!("it is longer than {LONGEST_NAME} bytes")
    } else if name == "." || name == ".." {
        "it is . or ..".to_owned()
    // The kernel reads names as Latin-1, where 0xa0 is a blank.
    } else if name.bytes().any(|byte| matches!(byte, b' ' | b'\t'..=b'\r') || b"/:\0\xa0".contains(&byte)) {
        "it has a slash, a colon, a blank, a line break or a NUL in it".to_owned()
    } else {
        return Ok(name.to_owned());
    };
    Err(format!("{name:?} cannot be the name of an interface: {why}; `ip link` lists them"))
}

/// An interface of the calling thread's network namespace.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Name of the interface.
    pub name: String,
    /// Index of the interface.
    pub index: u32,
    /// First header of its frames.
    pub link_layer: LinkLayer,
    /// Length of the longest packet, in bytes, without the link layer's header.
    pub mtu: u32,
    /// XDP program on the interface.
    pub xdp: Option<XdpOnInterface>,
}

/// An XDP program that is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpOnInterface {
    /// Id of the program in the kernel.
    pub program_id: u32,
    /// Native or generic mode. A program that is offloaded to the hardware counts as native.
    pub attach: Attach,
}

impl Interface {
    /// Finds the interface called `name`.
    pub async fn find(name: &str) -> Result<Self> {
        let found = find_link(|links| links.match_name(name.to_owned())).await?;
        let message = match found {
            Some(message) => message,
            None => bail!("there is no interface {name} in this network namespace: `ip link` lists them"),
        };
        let link_layer = link_layer(name, message.header.link_layer_type)?;
        let mtu = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        Ok(Self {
            name: name.to_owned(),
            index: message.header.index,
            link_layer,
            mtu: mtu.with_context(|| format!("the kernel does not show the MTU of {name}"))?,
            xdp: xdp_in(&message),
        })
    }
}

/// Returns the XDP program on the interface with this index in the calling thread's network namespace.
/// `None` means no program, or no such interface. The index stays valid when the interface is renamed.
pub async fn xdp_at(index: u32) -> Result<Option<XdpOnInterface>> {
    Ok(find_link(|links| links.match_index(index)).await?.as_ref().and_then(xdp_in))
}

/// Requests one interface from the kernel; `None` means that it does not exist.
async fn find_link(select: impl FnOnce(LinkGetRequest) -> LinkGetRequest) -> Result<Option<LinkMessage>> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let found = select(handle.link().get()).execute().try_next().await;
    connection.abort();
    match found {
        Err(rtnetlink::Error::NetlinkError(error)) if is_no_such_interface(&error) => Ok(None),
        found => found.context("cannot ask the kernel about its interfaces"),
    }
}

/// The kernel returns ENODEV for an unknown name, and EINVAL or ERANGE for a name that is too long.
fn is_no_such_interface(error: &rtnetlink::packet_core::ErrorMessage) -> bool {
    matches!(-error.raw_code(), libc::ENODEV | libc::EINVAL | libc::ERANGE)
}

/// Returns the MAC address from which SYNs that come to `interface` can be answered. It is `None` if it has none, or if it
/// hides the VLANs that it has: an answer without its tag would reach nobody.
pub fn answers_as(interface: &Interface) -> Option<[u8; 6]> {
    if hides_vlans(&interface.name) { None } else { mac_address(interface.index) }
}

/// Returns the MAC address of the interface with `index`, or `None` if it has none.
fn mac_address(index: u32) -> Option<[u8; 6]> {
    let links = getifaddrs().ok()?.filter_map(|found| found.address?.as_link_addr().copied());
    links.filter(|link| link.ifindex() == index as usize).find_map(|link| link.addr())
}

fn link_layer(name: &str, kind: LinkLayerType) -> Result<LinkLayer> {
    match kind {
        LinkLayerType::Ether | LinkLayerType::Loopback => Ok(LinkLayer::Ethernet),
        LinkLayerType::None | LinkLayerType::Rawip => Ok(LinkLayer::Ip),
        other => bail!(
            "{name} has link layer {other:?}: only Ethernet and interfaces whose frames begin at the IP header \
             (tun, WireGuard) are supported"
        ),
    }
}

fn xdp_in(message: &LinkMessage) -> Option<XdpOnInterface> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => xdp_on_interface(xdp),
        _ => None,
    })
}

fn xdp_on_interface(attributes: &[LinkXdp]) -> Option<XdpOnInterface> {
    let attached = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(attached) => Some(*attached),
        _ => None,
    })?;
    let attach = match attached {
        XdpAttached::None => return None,
        XdpAttached::SocketBuffer => Attach::Generic,
        _ => Attach::Native,
    };
    // With programs in driver and hardware at once, there is no IFLA_XDP_PROG_ID: this takes the first id, the
    // driver's.
    let program_id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
            Some(*id)
        }
        _ => None,
    })?;
    Some(XdpOnInterface { program_id, attach })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_takes() {
        for name in ["eth0", "eth0.100", "...", "a%2eb", "fifteen-letters", "\u{1b}", "é"] {
            assert_eq!(parse_name(name).as_deref(), Ok(name));
        }
        let no = [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            " ",
            "a\n",
            "a\tb",
            "a\u{b}b",
            "a\0",
            "sixteen--letters",
            "à",
        ];
        for name in no {
            assert!(parse_name(name).is_err(), "{name:?}");
        }
    }
}
