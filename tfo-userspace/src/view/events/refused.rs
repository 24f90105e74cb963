//! Why the kernel did not take a good cookie: what the listener and the host say now, in the process that shows the event.

use std::net::IpAddr;

use super::{Event, Why};
use crate::kernel::{
    listeners::{Listener, Listeners},
    sysctl::SERVER,
    tcp_ext::TcpExt,
};

/// What is asked to tell.
#[derive(Debug)]
pub struct Host {
    listeners: Listeners,
    kernel: TcpExt,
}

impl Host {
    /// The host as it is, in the calling thread's network namespace; `None` where it can't be asked.
    pub fn ask() -> Option<Self> {
        Some(Self { listeners: Listeners::read().ok()?, kernel: TcpExt::read().ok()? })
    }

    /// The same event, with the reason why it was refused, where that can be told and it was.
    #[must_use]
    pub fn explain(&self, event: Event) -> Event {
        let why = if event.why == Why::Refused { self.why(&event) } else { None };
        Event { why: why.unwrap_or(event.why), ..event }
    }

    fn why(&self, event: &Event) -> Option<Why> {
        if self.listeners.tcp_fastopen & SERVER == 0 {
            return Some(Why::ServerOff);
        }
        let (destination, port) = (event.destination?, event.destination_port?);
        let all = self.listeners.listeners.iter();
        let asked: Vec<_> = all
            .filter(|listener| listener.address.port() == port && is_for(listener, destination))
            .filter_map(|listener| listener.fast_open.as_ref())
            .collect();
        if !asked.is_empty() && asked.iter().all(|fast_open| fast_open.queue == 0) {
            Some(Why::ListenerWithoutFastOpen)
        } else if asked.iter().any(|fast_open| !fast_open.own_keys.is_empty()) {
            Some(Why::OwnKey)
        } else {
            (self.kernel.listen_overflow > 0).then_some(Why::QueueFull)
        }
    }
}

/// Whether connections to `address` are for `listener`.
fn is_for(listener: &Listener, address: IpAddr) -> bool {
    match (listener.address.ip(), address) {
        (own, address) if own == address => true,
        (IpAddr::V4(own), IpAddr::V4(_)) => own.is_unspecified(),
        (IpAddr::V6(own), IpAddr::V6(_)) => own.is_unspecified(),
        (IpAddr::V6(own), IpAddr::V4(_)) => own.is_unspecified() && listener.ipv6_only != Some(true),
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
    }
}
