//! Interface whose wire is the test: the kernel receives the frames that the test writes, and the test reads the frames
//! that the kernel sends.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use tfo_common::parse::LinkLayer;

use crate::netns::{eventually, ip};

/// Interface of kind tap (Ethernet frames) or tun (IP packets), removed when dropped.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Makes the interface in the calling thread's namespace, and brings it up.
    ///
    /// Its MAC address is the one that [`crate::packet::eth`] sends to.
    pub fn new(name: &str, link: LinkLayer) -> Self {
        // Native XDP sees only frames that are written without blocking. For others an sk_buff is made first
        // (tun_can_build_skb).
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
        // An earlier interface of this name lasts while any process has it open. A child of another test does so from
        // fork to exec.
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

    /// Makes the interface receive `frame`. The kernel has processed the frame on return.
    pub fn receive(&mut self, frame: &[u8]) -> io::Result<()> {
        self.0.write_all(frame)
    }

    /// Returns the next frame that the kernel has sent, if there is one.
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
