//! Metrics of the listeners' queues.

use std::{fmt, net::IpAddr};

use prometheus_client::encoding::DescriptorEncoder;

use super::{
    Snapshot,
    labels::Labels,
    text::{gauge, set},
};
use crate::kernel::listeners::{ByAddress, Totals};

/// Largest number of addresses with rows. A host may have any number of listeners.
const SHOWN: usize = 128;

/// Metric of the queues: its name, its help text, and the value.
type Metric = (&'static str, &'static str, fn(&Totals) -> u64);

const METRICS: [Metric; 6] = [
    ("tfo_listener_sockets", "Listening sockets of the address", |totals| totals.sockets),
    ("tfo_listener_syn_queue", "Ordinary handshakes that have not ended", |totals| totals.syn),
    ("tfo_listener_accept_queue", "Connections that wait to be accepted", |totals| totals.accept),
    (
        "tfo_listener_accept_queue_limit",
        "Limit on connections that wait to be accepted, and on the SYN queue",
        |totals| totals.accept_limit,
    ),
    ("tfo_listener_fastopen_queue", "Fast Open connections in their handshake", |totals| totals.fast_open),
    (
        "tfo_listener_fastopen_queue_limit",
        "Limit on Fast Open connections in their handshake; 0 means off",
        |totals| totals.fast_open_limit,
    ),
];

impl Snapshot {
    /// Encodes the queues of the listeners. Nothing is written if they can't be read.
    pub(super) fn encode_listeners(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(listeners) = &self.listeners else { return Ok(()) };
        let shown = shown(listeners);
        let rows: Vec<_> = shown
            .iter()
            .map(|((port, address), totals)| {
                let (address, port) = (address.to_string(), port.to_string());
                (Labels::new(&[("address", address.as_str()), ("port", port.as_str())]), totals)
            })
            .collect();
        for (name, help, value) in METRICS {
            let mut family = gauge(encoder, name, help, None)?;
            for (labels, totals) in &rows {
                set(&mut family, &[labels], value(totals))?;
            }
        }
        let help = "Addresses with listeners that have no rows, because there are too many";
        let omitted = (listeners.len() - shown.len()) as u64;
        gauge(encoder, "tfo_listeners_omitted", help, None)?.encode_gauge::<u64>(&omitted)
    }
}

/// Returns the addresses that have rows: those with Fast Open first, then by port.
fn shown(listeners: &ByAddress) -> Vec<((u16, IpAddr), Totals)> {
    let mut shown: Vec<_> = listeners.iter().map(|(at, totals)| (*at, *totals)).collect();
    // The sort is stable, and the map is sorted by port.
    shown.sort_by_key(|(_, totals)| totals.fast_open_limit == 0);
    shown.truncate(SHOWN);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_fast_open_come_first_and_their_number_is_limited() {
        let address = IpAddr::from([127, 0, 0, 1]);
        let totals = |port: u16| Totals { fast_open_limit: u64::from(port >= 300), ..Totals::default() };
        let listeners: ByAddress = (1..400).map(|port| ((port, address), totals(port))).collect();
        let ports: Vec<_> = shown(&listeners).iter().map(|((port, _), _)| *port).collect();
        assert_eq!(ports, (300..400).chain(1..29).collect::<Vec<_>>());
    }
}
