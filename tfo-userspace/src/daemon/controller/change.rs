//! Changes of the desired state: reading the configuration again, and the steps until each interface has it.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use tfo_common::verdict::Mode;
use tracing::{error, info, warn};

use super::Controller;
use crate::{
    config::Config,
    control::Reply,
    daemon::{
        reconcile::Step,
        site::{Fate, Site},
    },
    dataplane::{LoadOptions, Program},
    model::{
        services::{Named, Services},
        settings::{AttachMode, Sizes},
    },
    util::{secrecy::leaving_no_trace, time::unix_seconds},
};

/// Configuration from a file.
#[derive(Clone, Debug)]
pub struct FromFile {
    /// Path of the file.
    pub path: PathBuf,
    /// Configuration in the file when it was last read and valid.
    pub config: Config,
}

/// Desired state of all interfaces.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Desired {
    /// Place in the receive path.
    pub(super) attach: AttachMode,
    /// Level up to which the program logs, in aya's numbers; 0 means off.
    pub(super) log_level: u8,
    /// Services with their modes and protections.
    pub(super) services: Services,
    /// Sizes of the protections' tables.
    pub(super) sizes: Sizes,
    /// Cookie of the network namespace whose connections are followed.
    pub(super) netns_cookie: u64,
}

impl Desired {
    /// Returns the mode of the program for `site`.
    pub(super) fn mode(&self, site: &Site) -> Mode {
        // An order of `tfo hide` stays in force in any mode.
        let hides = !site.orders.hidden().is_empty();
        if hides { Mode::Shield } else { self.services.program() }
    }

    /// Returns the program for `site`.
    fn program(&self, site: &Site) -> Program {
        let mode = self.mode(site);
        site.desired(|link| Program {
            options: LoadOptions {
                tcx: site.is_for_tcx(self.attach),
                log_level: self.log_level,
                answers: self.services.named().iter().any(Named::answers),
                services: self.services.len(),
                netns_cookie: self.netns_cookie,
                sizes: self.sizes,
                compares_data: self.services.compare_data(),
                portable: self.services.has_portable(),
                ..LoadOptions::new(link, mode)
            },
            services: self.services.clone(),
        })
    }
}

/// Change of the desired state in progress. Either all interfaces make it, or none.
pub(super) struct Change {
    /// Desired state before the change; `None` at the start.
    pub(super) former: Option<Desired>,
    /// New content of the configuration file.
    pub(super) file: Option<FromFile>,
    /// Ways back to the clients that wait for the outcome.
    pub(super) replies: Vec<Reply>,
    /// Outcome at the start, once it is known. A later change ends with its outcome.
    pub(super) outcome: Option<Result<()>>,
}

impl Controller {
    /// Reads the configuration file again, and begins a change to it. If the file has faults, nothing changes. The
    /// outcome is sent to `replies`.
    pub fn reload(&mut self, replies: Vec<Reply>) {
        if self.change.is_some() {
            return self.waiting.get_or_insert_default().extend(replies);
        }
        match self.reread() {
            Ok((services, file)) => {
                let desired = Desired { services, ..self.desired.clone() };
                let former = Some(std::mem::replace(&mut self.desired, desired));
                self.sites.iter_mut().for_each(Site::retry_now);
                self.special.look_again();
                self.change = Some(Change { former, file: Some(file), replies, outcome: None });
                // If nothing differs, the next step ends the change at once.
                self.wake.up();
            }
            Err(error) => {
                // A request gets the error as its answer. A signal has no answer.
                if replies.is_empty() {
                    error!("the configuration is not changed: {error:#}");
                }
                replies.into_iter().for_each(|reply| reply.send(Err(anyhow!("{error:#}"))));
            }
        }
    }

    /// Reads the configuration file. Fails if a setting differs that can't be changed while tfo runs.
    fn reread(&self) -> Result<(Services, FromFile)> {
        let Some(FromFile { path, config }) = &self.file else {
            bail!("this tfo runs without --config: there is no file to read again");
        };
        let new = Config::read(path)?;
        let fixed = config.fixed(&new);
        if !fixed.is_empty() {
            bail!(
                "{}: while tfo runs, these can't be changed: {}; put them back, or end tfo and start it again",
                path.display(),
                fixed.join(", ")
            );
        }
        Ok((new.services.clone(), FromFile { path: path.clone(), config: new }))
    }

