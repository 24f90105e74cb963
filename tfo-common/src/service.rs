//! Services: groups of ports that an operator wants counted apart.

use crate::segment::Family;

/// Index of the service for the ports that no other service names.
pub const OTHER: u32 = 0;
/// Greatest length of a name, in bytes.
pub const NAME_LEN: usize = 32;
/// Greatest number of pairs of a port and an address that services name.
pub const ADDRESSES: usize = 1 << 14;
/// Number of ports.
pub const PORTS: usize = 1 << 16;

/// Flag in the entry of a port whose service depends on the address. The other bits are the service for addresses that
/// no service names.
pub const BY_ADDRESS: u32 = 1 << 31;
/// Number of bits of an [`address_key`] before the address.
pub const PORT_BITS: u32 = 32;

/// Port in the [`address_key`] of a service that has frames dropped whose port can't be told. No service names it.
pub const NO_PORT: u16 = 0;

/// Returns the key of a port and an address of this host in the map of addresses: [`address_scope`], then the address
/// as in [`Addresses::destination_v6`](crate::segment::Addresses::destination_v6).
#[inline(always)]
pub const fn address_key(port: u16, family: Family, [a0, a1, a2, a3]: [u32; 4]) -> [u32; 5] {
    [address_scope(port, family), a0, a1, a2, a3]
}

/// Returns the first word of an [`address_key`]: the port's two bytes in network byte order, the [`Family`] index, and
/// a zero. A prefix of one family never matches an address of the other.
#[inline(always)]
pub const fn address_scope(port: u16, family: Family) -> u32 {
    port.swap_bytes() as u32 | (family as u32) << 16
}

/// A service, as the commands find it in its map. The program knows only its index there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// Name in UTF-8, with zeros behind it; all zeros if there is no such service.
    pub name: [u8; NAME_LEN],
}

impl Service {
    /// Returns the service called `name`, or `None` if the name is empty or too long.
    pub fn new(name: &str) -> Option<Self> {
        let mut service = Self::default();
        service.name.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        if name.is_empty() { None } else { Some(service) }
    }

    /// Returns the name, or `None` if there is no such service.
    pub fn name(&self) -> Option<&str> {
        let len = self.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
        core::str::from_utf8(&self.name[..len]).ok().filter(|name| !name.is_empty())
    }
}
