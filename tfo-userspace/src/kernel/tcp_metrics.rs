//! Memory of servers that the kernel has, from the generic netlink family `tcp_metrics` (since Linux 3.7), in the calling
//! thread's network namespace.

use anyhow::{Context as _, Result};

use crate::kernel::generic::{self, Question};

/// `TCP_METRICS_ATTR_FOPEN_COOKIE` of linux/tcp_metrics.h.
const COOKIE: u16 = 10;

/// Question about the servers (`TCP_METRICS_CMD_GET`).
#[derive(Debug)]
struct Servers;

impl Question for Servers {
    const FAMILY: &'static str = "tcp_metrics";
    const COMMAND: u8 = 1;
}

/// Returns the number of cookies that the kernel holds, one for each pair of a local address and a server's.
pub fn cookies_held() -> Result<usize> {
    let servers = generic::dump::<Servers>().context("cannot ask for the cookies that the kernel holds")?;
    Ok(servers.iter().flatten().filter(|server| server.get(COOKIE).is_some()).count())
}
