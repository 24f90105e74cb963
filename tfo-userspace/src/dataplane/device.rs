//! XDP program that an interface already has, from an earlier controller or from somebody else.

use anyhow::{Result, bail};
use aya::programs::loaded_programs;
use tfo_common::{info::Attach, names};

use super::{Pinned, link::linked_program};
use crate::{
    dataplane::pins::Pins,
    kernel::{
        interface::{self, Interface, XdpOnInterface},
        netns,
    },
};

/// Program that is on an interface, compared with the pins of the interface's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDevice {
    /// The interface has no program. If a link is pinned, it attaches nothing any more.
    Nothing,
    /// The interface has the program that the pinned link attaches.
    Ours(Attach),
}

/// Returns the program that is on `interface`. Fails if it is somebody else's, or if the pins belong to another
/// interface that still exists.
pub async fn on_device(interface: &Interface, pins: &Pins) -> Result<OnDevice> {
    match (interface.xdp, linked_program(pins)?) {
        (Some(xdp), Some(program)) if xdp.program_id == program => Ok(OnDevice::Ours(xdp.attach)),
        (Some(xdp), _) => bail!(refusal(&interface.name, xdp)),
        (None, Some(program)) => ensure_stale(pins, program).await.map(|()| OnDevice::Nothing),
        (None, None) => Ok(OnDevice::Nothing),
    }
}

/// Fails unless the pinned link attaches nothing any more, because its interface is gone. An interface that was
/// renamed, is in another network namespace, or can't be looked up, does not count as gone.
async fn ensure_stale(pins: &Pins, program: u32) -> Result<()> {
    let name = pins.interface();
    let info = Pinned::info_of(pins).ok();
    let Some(info) = info.filter(|info| netns::netns().is_ok_and(|here| info.netns == here)) else {
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
    Ok(())
}

/// Text for a program whose name can't be read. That takes CAP_SYS_ADMIN, which a service need not have.
const NAMELESS: &str = "of unknown name";

fn refusal(name: &str, xdp: XdpOnInterface) -> String {
    let XdpOnInterface { program_id, attach } = xdp;
    let program = loaded_programs().flatten().find(|program| program.id() == program_id);
    let program = program.as_ref().and_then(|program| program.name_as_str()).unwrap_or(NAMELESS);
    let hint = match program {
        names::PROGRAM | names::SHIELD_PROGRAM => {
            "a tfo that sees another BPF file system has attached it (--bpffs, or `ip netns exec`): end that tfo; or \
             the interface was renamed: run `tfo unload -i OLDNAME`"
        }
        NAMELESS => "`bpftool net` names it; have whoever attached it detach it first, or end that other tfo",
        _ => "have whoever attached it detach it first",
    };
    format!(
        "{name} already has an XDP program: {program} (id {program_id}, {attach} mode). tfo leaves alone what is not \
         pinned in its own folder: {hint}"
    )
}
