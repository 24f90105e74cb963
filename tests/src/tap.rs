//! An interface whose received frames are written by the test: what it writes, the kernel takes as come from the wire.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::fd::AsRawFd as _,
};

use tfo_common::parse::LinkLayer;

use crate::netns::ip;

/// A tap (Ethernet frames) or tun (IP packets) interface, which lives as long as this.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Makes it in the calling thread's namespace and brings it up.
    ///
    /// Its MAC address is the one that [`crate::packet::eth`] sends to.
    pub fn new(name: &str, link: LinkLayer) -> Self {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
        let kind = match link {
            LinkLayer::Ethernet => libc::IFF_TAP,
            LinkLayer::Ip => libc::IFF_TUN,
        };
        let mut ifr_name = [0; libc::IFNAMSIZ];
        for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = (kind | libc::IFF_NO_PI) as libc::c_short;
        let request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) };
        assert_eq!(result, 0, "TUNSETIFF: {}", io::Error::last_os_error());
        if link == LinkLayer::Ethernet {
            ip(&format!("link set {name} address 02:00:00:00:00:02"));
        }
        ip(&format!("link set {name} up"));
        Self(file)
    }

    /// Has the interface receive `frame`. The kernel has dealt with it when this returns.
    pub fn receive(&mut self, frame: &[u8]) -> io::Result<()> {
        self.0.write_all(frame)
    }
}
