//! An interface whose wire is the test: what it writes, the kernel takes as come from there, and what the kernel sends, it
//! reads.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use tfo_common::parse::LinkLayer;

use crate::netns::{eventually, ip};

/// A tap (Ethernet frames) or tun (IP packets) interface, which lives as long as this.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Makes it in the calling thread's namespace and brings it up.
    ///
    /// Its MAC address is the one that [`crate::packet::eth`] sends to.
    pub fn new(name: &str, link: LinkLayer) -> Self {
        // Native XDP sees only what is written without blocking; else an sk_buff is made first (tun_can_build_skb).
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let file = file.expect("/dev/net/tun");
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
        // An earlier one of this name lasts until no process has it open: a child of another test has, from fork to exec.
        eventually("the interface's name is free", || {
            // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) };
            let error = io::Error::last_os_error();
            assert!(result == 0 || error.kind() == io::ErrorKind::ResourceBusy, "TUNSETIFF: {error}");
            result == 0
        });
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

    /// The next frame that the kernel has sent, if there is one by now.
    pub fn sent(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; usize::from(u16::MAX)];
        match self.0.read(&mut frame) {
            Ok(len) => frame.truncate(len),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("cannot read what the interface sends: {error}"),
        }
        Some(frame)
    }
}
