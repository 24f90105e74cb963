//! The queues of all listeners, read again and again.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, OnceLock, PoisonError},
};

use tfo_common::listener::Record;
use tracing::{debug, info};

use super::Walk;

/// Sums over all listeners of one address and port. Only listeners with SO_REUSEPORT can be several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Number of listeners.
    pub sockets: u64,
    /// Number of ordinary handshakes that have not ended.
    pub syn: u64,
    /// Number of connections that wait to be accepted.
    pub accept: u64,
    /// Limit on connections that wait to be accepted.
    pub accept_limit: u64,
    /// Number of Fast Open connections in their handshake.
    pub fast_open: u64,
    /// Limit on Fast Open connections in their handshake; 0 means off.
    pub fast_open_limit: u64,
}

impl Totals {
    fn add(&mut self, record: &Record) {
        self.sockets += 1;
        self.syn += u64::from(record.syn_queue);
        self.accept += u64::from(record.accept_queue);
        self.accept_limit += u64::from(record.accept_limit);
        self.fast_open += u64::from(record.fast_open_queue);
        self.fast_open_limit += u64::from(record.fast_open_limit);
    }
}

/// Sums by local port and address.
pub type ByAddress = BTreeMap<(u16, IpAddr), Totals>;

/// Reader of the listeners' queues.
#[derive(Default)]
pub struct Monitor(OnceLock<Option<Mutex<Walk>>>);

impl Monitor {
    /// Loads the program for later readings, in some 100 ms. It is not tried again if the kernel refuses it.
    ///
    /// Reading the kernel's type information takes some 60 MB. A process that has locked its memory keeps that for
    /// other use.
    pub fn load(&self) {
        self.0.get_or_init(|| {
            let refused = |error| info!("the queues of listeners are no metrics: {error:#}");
            Walk::load().map_err(refused).ok().map(Mutex::new)
        });
    }

    /// Reads the queues of the calling thread's network namespace, in a millisecond or so. The result is `None` until
    /// [`load`](Self::load) has ended, and if they can't be read.
    pub fn read(&self) -> Option<ByAddress> {
        let mut walk = self.0.get()?.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |error| debug!("the queues of listeners are missing in a scrape: {error:#}");
        walk.read().map_err(failed).ok().map(|records| by_address(&records))
    }
}

fn by_address(records: &[Record]) -> ByAddress {
    let mut sums = ByAddress::new();
    for record in records {
        sums.entry((record.port, record.local_address())).or_default().add(record);
    }
    sums
}

#[cfg(test)]
mod tests {
    use tfo_common::listener::{AF_INET, AF_INET6};

    use super::*;

    #[test]
    fn listeners_of_one_address_are_summed() {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[192, 0, 2, 1]);
        let one = Record {
            address,
            port: 80,
            family: AF_INET,
            syn_queue: 1,
            accept_queue: 2,
            accept_limit: 3,
            fast_open_queue: 4,
            fast_open_limit: 5,
            ..Record::default()
        };
        let all = [one, Record { family: AF_INET6, ..one }, one, Record { port: 81, ..one }];
        let sums = by_address(&all);
        assert_eq!(sums.len(), 3);
        let expected =
            Totals { sockets: 2, syn: 2, accept: 4, accept_limit: 6, fast_open: 8, fast_open_limit: 10 };
        assert_eq!(sums[&(80, [192, 0, 2, 1].into())], expected);
        assert_eq!(sums[&(80, "c000:201::".parse().unwrap())].sockets, 1);
        assert_eq!(sums[&(81, [192, 0, 2, 1].into())].sockets, 1);
    }
}
