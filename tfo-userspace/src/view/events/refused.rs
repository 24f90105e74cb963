//! Reasons why the kernel refused a good cookie, from the present state of listeners and host. The process that shows
//! the event reads this state.

use std::net::IpAddr;

use super::{Event, Why};
use crate::kernel::{
    listeners::{Listener, Listeners},
    sysctl::SERVER,
    tcp_ext::TcpExt,
};

/// State of this host that explains refused cookies.
#[derive(Debug)]
pub struct Host {
    listeners: Listeners,
    kernel: TcpExt,
}

impl Host {
    /// Reads the state of the calling thread's network namespace; `None` if it can't be read.
    pub fn ask() -> Option<Self> {
        Some(Self { listeners: Listeners::read().ok()?, kernel: TcpExt::read().ok()? })
    }

    /// Adds the reason to `event` if it is a refused cookie and a reason is found.
    #[must_use]
    pub fn explain(&self, event: Event) -> Event {
        let why = if event.why == Why::Refused { self.reason(&event) } else { None };
        Event { why: why.unwrap_or(event.why), ..event }
    }

    fn reason(&self, event: &Event) -> Option<Why> {
        if self.listeners.tcp_fastopen & SERVER == 0 {
            return Some(Why::ServerOff);
        }
        let (destination, port) = (event.destination?, event.destination_port?);
        let all = self.listeners.listeners.iter();
        let candidates: Vec<_> = all
            .filter(|listener| listener.address.port() == port && is_for(listener, destination))
            .filter_map(|listener| listener.fast_open.as_ref())
            .collect();
        if !candidates.is_empty() && candidates.iter().all(|fast_open| fast_open.queue == 0) {
            Some(Why::ListenerWithoutFastOpen)
        } else if candidates.iter().any(|fast_open| fast_open.has_own_keys) {
            Some(Why::OwnKey)
        } else {
            (self.kernel.listen_overflow > 0).then_some(Why::QueueFull)
        }
    }
}

/// Returns whether `listener` accepts connections to `address`.
fn is_for(listener: &Listener, address: IpAddr) -> bool {
    match (listener.address.ip(), address) {
        (own, address) if own == address => true,
        (IpAddr::V4(own), IpAddr::V4(_)) => own.is_unspecified(),
        (IpAddr::V6(own), IpAddr::V6(_)) => own.is_unspecified(),
        (IpAddr::V6(own), IpAddr::V4(_)) => own.is_unspecified() && listener.ipv6_only != Some(true),
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
    }
}
