//! From one generation of maps and programs to the next: loading it, putting it in force in one step, and taking that back.
//!
//! Whatever a change is about, a start, a reload, other sizes or a newer tfo, it is made in this way. No packet sees half of it:
//! all is in the new maps before BPF_LINK_UPDATE puts the new program in the place of the old one.

use std::{
    collections::BTreeSet,
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{
    CgroupAttachMode, ProgramError,
    links::{FdLink, PinnedLink},
    loaded_programs,
};
use jiff::Timestamp;
use tfo_common::{
    info::{Attach, Info, LAYOUT_VERSION},
    keyring::KeyRing,
    names,
};
use tracing::{debug, warn};

use super::{
    LoadOptions, Object,
    carry::{EarlierGeneration, EarlierGenerations},
    object::{SharedMaps, wait_for_running_programs},
    syscall,
    tables::Shared,
};
use crate::{
    dataplane::pins::{Generation, Locked, rename_if_there},
    kernel::{cgroup, interface::Interface, netns},
    model::{guards::Hidden, services::Services, settings::AttachMode},
};

/// What is to be loaded for an interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// The constants of both programs and the sizes of their maps; without the seed, which is that of what was there before.
    pub options: LoadOptions,
    /// By which services is counted, and what is done to their packets.
    pub services: Services,
}

/// A generation that is loaded and verified, with all in its maps but what changes until it comes into force.
pub struct Built {
    /// What it was made from.
    pub program: Program,
    object: Object,
    past: EarlierGenerations,
    shared: Vec<&'static str>,
    /// Why connections can't be followed, if they can't.
    outcomes: Result<(), String>,
}

impl Built {
    /// Loads `program` for `interface`, where there are these generations already, the oldest first.
    ///
    /// The verifier takes its time, and nothing that is in force is touched: to be called on a thread of its own.
    pub fn new(interface: &str, program: Program, generations: &[Generation]) -> Result<Self> {
        let past = EarlierGenerations::open(interface, generations)?;
        let seed = match &past.in_force {
            Some(earlier) => earlier.info().seed,
            // Nobody who sends packets is to know it.
            None => getrandom::u64().context("no random number")?,
        };
        let options = LoadOptions { seed, ..program.options };
        let (shared, before) = match &past.in_force {
            Some(earlier) => (earlier.shareable(options.sizes.rows())?, earlier.names()),
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
        Ok(Self { program, object, past, shared, outcomes })
    }

    /// The maps, which are not in force yet.
    pub fn object(&mut self) -> &mut Object {
        &mut self.object
    }

    /// The key ring in force, where that is not in these maps.
    pub fn key_ring_before(&self) -> Result<Option<KeyRing>> {
        match &self.past.in_force {
            Some(earlier) if !self.shared.contains(&names::KEYS) => earlier.key_ring().map(Some),
            _ => Ok(None),
        }
    }

    /// Puts it in force on `interface`, with what is `hidden` by order: where `live`, in the place of the program that the pinned link attaches, else by a new
    /// link. On failure, all is as it was before.
    pub fn enforce(
        mut self,
        pins: &Locked,
        interface: &Interface,
        live: Option<Attach>,
        attach: AttachMode,
        hidden: &BTreeSet<Hidden>,
    ) -> Result<Enforced> {
        let generation = pins.next_generation()?;
        match self.try_enforce(&generation, interface, live, attach, hidden) {
            Ok(changed) => {
                let (info, former, outcomes) = changed;
                let Self { program, object, past, shared, .. } = self;
                Ok(Enforced { program, object, past, shared, generation, info, former, outcomes })
            }
            Err(error) => {
                if let Err(error) = generation.remove() {
                    debug!("{}: {error:#}", interface.name);
                }
                Err(error)
            }
        }
    }

    fn try_enforce(
        &mut self,
        generation: &Generation,
        interface: &Interface,
        live: Option<Attach>,
        attach: AttachMode,
        hidden: &BTreeSet<Hidden>,
    ) -> Result<(Info, Former, Result<(), String>)> {
        self.object.pin(generation)?;
        self.object.set_hidden(hidden)?;
        self.object.carry_counts(&self.past, &self.shared)?;
        let before = self.past.in_force.as_ref().map(|earlier| *earlier.info());
        let mut former = Former::default();
        // Connections first: what the new program serves is to be remembered from the first packet on.
        let outcomes = self.follow_connections(generation, &mut former);
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
            // What is to be known of the keys is told when they are looked at: what another controller wanted says nothing.
            ..Info::default()
        };
        // Before the link: whoever finds that finds the rest complete.
        let enforced =
            self.object.info.set(0, Shared(info), 0).context("cannot write the info map").and_then(
                |()| match (link, &self.past.linked) {
                    (Some(link), _) => {
                        let path = generation.link();
                        link.pin(&path)
                            .map(drop)
                            .with_context(|| format!("cannot pin the link at {}", path.display()))
                    }
                    (None, Some(linked)) => {
                        let program = self.object.program()?.fd()?.as_fd().try_clone_to_owned()?;
                        former.replace(&linked.link(), program.as_fd())
                    }
                    (None, None) => Err(anyhow!("there is no link to update")),
                },
            );
        if let Err(error) = enforced {
            former.restore();
            return Err(error).with_context(|| format!("cannot take over the program on {}", interface.name));
        }
        Ok((info, former, outcomes))
    }

