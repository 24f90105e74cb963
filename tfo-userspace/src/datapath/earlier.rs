//! What an earlier controller, or somebody else, left on an interface.

use anyhow::{Context as _, Result, bail};
use aya::programs::loaded_programs;
use jiff::Timestamp;
use log::{debug, warn};
use tfo_common::{
    info::{Attach, Info},
    names,
};

use super::{LoadOptions, OtherVersion, Pinned, link::linked_program};
use crate::{
    interface::{self, Interface, XdpOnInterface},
    kernel,
    pins::{MAPS, Pins},
};

/// Where an earlier controller's program runs on `interface`; `None` where there is no program at all, an error where
/// there is somebody else's.
pub(super) async fn left_behind(interface: &Interface, pins: &Pins) -> Result<Option<Attach>> {
    match (interface.xdp, linked_program(pins)?) {
        (Some(xdp), Some(program)) if xdp.program_id == program => Ok(Some(xdp.attach)),
        (Some(xdp), _) => bail!(refusal(&interface.name, xdp)),
        (None, Some(program)) => forget_stale_link(pins, program).await.map(|()| None),
        (None, None) => Ok(None),
    }
}

/// The maps that an earlier controller left.
#[derive(Clone, Copy)]
pub(super) enum Known {
    /// None.
    Nothing,
    /// Maps of our layout, which count since then.
    Ours { since_unix_ns: u64, seed: u64 },
    /// Maps of another layout, or not all of them.
    Other,
}

impl Known {
    pub(super) fn of(pins: &Pins, options: &LoadOptions) -> Result<Self> {
        let maps = pins.maps()?;
        if maps == 0 {
            return Ok(Self::Nothing);
        }
        let reason = if maps < MAPS.len() {
            format!("some of the maps in {} are missing", pins.dir().display())
        } else {
            match Pinned::open(pins) {
                Ok(pinned) if (pinned.capacity() as usize) < options.services + 2 => {
                    format!("the maps in {} have room for fewer services", pins.dir().display())
                }
                Ok(_) if !options.sizes.are_those_of(pins)? => {
                    format!("the maps in {} have another size", pins.dir().display())
                }
                Ok(pinned) => {
                    let Info { since_unix_ns, seed, .. } = *pinned.info();
                    return Ok(Self::Ours { since_unix_ns, seed });
                }
                Err(error) if error.is::<OtherVersion>() => error.to_string(),
                Err(error) => return Err(error),
            }
        };
        warn!("{}: counting starts anew: {reason}", pins.interface());
        Ok(Self::Other)
    }

    /// Since when is counted, in nanoseconds since 1970.
    pub(super) fn since(self) -> u64 {
        match self {
            Self::Ours { since_unix_ns, .. } => since_unix_ns,
            Self::Nothing | Self::Other => Timestamp::now().as_nanosecond().try_into().unwrap_or(0),
        }
    }

    /// What tags are made with: nobody who sends packets is to know it.
    pub(super) fn seed(self) -> Result<u64> {
        match self {
            Self::Ours { seed, .. } => Ok(seed),
            Self::Nothing | Self::Other => getrandom::u64().context("no random number"),
        }
    }
}

/// Removes a link that attaches nothing any more because its interface is gone; not one whose interface was renamed, nor
/// one of another namespace, nor one of which that can't be told.
async fn forget_stale_link(pins: &Pins, program: u32) -> Result<()> {
    let name = pins.interface();
    let info = Pinned::open(pins).map(|pinned| *pinned.info()).ok();
    let Some(info) = info.filter(|info| kernel::netns().is_ok_and(|here| info.netns == here)) else {
        bail!(
            "{} seems to belong to an interface {name} of another network namespace: if that is gone, run \
             `tfo unload -i {name}`; if it isn't, give one of the two a BPF file system of its own (--bpffs)",
            pins.dir().display()
        );
    };
    let index = info.ifindex;
    if interface::xdp_at(index).await?.is_some_and(|xdp| xdp.program_id == program) {
        bail!(
            "{} belongs to an interface that was called {name} and has been renamed (number {index} in `ip link`): the \
             program still runs there; to detach it, run `tfo unload -i {name}`",
            pins.dir().display()
        );
    }
    debug!("{name}: removing the link to an earlier interface of that name");
    pins.remove_link()
}

fn refusal(name: &str, xdp: XdpOnInterface) -> String {
    let XdpOnInterface { program_id, attach } = xdp;
    let program = loaded_programs().flatten().find(|program| program.id() == program_id);
    let program = program.as_ref().and_then(|program| program.name_as_str()).unwrap_or("?");
    let hint = match program {
        names::PROGRAM | names::SHIELD_PROGRAM => {
            "a tfo that sees another BPF file system has attached it (--bpffs, or `ip netns exec`): end that tfo; or \
             the interface was renamed: run `tfo unload -i OLDNAME`"
        }
        _ => "have whoever attached it detach it first",
    };
    format!(
        "{name} already has an XDP program: {program} (id {program_id}, {attach} mode). tfo leaves alone what is not \
         pinned in its own folder: {hint}"
    )
}
