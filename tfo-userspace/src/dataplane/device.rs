//! Program that an interface already has, from an earlier controller or from somebody else.

use anyhow::{Result, bail};
use aya::programs::loaded_programs;
use tfo_common::{info::Attach, names};

use super::{
    Pinned,
    link::{Linked, linked},
};
use crate::{
    dataplane::pins::Pins,
    kernel::{
        interface::{self, Interface, XdpOnInterface},
        netns,
    },
    model::settings::AttachMode,
};

/// Program that is on an interface, compared with the pins of the interface's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDevice {
    /// The interface has no program of ours. If a link is pinned, it attaches nothing any more.
    Nothing,
    /// The interface has the program that the pinned link attaches.
    Ours(Attach),
}

/// Returns the program of ours that is on `interface`. Fails if an XDP program of somebody else is in the way of `attach`, or if
/// the pins belong to another interface that still exists.
pub async fn on_device(interface: &Interface, pins: &Pins, attach: AttachMode) -> Result<OnDevice> {
    let linked = linked(pins)?;
    if let Some(linked) = linked {
        match interface.xdp {
            _ if linked.is_at_tcx_of(interface.index) && is_of_this_namespace(pins) => {
                return Ok(OnDevice::Ours(Attach::Tcx));
            }
            Some(xdp) if !linked.is_tcx && xdp.program_id == linked.program_id => {
                return Ok(OnDevice::Ours(xdp.attach));
            }
            _ => ensure_stale(pins, linked).await?,
        }
    }
    match interface.xdp {
        Some(xdp) if !goes_beside(xdp, attach) => bail!(refusal(&interface.name, xdp)),
        _ => Ok(OnDevice::Nothing),
    }
}

/// Whether the pins are of an interface in this network namespace.
fn is_of_this_namespace(pins: &Pins) -> bool {
    let info = Pinned::info_of(pins).ok();
    info.is_some_and(|info| netns::netns().is_ok_and(|here| info.netns == here))
}

/// Whether a program of ours goes beside the XDP program of somebody else. Two tfo on one interface would count every SYN twice,
/// so that has to be asked for.
fn goes_beside(xdp: XdpOnInterface, attach: AttachMode) -> bool {
    match attach {
        AttachMode::Tcx => true,
        AttachMode::Auto => !matches!(name_of(xdp).as_str(), names::PROGRAM | names::SHIELD_PROGRAM),
        AttachMode::Native | AttachMode::Generic => false,
    }
}

/// Fails unless the pinned link attaches nothing any more, because its interface is gone. An interface that was
/// renamed, is in another network namespace, or can't be looked up, does not count as gone.
async fn ensure_stale(pins: &Pins, linked: Linked) -> Result<()> {
    let name = pins.interface();
    // The kernel says so itself.
    if linked.ifindex == 0 {
        return Ok(());
    }
    let info = Pinned::info_of(pins).ok();
    let Some(info) = info.filter(|_| is_of_this_namespace(pins)) else {
        bail!(
            "{} seems to belong to an interface {name} of another network namespace: if that is gone, run \
             `tfo unload -i {name}`; if it isn't, give one of the two a BPF file system of its own (--bpffs)",
            pins.dir().display()
        );
    };
    let index = info.ifindex;
    let program = linked.program_id;
    if linked.is_at_tcx_of(index)
        || interface::xdp_at(index).await?.is_some_and(|xdp| xdp.program_id == program)
    {
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

/// Returns the name of an XDP program.
pub fn name_of(xdp: XdpOnInterface) -> String {
    let program = loaded_programs().flatten().find(|program| program.id() == xdp.program_id);
    program.as_ref().and_then(|program| program.name_as_str()).unwrap_or(NAMELESS).to_owned()
}

fn refusal(name: &str, xdp: XdpOnInterface) -> String {
    let XdpOnInterface { program_id, attach } = xdp;
    let program = name_of(xdp);
    let hint = match program.as_str() {
        names::PROGRAM | names::SHIELD_PROGRAM => {
            "a tfo that sees another BPF file system has attached it (--bpffs, or `ip netns exec`): end that tfo; or \
             the interface was renamed: run `tfo unload -i OLDNAME`"
        }
        NAMELESS => {
            "`bpftool net` names it; to go beside it, use --attach tcx (or auto); or have whoever attached it detach it first, or \
             end that other tfo"
        }
        _ => "to go beside it, use --attach tcx (or auto), or have whoever attached it detach it first",
    };
    format!(
        "{name} already has an XDP program: {program} (id {program_id}, {attach} mode). tfo leaves alone what is not \
         pinned in its own folder: {hint}"
    )
}
