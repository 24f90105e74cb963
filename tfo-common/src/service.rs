//! Services: the groups of ports by which an operator wants things counted.

use crate::segment::Family;

/// The service of every port that no other names.
pub const OTHER: u32 = 0;
/// The bytes that a name has at most.
pub const NAME_LEN: usize = 32;
/// The ports of services with the addresses that they name, at most.
pub const ADDRESSES: usize = 1 << 14;
/// The ports that there are.
pub const PORTS: usize = 1 << 16;

/// Set in the entry of a port where the address decides: with it stands the service of what no address names.
pub const BY_ADDRESS: u32 = 1 << 31;
/// The bits of [`address_key`] before the address.
pub const PORT_BITS: u32 = 32;

/// A port and an address of this host, as the map of addresses knows them: [`address_scope`], then the address as
/// [`Addresses::destination_v6`](crate::segment::Addresses::destination_v6) has it.
#[inline(always)]
pub const fn address_key(port: u16, family: Family, [a0, a1, a2, a3]: [u32; 4]) -> [u32; 5] {
    [address_scope(port, family), a0, a1, a2, a3]
}

/// The first word of an [`address_key`]: the port's two bytes in network byte order, the [`Family`] index, and a zero. No prefix of
/// either family has addresses of the other.
#[inline(always)]
pub const fn address_scope(port: u16, family: Family) -> u32 {
    port.swap_bytes() as u32 | (family as u32) << 16
}

/// One service, as the commands find it in its map; the program only knows its index there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// Its name in UTF-8, with zeros behind it; all zeros where there is no such service.
    pub name: [u8; NAME_LEN],
}

impl Service {
    /// The service called `name`; `None` where that is empty or too long.
    pub fn new(name: &str) -> Option<Self> {
        let mut service = Self::default();
        service.name.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        if name.is_empty() { None } else { Some(service) }
    }

    /// Its name; `None` where there is no such service.
    pub fn name(&self) -> Option<&str> {
        let len = self.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
        core::str::from_utf8(&self.name[..len]).ok().filter(|name| !name.is_empty())
    }
}
