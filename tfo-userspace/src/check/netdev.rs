//! What a driver can do with XDP, asked over generic netlink: the family `netdev`, since Linux 6.3.

use std::io;

use rtnetlink::{
    packet_core::{
        DecodeError, DefaultNla, Emitable as _, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
        Nla as _, NlasIterator, Parseable as _,
    },
    sys::protocols::NETLINK_GENERIC,
};

use crate::kernel::netlink;

// linux/genetlink.h
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

// linux/netdev.h
const DEV_GET: u8 = 1;
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// Programs that pass, drop and send back run in the driver (NETDEV_XDP_ACT_BASIC).
const BASIC: u64 = 1;

/// Whether the driver of the interface with this index runs XDP programs itself; `None` where the kernel does not tell.
pub(super) fn has_native_xdp(index: u32) -> io::Result<Option<bool>> {
    let family = match Generic::ask(CONTROLLER, GET_FAMILY, FAMILY_NAME, b"netdev\0") {
        Ok(answer) => u16::from_ne_bytes(answer.value(FAMILY_ID)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let answer = Generic::ask(family, DEV_GET, IFINDEX, &index.to_ne_bytes())?;
    Ok(Some(u64::from_ne_bytes(answer.value(XDP_FEATURES)?) & BASIC != 0))
}

/// A message of generic netlink: `struct genlmsghdr`, and attributes.
#[derive(Debug)]
struct Generic {
    family: u16,
    command: u8,
    attributes: Vec<DefaultNla>,
}

/// The bytes of its header: the command, the family's version, and two that are reserved.
const HEADER: usize = 4;
const VERSION: u8 = 1;

impl Generic {
    /// The answer to a question with one attribute.
    fn ask(family: u16, command: u8, attribute: u16, value: &[u8]) -> io::Result<Self> {
        let attributes = vec![DefaultNla::new(attribute, value.to_vec())];
        netlink::ask(NETLINK_GENERIC, Self { family, command, attributes })
    }

    /// The bytes of an attribute.
    fn value<const N: usize>(&self, attribute: u16) -> io::Result<[u8; N]> {
        let nla = self.attributes.iter().find(|nla| nla.kind() == attribute && nla.value_len() == N);
        let nla = nla.ok_or_else(|| io::Error::other(format!("the answer has no attribute {attribute}")))?;
        let mut value = [0; N];
        nla.emit_value(&mut value);
        Ok(value)
    }
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..HEADER].copy_from_slice(&[self.command, VERSION, 0, 0]);
        self.attributes.as_slice().emit(&mut buffer[HEADER..]);
    }
}

impl NetlinkDeserializable for Generic {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let Some((&[command, ..], attributes)) = payload.split_first_chunk::<HEADER>() else {
            return Err("a message of generic netlink without its header".into());
        };
        let attributes = NlasIterator::new(attributes).map(|nla| DefaultNla::parse(&nla?));
        Ok(Self { family: header.message_type, command, attributes: attributes.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_the_kernel_has_not_is_told_from_a_failure() {
        // As the answer for `netdev` is before Linux 6.3.
        let answer = Generic::ask(CONTROLLER, GET_FAMILY, FAMILY_NAME, b"nonesuch\0");
        assert_eq!(answer.err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
        // The controller's own family is there, and asked in the same words.
        let answer = Generic::ask(CONTROLLER, GET_FAMILY, FAMILY_NAME, b"nlctrl\0").unwrap();
        assert_eq!(u16::from_ne_bytes(answer.value(FAMILY_ID).unwrap()), CONTROLLER);
    }
}
