//! Special listeners: those that have Fast Open keys of their own, or that need no cookie. The program is told their ports, and
//! their keys, since their SYNs can't be judged by the sysctl's keys.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Result;
use tfo_common::listener::{NO_COOKIE, OWN_KEYS, Record};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::flood::is_its;
use crate::{
    kernel::{
        listeners::{NoCookie, Walk},
        route,
        sysctl::{KernelKeys, SERVER, read_mode},
    },
    model::{guards::SpecialPorts, keys::PortKeys, services::Services},
};

/// Interval between two looks at the listeners. A change of their keys is to be seen within a second.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// Watch over the special listeners.
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
    /// Listeners with keys of their own.
    own: Vec<Record>,
    /// Listeners without, which have Fast Open.
    plain: Vec<Record>,
    /// Services that have the protection `shed`: their names, whether it acts on listeners with keys that are not known, and
    /// which of [`own`](Self::own) are theirs.
    sheds: Vec<(String, bool, Vec<Record>)>,
    /// Ports whose listeners have different keys.
    differing: BTreeSet<u16>,
    /// All warnings, as they were last logged.
    warnings: Vec<String>,
    /// Reason why the listeners can't be read. The same reason is logged once.
    failure: Option<String>,
    /// Likewise for their keys.
    key_failure: Option<String>,
    /// Whether the kernel has refused the program that reads them. It is tried again after a change of the configuration.
    is_refused: bool,
}

impl Special {
    /// Reads everything anew at the next look, which is due at once. Warnings are logged again.
    pub fn look_again(&mut self) {
        (self.looked, self.has_routes, self.is_refused) = (None, false, false);
        self.warnings.clear();
    }

    /// Looks at the listeners, if that is due, by `walk`, which is loaded for it. Returns whether it has looked;
    /// [`keys`](Self::keys) comes next then. If the listeners can't be read, the ports of the last look stay. Where no cookie is
    /// needed matters only if some program `shields`.
    pub async fn look(&mut self, services: &Services, walk: &mut Option<Walk>, shields: bool) -> bool {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return false;
        }
        self.looked = Some(Instant::now());
        if !shields {
            (self.no_cookie, self.has_routes) = (NoCookie::default(), false);
        } else if !self.has_routes {
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
        self.no_cookie.sysctl = shields && NoCookie::is_for_all(self.tcp_fastopen);
        self.ports.all_no_cookie = self.no_cookie.sysctl;
        match self.read(walk) {
            Ok(Some(records)) => {
                self.failure = None;
                self.sort(services, &records, shields);
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
        true
    }

    /// Returns the special ports.
    pub fn ports(&self) -> &SpecialPorts {
        &self.ports
    }

    /// Reads the keys of the listeners that the last look has found to have their own. Call it below
    /// [`leaving_no_trace`](crate::util::secrecy::leaving_no_trace).
    pub fn keys(&mut self, walk: Option<&mut Walk>) -> Zeroizing<Vec<PortKeys>> {
        let mut own = Zeroizing::new(Vec::new());
        if let (false, Some(walk)) = (self.own.is_empty(), walk) {
            match walk.read_keys() {
                Ok(read) => (own, self.key_failure) = (read, None),
                Err(error) => {
                    let failure = format!("{error:#}");
                    if self.key_failure.as_ref() != Some(&failure) {
                        info!("cookies of listeners with keys of their own are not known: {failure}");
                    }
                    self.key_failure = Some(failure);
                }
            }
        }
        for keys in own.iter_mut().filter(|keys| self.plain.iter().any(|plain| plain.port == keys.port)) {
            let kernel = KernelKeys::read().unwrap_or_default();
            keys.add(kernel.current, kernel.backup);
            keys.is_uniform = false;
        }
        self.ports.known = own.iter().map(|keys| keys.port).collect();
        self.differing = own.iter().filter(|keys| !keys.is_uniform).map(|keys| keys.port).collect();
        self.warn();
        own
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
    fn sort(&mut self, services: &Services, records: &[Record], shields: bool) {
        let with = |flag| {
            records.iter().filter(move |record| record.fast_open_limit > 0 && record.flags & flag != 0)
        };
        let ports = |flag| with(flag).map(|record| record.port).collect::<BTreeSet<_>>();
        self.ports.own_keys = ports(OWN_KEYS);
        // Without that bit, no listener has Fast Open.
        let has_fast_open = shields && self.tcp_fastopen & SERVER != 0;
        self.ports.no_cookie = if has_fast_open { ports(NO_COOKIE) } else { BTreeSet::new() };
        self.no_cookie.listeners = if has_fast_open { addresses(with(NO_COOKIE)) } else { Vec::new() };
        self.own = with(OWN_KEYS).copied().collect();
        let is_plain = |record: &&Record| record.fast_open_limit > 0 && record.flags & OWN_KEYS == 0;
        let shares = |record: &&Record| self.ports.own_keys.contains(&record.port);
        self.plain = records.iter().filter(is_plain).filter(shares).copied().collect();
        let sheds = services.named().iter().filter_map(|named| {
            let its = self.own.iter().filter(|record| is_its(named, record)).copied().collect();
            Some((named.name.clone(), named.guards.shed?.own_keys, its))
        });
        self.sheds = sheds.collect();
    }

    /// Logs the warnings that are new.
    fn warn(&mut self) {
        let is_unknown = |record: &&Record| !self.ports.known.contains(&record.port);
        let mut warnings: Vec<_> = self
            .sheds
            .iter()
            .filter_map(|(name, sheds, its)| {
                own_keys_warning(name, *sheds, &addresses(its.iter().filter(is_unknown)))
            })
            .collect();
        warnings.extend(self.differing.iter().map(|port| {
            let its = self.own.iter().chain(&self.plain).filter(|record| record.port == *port);
            format!(
                "listeners on port {port} have different Fast Open keys: one refuses the cookies of another, and tfo \
                 translates and sheds none there: {}",
                addresses(its).join(", ")
            )
        }));
        warnings.extend(self.no_cookie.text().map(|text| format!("{text}: {}", self.no_cookie.advice())));
        for warning in &warnings {
            if !self.warnings.contains(warning) {
                warn!("{warning}");
            }
        }
        self.warnings = warnings;
    }
}

/// Returns the warning about the listeners with keys of their own that can't be read, at `addresses`, which belong to the service
/// `name` with the protection `shed`; `None` if there are no such listeners. `sheds` says whether it acts on their SYNs, too.
pub fn own_keys_warning(name: &str, sheds: bool, addresses: &[String]) -> Option<String> {
    let at = addresses.join(", ");
    let what = match sheds {
        true => "and `shed` takes their good cookies for forged ones (own_keys = true)",
        false => "so `shed` leaves all SYNs to their ports alone (own_keys = true sheds them, good ones too)",
    };
    (!addresses.is_empty())
        .then(|| format!("service {name}: listeners have keys of their own that can't be read, {what}: {at}"))
}

/// Returns the addresses and ports of `records`, each once.
fn addresses<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<String> {
    let address = |record: &Record| std::net::SocketAddr::new(record.local_address(), record.port);
    let all: BTreeSet<_> = records.map(address).collect();
    all.iter().map(ToString::to_string).collect()
}
