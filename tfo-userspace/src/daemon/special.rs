//! Special listeners: those that have Fast Open keys of their own, or that need no cookie. The program is told their ports,
//! since their SYNs can't be judged by the kernel's keys.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Result;
use tfo_common::listener::{NO_COOKIE, OWN_KEYS, Record};
use tracing::{debug, info, warn};

use super::flood::is_its;
use crate::{
    kernel::{
        listeners::{NoCookie, Walk},
        route,
        sysctl::{SERVER, read_mode},
    },
    model::{guards::SpecialPorts, services::Services},
};

/// Interval between two looks at the listeners.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Watch over the special listeners. It is needed only for a program of mode `shield`.
#[derive(Default)]
pub struct Special {
    /// Time of the last look; `None` if the next one is due at once.
    looked: Option<Instant>,
    /// Whether the routes have been read since the last change of the configuration.
    has_routes: bool,
    ports: SpecialPorts,
    /// Value of `net.ipv4.tcp_fastopen`.
    tcp_fastopen: u32,
    no_cookie: NoCookie,
    /// Warnings about services that have the protection `shed`, and listeners with keys of their own.
    of_services: Vec<String>,
    /// All warnings, as they were last logged.
    warnings: Vec<String>,
    /// Reason why the listeners can't be read. The same reason is logged once.
    failure: Option<String>,
    /// Whether the kernel has refused the program that reads them. It is tried again after a change of the configuration.
    is_refused: bool,
}

impl Special {
    /// Reads everything anew at the next look, which is due at once. Warnings are logged again.
    pub fn look_again(&mut self) {
        (self.looked, self.has_routes, self.is_refused) = (None, false, false);
        self.warnings.clear();
    }

    /// Looks at the listeners, if that is due, by `walk`, which is loaded for it. Returns the special ports. If the listeners
    /// can't be read, the ports of the last look stay.
    pub async fn look(&mut self, services: &Services, walk: &mut Option<Walk>) -> &SpecialPorts {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return &self.ports;
        }
        self.looked = Some(Instant::now());
        if !self.has_routes {
            let routes = route::without_cookie().await;
            self.no_cookie.routes = routes.unwrap_or_else(|error| {
                debug!("{error:#}");
                Vec::new()
            });
            self.has_routes = true;
        }
        match read_mode() {
            Ok(bits) => self.tcp_fastopen = bits,
            Err(error) => debug!("{error:#}"),
        }
        self.no_cookie.sysctl = NoCookie::is_for_all(self.tcp_fastopen);
        self.ports.all_no_cookie = self.no_cookie.sysctl;
        match self.read(walk) {
            Ok(Some(records)) => {
                self.failure = None;
                self.sort(services, &records);
            }
            Ok(None) => {}
            Err(error) => {
                let failure = format!("{error:#}");
                if self.failure.as_ref() != Some(&failure) {
                    info!(
                        "listeners with keys of their own, and those that need no cookie, are not known: {failure}"
                    );
                }
                self.failure = Some(failure);
            }
        }
        self.warn();
        &self.ports
    }

    /// Forgets everything, while no program needs it.
    pub fn rest(&mut self) {
        *self = Self::default();
    }

    /// Returns the warnings about protections.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Reads the listeners. Returns `None` if the kernel has refused the program that does it.
    fn read(&mut self, walk: &mut Option<Walk>) -> Result<Option<Vec<Record>>> {
        if self.is_refused {
            return Ok(None);
        }
        if walk.is_none() {
            // It takes some 100 ms, so that it must not be tried every second.
            *walk = Some(Walk::load().inspect_err(|_| self.is_refused = true)?);
        }
        walk.as_mut().map(Walk::read).transpose()
    }

    /// Sorts the listeners.
    fn sort(&mut self, services: &Services, records: &[Record]) {
        let with = |flag| {
            records.iter().filter(move |record| record.fast_open_limit > 0 && record.flags & flag != 0)
        };
        let ports = |flag| with(flag).map(|record| record.port).collect::<BTreeSet<_>>();
        self.ports.own_keys = ports(OWN_KEYS);
        // Without that bit, no listener has Fast Open.
        let has_fast_open = self.tcp_fastopen & SERVER != 0;
        self.ports.no_cookie = if has_fast_open { ports(NO_COOKIE) } else { BTreeSet::new() };
        self.no_cookie.listeners = if has_fast_open { addresses(with(NO_COOKIE)) } else { Vec::new() };
        let own: Vec<&Record> = with(OWN_KEYS).collect();
        let of_services = services.named().iter().filter_map(|named| {
            let shed = named.guards.shed?;
            let its = addresses(own.iter().copied().filter(|record| is_its(named, record)));
            own_keys_warning(&named.name, shed.own_keys, &its)
        });
        self.of_services = of_services.collect();
    }

    /// Logs the warnings that are new.
    fn warn(&mut self) {
        let mut warnings = self.of_services.clone();
        warnings.extend(self.no_cookie.text().map(|text| format!("{text}: {}", self.no_cookie.advice())));
        for warning in &warnings {
            if !self.warnings.contains(warning) {
                warn!("{warning}");
            }
        }
        self.warnings = warnings;
    }
}

/// Returns the warning about the listeners with keys of their own at `addresses`, which belong to the service `name` with the
/// protection `shed`; `None` if there are no such listeners. `sheds` says whether it acts on their SYNs, too.
pub fn own_keys_warning(name: &str, sheds: bool, addresses: &[String]) -> Option<String> {
    let at = addresses.join(", ");
    let what = match sheds {
        true => "and `shed` takes their good cookies for forged ones (own_keys = true)",
        false => "so `shed` leaves all SYNs to their ports alone (own_keys = true sheds them, good ones too)",
    };
    (!addresses.is_empty()).then(|| format!("service {name}: listeners have keys of their own, {what}: {at}"))
}

/// Returns the addresses and ports of `records`, each once.
fn addresses<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<String> {
    let address = |record: &Record| std::net::SocketAddr::new(record.local_address(), record.port);
    let all: BTreeSet<_> = records.map(address).collect();
    all.iter().map(ToString::to_string).collect()
}
