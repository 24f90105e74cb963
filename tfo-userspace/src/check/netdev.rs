//! XDP features of a driver, from the generic netlink family `netdev` (since Linux 6.3).

use std::io;

use crate::kernel::generic::{self, Question};

// linux/netdev.h
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// Feature bit of a driver that runs programs which pass, drop and send back (NETDEV_XDP_ACT_BASIC).
const BASIC: u64 = 1;
/// Feature bit of a driver that gives them frames in several buffers (NETDEV_XDP_ACT_RX_SG).
const SEVERAL_BUFFERS: u64 = 1 << 5;

/// Features of a driver for XDP programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    /// Whether it runs them.
    pub(super) runs: bool,
    /// Whether it gives them frames in several buffers.
    pub(super) several_buffers: bool,
}

/// Question about one interface (`NETDEV_CMD_DEV_GET`).
#[derive(Debug)]
struct Netdev;

impl Question for Netdev {
    const FAMILY: &'static str = "netdev";
    const COMMAND: u8 = 1;
}

/// Returns the features of the driver of the interface with this index; `None` if the kernel lacks the family.
pub(super) fn features(index: u32) -> io::Result<Option<Features>> {
    let Some(answer) = generic::ask::<Netdev>(&[(IFINDEX, &index.to_ne_bytes())])? else { return Ok(None) };
    let bits = answer.get(XDP_FEATURES).and_then(|value| value.try_into().ok()).map(u64::from_ne_bytes);
    let bits = bits.ok_or_else(|| io::Error::other("the kernel tells no XDP features"))?;
    Ok(Some(Features { runs: bits & BASIC != 0, several_buffers: bits & SEVERAL_BUFFERS != 0 }))
}