    /// Makes the next step of each interface from its actual state to the desired one.
    pub(super) async fn reconcile(&mut self) {
        for mut site in std::mem::take(&mut self.sites) {
            if site.observe(self.desired.attach).await == Fate::Stays {
                site.take_built();
                self.sites.push(site);
            }
        }
        // Before a program comes into force, so that it knows its listeners from the first packet on.
        self.watch_listeners().await;
        let mut ready = Vec::new();
        for index in 0..self.sites.len() {
            let program = self.desired.program(&self.sites[index]);
            let site = &mut self.sites[index];
            match site.next_step(&program) {
                Some(Step::Order) => {
                    if let Err(error) = site.order() {
                        site.fail(&error);
                    }
                }
                Some(Step::Build) => site.build(program, &self.wake),
                Some(Step::Attach) => site.attach(self.desired.attach),
                Some(Step::Enforce) => ready.push(index),
                None => {}
            }
        }
        self.finish_change(ready);
    }

    /// Puts the loaded programs of the sites at the indices `ready` in force. During a change, it waits until all sites
    /// are ready.
    fn finish_change(&mut self, ready: Vec<usize>) {
        let Some(mut change) = self.change.take() else {
            for index in ready {
                if let Err(error) = self.enforce(&[index]) {
                    self.sites[index].fail(&error);
                }
            }
            return;
        };
        // An interface that is gone does not delay the change.
        let waits = |site: &Site| !site.is_ready(&self.desired.program(site)) && !site.is_absent();
        let failed = self.sites.iter().filter(|site| waits(site)).find_map(Site::failure);
        let outcome = match failed {
            Some(failure) => Some(Err(failure)),
            None if self.sites.iter().any(waits) => None,
            None => Some(self.enforce(&ready)),
        };
        match outcome {
            None => {}
            // The start has no earlier state to return to: `start` takes the outcome.
            Some(outcome) if change.former.is_none() => change.outcome = Some(outcome),
            Some(outcome) => return self.end_change(change, outcome),
        }
        self.change = Some(change);
    }

    /// Sends the outcome of a change to all its clients, and begins the next one if clients wait for it.
    fn end_change(&mut self, change: Change, outcome: Result<()>) {
        let summary = match (&outcome, change.file, change.former) {
            (Ok(()), Some(file), _) => {
                let mut summary = format!("{}: {}", file.path.display(), file.config.services.summary());
                info!("read again {summary}");
                self.special
                    .warnings()
                    .iter()
                    .for_each(|warning| summary += &format!("\nwarning: {warning}"));
                self.file = Some(file);
                summary
            }
            (Err(_), _, Some(former)) => {
                self.desired = former;
                self.sites.iter_mut().for_each(Site::discard_built);
                String::new()
            }
            _ => String::new(),
        };
        if let Err(error) = &outcome
            && change.replies.is_empty()
        {
            error!("the configuration is not changed: {error:#}");
        }
        for reply in change.replies {
            let outcome = outcome.as_ref().map(|()| summary.clone()).map_err(|error| anyhow!("{error:#}"));
            reply.send(outcome);
        }
        if let Some(waiting) = self.waiting.take() {
            self.reload(waiting);
        }
    }

    /// Puts the loaded programs of the sites at the indices `ready` in force, on all or on none.
    fn enforce(&mut self, ready: &[usize]) -> Result<()> {
        let (attach, now) = (self.desired.attach, unix_seconds());
        let earlier = self.keeper.earlier(now, self.retire.max_age);
        let own = leaving_no_trace(|| self.special.keys(self.walk.as_mut()));
        let mut enforced = Vec::new();
        for index in ready {
            match self.sites[*index].enforce(attach, &earlier, &own) {
                Ok(one) => enforced.push((*index, one)),
                Err(error) => {
                    for (index, one) in enforced.into_iter().rev() {
                        if let Err(error) = one.undo() {
                            warn!(
                                "{}: cannot restore the previous configuration: {error:#}",
                                self.sites[index].name()
                            );
                        }
                    }
                    return Err(error);
                }
            }
        }
        for (index, one) in enforced {
            self.sites[index].settle(one, attach);
        }
        self.describe_keys(now);
        Ok(())
    }
}
