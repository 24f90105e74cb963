//! Loads the next generation of maps and programs, puts it in force in one step, and can undo that.
//!
//! A start, a reload, other sizes and a newer tfo are all made in this way. No packet sees half of a change: the new
//! maps are complete before BPF_LINK_UPDATE replaces the old program by the new one.

use std::{
    collections::BTreeSet,
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    pin::PinError,
    programs::{
        CgroupAttachMode, ProgramError, ProgramInfo, TcAttachType,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use jiff::Timestamp;
use tfo_common::{
    info::{Attach, Info, LAYOUT_VERSION},
    names,
    parse::LinkLayer,
};
use tracing::{debug, warn};

use super::{
    LoadOptions, Object,
    carry::{EarlierGeneration, EarlierGenerations},
    ingress::Ingress,
    object::{SharedMaps, wait_for_running_programs},
    syscall,
    tables::Shared,
    tc,
};
use crate::{
    dataplane::pins::{Generation, Locked, rename_if_there},
    kernel::{cgroup, interface::Interface, netns, syncookies},
    model::{
        guards::{Hidden, Orders},
        services::Services,
        settings::AttachMode,
    },
};

/// Options and services of the programs for an interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Constants of both programs and sizes of their maps. The seed is ignored: it is that of the earlier
    /// generation, or a new random one.
    pub options: LoadOptions,
    /// Services, with the rules for their packets.
    pub services: Services,
}

/// A generation that is loaded and verified. Its maps lack only the entries that change until it comes into force.
pub struct Built {
    /// Options and services from which it was built.
    pub program: Program,
    object: Object,
    past: EarlierGenerations,
    shared: Vec<&'static str>,
    /// Result of loading the program that follows connections, with the reason of a failure.
    outcomes: Result<(), String>,
    /// Likewise of the one that hands out portable cookies, if any service has them.
    egress: Option<Result<(), String>>,
}

impl Built {
    /// Loads `program` for `interface`, which already has `generations`, the oldest first.
    ///
    /// The verifier is slow, so this belongs on a thread of its own. It touches nothing that is in force.
    pub fn new(interface: &str, program: Program, generations: &[Generation]) -> Result<Self> {
        if program.options.answers {
            check_answers(&program.services, program.options.link)?;
        }
        let past = EarlierGenerations::open(interface, generations)?;
        let seed = match &past.in_force {
            Some(earlier) => earlier.info().seed,
            // Senders of packets must not be able to guess the seed.
            None => getrandom::u64().context("no random number")?,
        };
        let options = LoadOptions { seed, ..program.options };
        let (shared, before) = match &past.in_force {
            Some(earlier) => (earlier.shareable(options.rows())?, earlier.names()),
            None => (Vec::new(), [].as_slice()),
        };
        let shares = past
            .in_force
            .as_ref()
            .map(|earlier| SharedMaps { generation: earlier.generation(), maps: &shared });
        let mut object = Object::prepare(&options, shares)?;
        object.serve_after(&program.services, before)?;
        object.carry_memory(&past, &shared)?;
        object.verify()?;
        let outcomes = object.verify_outcomes();
        let egress = program.options.portable.then(|| object.verify_egress());
        Ok(Self { program, object, past, shared, outcomes, egress })
    }

    /// Returns the program and its maps, which are not in force yet.
    pub fn object(&mut self) -> &mut Object {
        &mut self.object
    }

    /// Puts the keys of the generation in force into these maps, unless they share the key map.
    pub fn carry_keys(&mut self) -> Result<()> {
        match &self.past.in_force {
            Some(earlier) if !self.shared.contains(&names::KEYS) => {
                self.object.publish(&earlier.key_ring()?)?;
                earlier.carry_domains(&mut self.object)
            }
            _ => Ok(()),
        }
    }

    /// Puts the generation in force on `interface`, with `orders`. If a program is `live`, the new one
    /// replaces it at the pinned link, else a new link attaches it. On failure, everything is as before.
    pub fn enforce(
        mut self,
        pins: &Locked,
        interface: &Interface,
        live: Option<Attach>,
        attach: AttachMode,
        orders: &Orders,
    ) -> Result<Enforced> {
        let generation = pins.next_generation()?;
        match self.try_enforce(pins, &generation, interface, live, attach, orders) {
            Ok(changed) => {
                let (info, updated, outcomes) = changed;
                let Self { program, object, past, shared, egress, .. } = self;
                Ok(Enforced { program, object, past, shared, generation, info, updated, outcomes, egress })
            }
            Err(error) => {
                // Nothing else would remove the link of a program that is to be in force without the XDP program.
                if let Err(error) = generation.remove() {
                    debug!("{}: {error:#}", interface.name);
                }
                Err(error)
            }
        }
    }

    fn try_enforce(
        &mut self,
        pins: &Locked,
        generation: &Generation,
        interface: &Interface,
        live: Option<Attach>,
        attach: AttachMode,
        orders: &Orders,
    ) -> Result<(Info, UpdatedLinks, Result<(), String>)> {
        self.object.pin(generation)?;
        self.pin_programs(generation)?;
        self.object.set_orders(orders)?;
        self.object.carry_counts(&self.past, &self.shared)?;
        let before = self.past.in_force.as_ref().map(|earlier| *earlier.info());
        let mut updated = UpdatedLinks::new(pins.generations()?);
        // Connections come first, so that those which the new XDP program lets through are remembered from the first
        // packet on.
        let outcomes = self.follow_connections(generation, &mut updated);
        let (attach, link) = match live {
            Some(attach) => (attach, None),
            None => {
                let (attach, link) = self.object.attach_new(interface, attach)?;
                (attach, Some(link))
            }
        };
        let info = Info {
            layout_version: LAYOUT_VERSION,
            mode: self.program.services.mode() as u32,
            attach: attach as u32,
            ifindex: interface.index,
            netns: netns::netns()?,
            since_unix_ns: match before {
                Some(before) => before.since_unix_ns,
                None => Timestamp::now().as_nanosecond().try_into().unwrap_or(0),
            },
            seed: match before {
                Some(before) => before.seed,
                None => self.object.seed(),
            },
            // The fields of keys are written when the keys are next looked at. What another controller wanted does not
            // matter.
            ..Info::default()
        };
        // The info is written before the link is pinned, so that whoever finds the link finds the rest complete.
        let enforced =
            self.object.info.set(0, Shared(info), 0).context("cannot write the info map").and_then(
                |()| match (link, &self.past.linked) {
                    (Some(attached), _) => tc::pin(attached, &generation.link(), || {
                        self.object.pin_ingress(&generation.ingress_filter())
                    }),
                    (None, Some(linked)) if linked.ingress_filter().exists() => {
                        let Ingress::Tcx(program) = self.object.ingress()? else {
                            bail!("a filter takes no XDP program")
                        };
                        tc::attach_filter(program, &interface.name, TcAttachType::Ingress, true)?;
                        self.object.pin_ingress(&generation.ingress_filter())
                    }
                    (None, Some(linked)) => {
                        let program = self.object.ingress()?.fd()?;
                        updated.replace(&linked.link(), program.as_fd())
                    }
                    (None, None) => Err(anyhow!("there is no link to update")),
                },
            );
        if let Err(error) = enforced {
            updated.restore();
            return Err(error).with_context(|| format!("cannot take over the program on {}", interface.name));
        }
        // Comes last: from now on, portable cookies are translated when they come back.
        if let Some(Ok(())) = self.egress {
            let attached = self.hand_out(generation, interface, live.is_some(), &mut updated);
            self.egress = Some(attached.map_err(|error| format!("{error:#}")));
        }
        Ok((info, updated, outcomes))
    }

    /// Attaches this generation's program that hands out portable cookies. If the XDP program `was_live`, it may replace an
    /// earlier one, else the interface is a new one and its links are dead.
    fn hand_out(
        &mut self,
        generation: &Generation,
        interface: &Interface,
        was_live: bool,
        updated: &mut UpdatedLinks,
    ) -> Result<()> {
        if let (Some(link), true) = (&self.past.egress_link, was_live) {
            let program = self.object.egress_program()?.fd()?.as_fd().try_clone_to_owned()?;
            match updated.replace(link, program.as_fd()) {
                Ok(()) => return Ok(()),
                // Somebody has detached it.
                Err(error) => debug!("{}: {error:#}", interface.name),
            }
        }
        let has_filter = self.past.egress_filter.is_some() && was_live;
        self.object.attach_egress(interface, generation, has_filter)
    }

    /// Pins the programs, so that the next change can open them: see [`UpdatedLinks`].
    fn pin_programs(&mut self, generation: &Generation) -> Result<()> {
        let pin = |path: &Path, pinned: Result<(), PinError>| {
            pinned.with_context(|| format!("cannot pin the program at {}", path.display()))
        };
        let path = generation.program();
        self.object.pin_ingress(&path)?;
        if self.outcomes.is_ok() {
            let path = generation.outcomes_program();
            pin(&path, self.object.outcomes_program()?.pin(&path))?;
        }
        if let Some(Ok(())) = self.egress {
            let path = generation.egress_program();
            pin(&path, self.object.egress_program()?.pin(&path))?;
        }
        Ok(())
    }

    /// Attaches this generation's program that follows connections. The error says why that failed.
    fn follow_connections(
        &mut self,
        generation: &Generation,
        updated: &mut UpdatedLinks,
    ) -> Result<(), String> {
        self.outcomes.clone()?;
        let before = self.past.outcomes_link.clone();
        let follow = || {
            let program = self.object.outcomes_program()?;
            match before {
                Some(link) => {
                    let program = program.fd()?.as_fd().try_clone_to_owned()?;
                    updated.replace(&link, program.as_fd())
                }
                None => {
                    let cgroup = cgroup::Cgroup2::find()?
                        .root()
                        .map_err(|[why, advice]| anyhow!("{why}: {advice}"))?;
                    let context = || format!("cannot attach to {}", cgroup.display());
                    let dir = File::open(&cgroup).with_context(context)?;
                    // A link always allows others beside it (`cgroup_bpf_link_attach`), and takes no flag for that.
                    let link = program.attach(dir, CgroupAttachMode::Single).with_context(context)?;
                    let link: FdLink = program.take_link(link)?.try_into()?;
                    let path = generation.outcomes_link();
                    link.pin(&path).map(drop).with_context(|| format!("cannot pin {}", path.display()))
                }
            }
        };
        follow().map_err(|error| format!("{error:#}"))
    }
}

/// Checks that SYNs to `services` that come through an interface with `link` can be answered, if they are to be. The error
/// says why not.
pub fn check_answers(services: &Services, link: LinkLayer) -> Result<()> {
    let Some(first) = services.named().iter().find(|named| named.answers()) else { return Ok(()) };
    let outcome = match link {
        LinkLayer::Ethernet => syncookies::support(),
        LinkLayer::Ip => Err(anyhow!("the interface has no Ethernet header, and a frame can't be sent back")),
    };
    outcome.with_context(|| format!("service {}: answer", first.name))
}

/// Returns the orders of `tfo hide` in the maps in force under `pins`.
pub fn hidden_in(pins: &Locked) -> Result<Vec<Hidden>> {
    let Some(generation) = pins.in_force()? else { return Ok(Vec::new()) };
    // Maps that can't be read are reported later, when the rest of them is carried over.
    EarlierGeneration::open(&generation)?.map_or(Ok(Vec::new()), |earlier| earlier.hidden())
}

/// Returns the services whose SYNs are answered by the program in force under `pins`.
pub fn answering_in(pins: &Locked) -> Result<BTreeSet<String>> {
    let Some(generation) = pins.in_force()? else { return Ok(BTreeSet::new()) };
    EarlierGeneration::open(&generation)?.map_or(Ok(BTreeSet::new()), |earlier| earlier.answering())
}

impl Object {
    /// Loads the program that follows connections, if need be without those from here. The error says why the kernel refused
    /// it.
    fn verify_outcomes(&mut self) -> Result<(), String> {
        let load = |object: &mut Self| {
            object.outcomes_program()?.load().map_err(|error| {
                debug!("{error:#}");
                // The error returned leaves out the verifier's output.
                let cause = match &error {
                    ProgramError::LoadError { io_error, .. } => io_error.to_string(),
                    other => other.to_string(),
                };
                anyhow!("the kernel refused the program, which needs Linux 5.15: {cause}")
            })
        };
        let mut outcome = load(self);
        if let Err(error) = &outcome
            && self.forgo_clients()
        {
            let without = load(self);
            if without.is_ok() {
                warn!("connections from here are not followed: {error:#}");
            }
            outcome = without;
        }
        outcome.map_err(|error| format!("{error:#}"))
    }
}

/// A generation whose programs are in force, while the pins still name the earlier one.
pub struct Enforced {
    pub(super) program: Program,
    pub(super) object: Object,
    pub(super) generation: Generation,
    pub(super) info: Info,
    pub(super) outcomes: Result<(), String>,
    pub(super) egress: Option<Result<(), String>>,
    past: EarlierGenerations,
    shared: Vec<&'static str>,
    updated: UpdatedLinks,
}

impl Enforced {
    /// Takes over the last counts and remembered entries of the earlier generation, moves the links' pins to this one,
    /// and removes all other generations. If that fails, this one is in force all the same, and the next start takes
    /// over from it.
    pub(super) fn settle(&mut self, pins: &Locked) -> Result<()> {
        wait_for_running_programs();
        self.object.carry_counts(&self.past, &self.shared)?;
        self.object.carry_memory(&self.past, &self.shared)?;
        let now = &self.generation;
        if self.outcomes.is_ok()
            && let Some(before) = &self.past.outcomes_link
        {
            rename_if_there(before, &now.outcomes_link())?;
        }
        if let (Some(Ok(())), Some(before)) = (&self.egress, &self.past.egress_link)
            && !now.has_egress()?
        {
            rename_if_there(before, &now.egress_link())?;
        }
        if self.past.egress_filter.is_some() && !now.egress_filter().exists() {
            tc::remove_filter(pins, TcAttachType::Egress)?;
        }
        if let Some(before) = &self.past.linked
            && !now.has_link()?
        {
            rename_if_there(&before.link(), &now.link())?;
        }
        pins.remove_others(&self.generation)
    }

    /// Returns the options and services from which it was built.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Returns whether portable cookies are handed out, if any service has them. The error is the reason why not.
    pub fn egress(&self) -> Option<Result<(), &str>> {
        self.egress.as_ref().map(|egress| egress.as_ref().copied().map_err(String::as_str))
    }

    /// Returns whether connections are followed. The error is the reason why not.
    pub fn outcomes(&self) -> Result<(), &str> {
        self.outcomes.as_ref().copied().map_err(String::as_str)
    }

    /// Puts the earlier generation back in force, and adds the counts made meanwhile to it.
    pub fn undo(mut self) -> Result<()> {
        // Before the XDP program, so that no portable cookie is handed out that is not translated.
        if self.generation.egress_filter().exists() {
            let before = self.past.egress_filter.as_deref();
            tc::restore_filter(&self.info, TcAttachType::Egress, before)?;
        }
        if self.generation.ingress_filter().exists() {
            let before = self.past.linked.as_ref().map(Generation::ingress_filter).filter(|pin| pin.exists());
            tc::restore_filter(&self.info, TcAttachType::Ingress, before.as_deref())?;
        }
        self.updated.restore();
        wait_for_running_programs();
        if let Some(earlier) = &self.past.in_force {
            earlier.take_back(&self.object)?;
        }
        self.generation.remove()
    }
}

/// Links that were updated, each with the program that it attached before.
struct UpdatedLinks {
    /// Generations that may have the pins of these programs.
    generations: Vec<Generation>,
    links: Vec<(OwnedFd, OwnedFd)>,
}

impl UpdatedLinks {
    fn new(generations: Vec<Generation>) -> Self {
        Self { generations, links: Vec::new() }
    }

    /// Replaces the program of the link that is pinned at `path` by `program`.
    fn replace(&mut self, path: &Path, program: BorrowedFd<'_>) -> Result<()> {
        let context = || format!("cannot open the pinned link {}", path.display());
        let link = FdLink::from(PinnedLink::from_pin(path).with_context(context)?);
        let id = link.info().with_context(context)?.program_id();
        let before = self.program(id).with_context(|| {
            format!(
                "cannot open the program that {} attaches. An earlier version of tfo, which did not pin it, may have \
                 attached it: `tfo unload` removes it; to take it over, start tfo once by hand, with CAP_SYS_ADMIN",
                path.display()
            )
        })?;
        let link = syscall::pinned(path).with_context(context)?;
        syscall::update_link(link.as_fd(), program)
            .with_context(|| format!("cannot update the link {}", path.display()))?;
        self.links.push((link, before));
        Ok(())
    }

    /// Opens the loaded program with this id by its pin. Without one, it takes CAP_SYS_ADMIN.
    fn program(&self, id: u32) -> Result<OwnedFd> {
        let pins = self.generations.iter();
        let pins = pins.flat_map(|one| [one.program(), one.outcomes_program(), one.egress_program()]);
        for pin in pins {
            if ProgramInfo::from_pin(&pin).is_ok_and(|program| program.id() == id) {
                return Ok(syscall::pinned(&pin)?);
            }
        }
        for program in loaded_programs() {
            let program = program?;
            if program.id() == id {
                return Ok(program.fd()?.as_fd().try_clone_to_owned()?);
            }
        }
        Err(anyhow!("it attaches no program"))
    }

    /// Puts the earlier programs back into all links, the last link first.
    fn restore(&mut self) {
        while let Some((link, program)) = self.links.pop() {
            if let Err(error) = syscall::update_link(link.as_fd(), program.as_fd()) {
                warn!("cannot go back to the program before (link {}): {error}", link.as_raw_fd());
            }
        }
    }
}
