//! Network interfaces, asked over rtnetlink: names, link layers, and the XDP programs on them.

use anyhow::{Context as _, Result, bail};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    LinkGetRequest,
    packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
};
use tfo_common::{info::Attach, parse::LinkLayer};

/// The longest name of an interface, in bytes: IFNAMSIZ with its zero.
const LONGEST_NAME: usize = libc::IFNAMSIZ - 1;

/// Takes `name` where the kernel does (`dev_valid_name`), or says why not.
pub fn parse_name(name: &str) -> Result<String, String> {
    let why = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > LONGEST_NAME {
        format!("it is longer than {LONGEST_NAME} bytes")
    } else if name == "." || name == ".." {
        "it is . or ..".to_owned()
    // 0xa0 is a blank in Latin-1, in which the kernel reads it.
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
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// How its frames begin.
    pub link_layer: LinkLayer,
    /// The longest packet that it takes, in bytes, without the link layer's header.
    pub mtu: u32,
    /// The XDP program on it.
    pub xdp: Option<XdpOnInterface>,
}

/// An XDP program that is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpOnInterface {
    /// The kernel's id of the program.
    pub program_id: u32,
    /// Where it runs; a program offloaded to the hardware counts as native.
    pub attach: Attach,
}

impl Interface {
    /// The interface called `name`.
    pub async fn find(name: &str) -> Result<Self> {
        let found = ask(|links| links.match_name(name.to_owned())).await?;
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
            mtu: mtu.with_context(|| format!("the kernel does not tell the MTU of {name}"))?,
            xdp: xdp_in(&message),
        })
    }
}

/// The XDP program on the interface of this index, whatever its name is now, in the calling thread's network namespace.
/// `None` where there is none, or no such interface.
pub async fn xdp_at(index: u32) -> Result<Option<XdpOnInterface>> {
    Ok(ask(|links| links.match_index(index)).await?.as_ref().and_then(xdp_in))
}

/// The first interface for which the kernel is asked; `None` where there is none such.
async fn ask(select: impl FnOnce(LinkGetRequest) -> LinkGetRequest) -> Result<Option<LinkMessage>> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let found = select(handle.link().get()).execute().try_next().await;
    connection.abort();
    match found {
        Err(rtnetlink::Error::NetlinkError(error)) if is_no_such_interface(&error) => Ok(None),
        found => found.context("cannot ask the kernel about its interfaces"),
    }
}

/// The kernel says ENODEV for an unknown name, and EINVAL or ERANGE for one that is too long to be one.
fn is_no_such_interface(error: &rtnetlink::packet_core::ErrorMessage) -> bool {
    matches!(-error.raw_code(), libc::ENODEV | libc::EINVAL | libc::ERANGE)
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
    // With several programs at once (driver and hardware) there is no IFLA_XDP_PROG_ID: name the driver's.
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