    /// Has the kernel's TCP tell the program of this generation what becomes of connections; else why not.
    fn follow_connections(&mut self, generation: &Generation, former: &mut Former) -> Result<(), String> {
        self.outcomes.clone()?;
        let before = self.past.linked.as_ref().map(Generation::outcomes_link);
        let follow = || {
            let program = self.object.outcomes_program()?;
            match before.filter(|link| link.exists()) {
                Some(link) => {
                    let program = program.fd()?.as_fd().try_clone_to_owned()?;
                    former.replace(&link, program.as_fd())
                }
                None => {
                    let cgroup = cgroup::Cgroup2::find()?
                        .root()
                        .map_err(|[why, advice]| anyhow!("{why}: {advice}"))?;
                    let context = || format!("cannot attach to {}", cgroup.display());
                    let dir = File::open(&cgroup).with_context(context)?;
                    // A link always leaves room for others (`cgroup_bpf_link_attach`), and takes no flag that says so.
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

/// What is hidden by order in the maps in force under `pins`.
pub fn hidden_in(pins: &Locked) -> Result<Vec<Hidden>> {
    let Some(generation) = pins.in_force()? else { return Ok(Vec::new()) };
    // Where that can't be told, it is said when the rest of these maps is to be carried over.
    EarlierGeneration::open(&generation)?.map_or(Ok(Vec::new()), |earlier| earlier.hidden())
}

impl Object {
    /// Loads the program that follows connections; else why the kernel refused it.
    fn verify_outcomes(&mut self) -> Result<(), String> {
        let load = |object: &mut Self| {
            object.outcomes_program()?.load().map_err(|error| {
                debug!("{error:#}");
                // Not with all that the verifier says of it.
                let cause = match &error {
                    ProgramError::LoadError { io_error, .. } => io_error.to_string(),
                    other => other.to_string(),
                };
                anyhow!("the kernel refused the program, which needs Linux 5.15: {cause}")
            })
        };
        load(self).map_err(|error| format!("{error:#}"))
    }
}

/// A generation whose programs are in force, while the pins still say that the one before is.
pub struct Enforced {
    pub(super) program: Program,
    pub(super) object: Object,
    pub(super) generation: Generation,
    pub(super) info: Info,
    pub(super) outcomes: Result<(), String>,
    past: EarlierGenerations,
    shared: Vec<&'static str>,
    former: Former,
}

impl Enforced {
    /// Takes over the last that was counted and remembered before, has the pins say that this is in force, and removes all other
    /// generations. Should that fail, it is in force all the same, and the next start finds out.
    pub(super) fn settle(&mut self, pins: &Locked) -> Result<()> {
        wait_for_running_programs();
        self.object.carry_counts(&self.past, &self.shared)?;
        self.object.carry_memory(&self.past, &self.shared)?;
        if let Some(before) = &self.past.linked {
            let now = &self.generation;
            if self.outcomes.is_ok() && !now.outcomes_link().exists() {
                rename_if_there(&before.outcomes_link(), &now.outcomes_link())?;
            }
            if !now.has_link()? {
                rename_if_there(&before.link(), &now.link())?;
            }
        }
        pins.remove_others(&self.generation)
    }

    /// What it was made from.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Why connections can't be followed, if they can't.
    pub fn outcomes(&self) -> Result<(), &str> {
        self.outcomes.as_ref().copied().map_err(String::as_str)
    }

    /// Puts back what was in force before, with what was counted meanwhile.
    pub fn undo(mut self) -> Result<()> {
        self.former.restore();
        wait_for_running_programs();
        if let Some(earlier) = &self.past.in_force {
            earlier.take_back(&self.object)?;
        }
        self.generation.remove()
    }
}

/// What links attached before, to be put back.
#[derive(Default)]
struct Former(Vec<(OwnedFd, OwnedFd)>);

impl Former {
    /// Has the link that is pinned at `path` attach `program` from now on.
    fn replace(&mut self, path: &Path, program: BorrowedFd<'_>) -> Result<()> {
        let context = || format!("cannot open the pinned link {}", path.display());
        let link = FdLink::from(PinnedLink::from_pin(path).with_context(context)?);
        let id = link.info().with_context(context)?.program_id();
        let before = loaded_programs().flatten().find(|program| program.id() == id);
        let before = before.with_context(|| format!("{} attaches no program", path.display()))?.fd()?;
        let link = syscall::pinned(path).with_context(context)?;
        syscall::update_link(link.as_fd(), program)
            .with_context(|| format!("cannot update the link {}", path.display()))?;
        self.0.push((link, before.as_fd().try_clone_to_owned()?));
        Ok(())
    }

    /// Has all links attach what they attached before, the last one first.
    fn restore(&mut self) {
        while let Some((link, program)) = self.0.pop() {
            if let Err(error) = syscall::update_link(link.as_fd(), program.as_fd()) {
                warn!("cannot go back to the program before (link {}): {error}", link.as_raw_fd());
            }
        }
    }
}
