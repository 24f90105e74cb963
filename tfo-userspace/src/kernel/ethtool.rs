//! Offloads of an interface that change what XDP sees of a frame (ethtool(8)).

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `SIOCETHTOOL` of linux/sockios.h.
const ETHTOOL: libc::Ioctl = 0x8946;
/// `ETHTOOL_GFLAGS` of linux/ethtool.h: reads the flags below.
const GET_FLAGS: u32 = 0x25;
/// `ETH_FLAG_RXVLAN`: the hardware takes VLAN tags out of frames, and XDP sees none.
const RECEIVES_WITHOUT_TAGS: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    cmd: u32,
    data: u32,
}

/// Whether frames of VLANs on `interface` come without their tags. What can't be read counts as no.
pub fn hides_vlans(interface: &str) -> bool {
    has_vlans(interface) && flags(interface).is_ok_and(|flags| flags & RECEIVES_WITHOUT_TAGS != 0)
}

/// Whether the calling thread's network namespace has an interface for a VLAN on `interface`.
fn has_vlans(interface: &str) -> bool {
    // The file is there only once the kernel has loaded 802.1Q. Its lines are `eth0.5 | 5 | eth0`, after two of titles.
    let text = fs::read_to_string("/proc/thread-self/net/vlan/config").unwrap_or_default();
    text.lines().skip(2).any(|line| line.rsplit('|').next().is_some_and(|on| on.trim() == interface))
}

/// Reads the flags of `interface`.
fn flags(interface: &str) -> io::Result<u32> {
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { cmd: GET_FLAGS, data: 0 };
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let ifru_data = (&raw mut value).cast();
    let mut request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data } };
    // SAFETY: the kernel reads the request, and writes to the value that it points to. Both live until the call returns.
    match unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL, &raw mut request) } {
        0 => Ok(value.data),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_can_be_read() {
        assert!(flags("lo").is_ok());
        assert!(flags("no-such-if").is_err());
        assert!(!hides_vlans("lo"));
    }
}
