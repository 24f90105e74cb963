//! XDP features of a driver, from the generic netlink family `netdev` (since Linux 6.3).

use std::io;

use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use rtnetlink::{
    packet_core::{
        DecodeError, DefaultNla, Emitable, Nla as _, NlasIterator, Parseable as _, ParseableParametrized,
    },
    sys::protocols::NETLINK_GENERIC,
};

use crate::kernel::netlink;

// linux/netdev.h
const DEV_GET: u8 = 1;
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// Feature bit of a driver that runs programs which pass, drop and send back (NETDEV_XDP_ACT_BASIC).
const BASIC: u64 = 1;
/// Feature bit of a driver that gives them frames in several buffers (NETDEV_XDP_ACT_RX_SG).
const SEVERAL_BUFFERS: u64 = 1 << 5;

/// What a driver does for XDP programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    /// Whether it runs them.
    pub(super) runs: bool,
    /// Whether it gives them frames in several buffers.
    pub(super) several_buffers: bool,
}

/// Returns the features of the driver of the interface with this index; `None` if the kernel lacks the family.
pub(super) fn features(index: u32) -> io::Result<Option<Features>> {
    let family = match family(Netdev::family_name()) {
        Ok(family) => family,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut question =
        GenlMessage::from_payload(Netdev(vec![DefaultNla::new(IFINDEX, index.to_ne_bytes().to_vec())]));
    question.set_resolved_family_id(family);
    let answer = netlink::ask(NETLINK_GENERIC, question)?;
    let bits = answer.payload.xdp_features()?;
    Ok(Some(Features { runs: bits & BASIC != 0, several_buffers: bits & SEVERAL_BUFFERS != 0 }))
}

/// Returns the number of the generic netlink family `name`.
fn family(name: &str) -> io::Result<u16> {
    let question = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(name.to_owned())],
    });
    let answer = netlink::ask(NETLINK_GENERIC, question)?;
    let number = answer.payload.nlas.iter().find_map(|attribute| match attribute {
        GenlCtrlAttrs::FamilyId(number) => Some(*number),
        _ => None,
    });
    number.ok_or_else(|| io::Error::other(format!("the kernel gave the family {name} no number")))
}

/// Message of the family `netdev` about one interface.
#[derive(Debug)]
struct Netdev(Vec<DefaultNla>);

impl Netdev {
    fn xdp_features(&self) -> io::Result<u64> {
        let found =
            self.0.iter().find(|nla| nla.kind() == XDP_FEATURES && nla.value_len() == size_of::<u64>());
        let mut value = [0; size_of::<u64>()];
        found.ok_or_else(|| io::Error::other("the kernel tells no XDP features"))?.emit_value(&mut value);
        Ok(u64::from_ne_bytes(value))
    }
}

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        DEV_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        self.0.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(attributes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        NlasIterator::new(attributes).map(|nla| DefaultNla::parse(&nla?)).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_the_kernel_lacks_is_not_found() {
        // Before Linux 6.3, the answer for `netdev` is the same.
        assert_eq!(family("nonesuch").err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
        assert!(family("nlctrl").is_ok());
    }
}
