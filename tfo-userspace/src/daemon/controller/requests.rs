//! Requests of control clients.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use tfo_common::{policy::HIDDEN, verdict::Mode};

use super::{AllMaps, Controller};
use crate::{
    control::{Reply, Request},
    daemon::site::Site,
    kernel::sysctl::KernelKeys,
    keys::keeper::Keeper,
    model::{
        guards::Hidden,
        keys::{fingerprint, parse_key},
        services::OTHER_NAME,
    },
    util::{secrecy::leaving_no_trace, time::unix_seconds},
};

impl Controller {
    /// Carries out a request. The outcome is sent to `reply`, for a reload when the change is complete.
    pub fn handle(&mut self, request: Request, reply: Reply) {
        let outcome = match request {
            Request::Reload => return self.reload(vec![reply]),
            Request::Rotate { emergency } => {
                self.with_keeper(|keeper, now, maps| keeper.rotate(emergency, now, maps))
            }
            Request::Forget => self.with_keeper(|keeper, now, maps| keeper.forget(now, maps)),
            Request::Import { key } => self.with_keeper(|keeper, now, maps| {
                let Some(key) = parse_key(key.trim_end()).filter(|key| !key.is_zero()) else {
                    bail!("this is no key: it takes xxxxxxxx-xxxxxxxx-xxxxxxxx-xxxxxxxx, not all zeros");
                };
                keeper.import(key, now, maps)
            }),
            Request::Events { interface, after, most } => self.site(&interface).and_then(|site| {
                site.take_events();
                site.events(after, most)
            }),
            Request::History { interface } => {
                self.sample();
                self.history.json(&interface, Instant::now())
            }
            Request::Hide { interface, what, on } => self.hide(&interface, what, on),
            Request::HideList { interface } => {
                self.site(&interface).and_then(|site| Ok(serde_json::to_string(site.orders.hidden())?))
            }
            Request::Fleet => serde_json::to_string(&self.fleet()).context("cannot write it as JSON"),
        };
        reply.send(outcome);
    }

    /// Carries out a request with the keeper, and returns the fingerprints of the keys in force.
    fn with_keeper(
        &mut self,
        work: impl FnOnce(&mut Keeper, u64, &mut AllMaps<'_>) -> Result<()>,
    ) -> Result<String> {
        leaving_no_trace(|| {
            let now = unix_seconds();
            let mut maps = AllMaps { sites: &mut self.sites, retire: self.retire };
            let outcome = work(&mut self.keeper, now, &mut maps);
            self.describe_keys(now);
            outcome?;
            // The answer shows the kernel's keys. They may differ from the source's if somebody else has set them.
            let KernelKeys { current, backup } = KernelKeys::read()?;
            let [current, backup] =
                [current, backup].map(|key| key.map_or_else(|| "none".to_owned(), fingerprint));
            Ok(format!("the kernel and the maps hold current {current}, backup {backup}"))
        })
    }

    /// Returns the site of `interface`.
    fn site(&mut self, interface: &str) -> Result<&mut Site> {
        let found = self.sites.iter_mut().find(|site| site.name() == interface);
        found.with_context(|| format!("this tfo does not run on {interface}"))
    }

    /// Gives an order of `tfo hide` on an interface, or takes it back.
    fn hide(&mut self, interface: &str, what: Hidden, on: bool) -> Result<String> {
        let services = &self.desired.services;
        let (target, mode) = match &what {
            Hidden::Service(name) => (format!("service {name}"), services.mode_of(name)),
            Hidden::All | Hidden::Source(_) => ("tfo".to_owned(), Some(services.mode())),
        };
        let names = || {
            let names = services.named().iter().map(|named| named.name.as_str());
            names.chain([OTHER_NAME]).collect::<Vec<_>>().join(", ")
        };
        // An order can be taken back in any mode, even if its service does not exist any more.
        match mode {
            None if on => bail!("there is no {target}: there are {}", names()),
            Some(mode) if on && mode != Mode::Shield => bail!(
                "hiding changes packets and {target} runs in mode {} here: give a service mode = \"shield\" and `tfo \
                 reload`, or start with --mode shield",
                mode.name()
            ),
            _ => {}
        }
        let (is_service, names) = (mode.is_some(), names());
        let site = self.site(interface)?;
        let mut hidden = site.orders.hidden().clone();
        if on {
            let sources = hidden.iter().filter(|hidden| matches!(hidden, Hidden::Source(_))).count();
            if matches!(what, Hidden::Source(_)) && sources >= HIDDEN && !hidden.contains(&what) {
                bail!("{HIDDEN} sources are hidden, which is the maximum: hide a shorter prefix instead");
            }
            hidden.insert(what.clone());
        } else if !hidden.remove(&what) {
            match &what {
                Hidden::Service(name) if !is_service => {
                    bail!("there is no service {name}: there are {names}")
                }
                Hidden::Source(source) => bail!("{source} is not hidden: `tfo hide --list` shows all orders"),
                Hidden::Service(_) | Hidden::All => {}
            }
        }
        let before = site.orders.set(hidden);
        // The maps come first, so that the order does not wait for the disk.
        if let Err(error) = site.order() {
            site.orders.set(before);
            return Err(error);
        }
        let done = if on { "hidden" } else { "shown" };
        let stored = site.orders.store();
        // Without orders, another program may be enough.
        self.wake.up();
        stored.with_context(|| {
            format!("{what}: {done}, but the order could not be saved and may be lost at a restart")
        })?;
        Ok(format!("{what}: {done}"))
    }
}
