//! Services: the groups of ports by which an operator wants things counted.

/// The service of every port that no other names.
pub const OTHER: u32 = 0;
/// The bytes that a name has at most.
pub const NAME_LEN: usize = 32;
/// The ports that there are.
pub const PORTS: usize = 1 << 16;

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
