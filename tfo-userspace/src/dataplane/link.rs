//! The link that attaches the program to an interface.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::programs::{
    ProgramError, XdpMode,
    links::{FdLink, PinnedLink},
};
use tfo_common::info::Attach;
use tracing::{debug, warn};

use super::{Object, Pinned, egress};
use crate::{
    dataplane::pins::Pins,
    kernel::{
        interface::{self, Interface},
        netns,
    },
    model::settings::AttachMode,
};

/// Returns the kernel's id of the program that the pinned link attaches, or `None` if no link is pinned.
pub fn linked_program(pins: &Pins) -> Result<Option<u32>> {
    let Some(generation) = pins.in_force()? else { return Ok(None) };
    let path = generation.link();
    let context = || format!("cannot open the pinned link {}", path.display());
    let link = PinnedLink::from_pin(&path).with_context(context)?;
    Ok(Some(FdLink::from(link).info().with_context(context)?.program_id()))
}

/// Returns whether the program behind the pinned link is still on its interface, which may have been renamed since. A
/// link attaches nothing once its interface is gone. The result is `None` if the interface is in another network
/// namespace, where it can't be looked up.
pub async fn is_attached(pins: &Pins) -> Result<Option<bool>> {
    let Some(program) = linked_program(pins)? else { return Ok(Some(false)) };
    let pinned = Pinned::open(pins)?;
    if pinned.info().netns != netns::netns()? {
        return Ok(None);
    }
    Ok(Some(runs_at(pinned.info().ifindex, program).await))
}

async fn runs_at(index: u32, program: u32) -> bool {
    interface::xdp_at(index).await.is_ok_and(|xdp| xdp.is_some_and(|xdp| xdp.program_id == program))
}

/// Detaches the program behind `pins` and removes the pins. A running controller sees that and releases its lock.
pub async fn unload(pins: &Pins) -> Result<()> {
    let patience = Instant::now() + PATIENCE;
    loop {
        // This is repeated, since a controller that is just starting may attach meanwhile.
        detach(pins).await?;
        match pins.lock(Duration::from_millis(200)) {
            Ok(pins) => return pins.remove(),
            Err(_) if Instant::now() < patience => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    let dir = pins.dir().display();
                    format!("detached, but the controller does not let go of {dir}: end it first")
                });
            }
        }
    }
}

/// Time that a controller may take to see that it has been unloaded.
const PATIENCE: Duration = Duration::from_secs(5);

/// Removes the links and waits until the XDP program is detached.
pub(super) async fn detach(pins: &Pins) -> Result<()> {
    // Links that can't be opened can still be removed.
    let attached = is_attached(pins).await.ok().flatten() == Some(true);
    let program = linked_program(pins).ok().flatten().filter(|_| attached);
    let index = Pinned::open(pins).map_or(0, |pinned| pinned.info().ifindex);
    if pins.has_egress_filter()?
        && let Err(error) = egress::remove_filter(pins)
    {
        warn!("{}: {error:#}", pins.interface());
    }
    pins.remove_links()?;
    // The kernel releases an unpinned link in the background (bpf_link_put).
    let patience = Instant::now() + Duration::from_secs(2);
    while let Some(program) = program
        && runs_at(index, program).await
    {
        if Instant::now() > patience {
            warn!("{}: somebody else holds the link and keeps the program attached", pins.interface());
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

impl Object {
    /// Attaches the program to `interface`, which has none yet, for as long as the link lives.
    pub(super) fn attach_new(&mut self, interface: &Interface, mode: AttachMode) -> Result<(Attach, FdLink)> {
        let name = &interface.name;
        let program = self.program()?;
        let mut attempt = |attach| {
            let xdp_mode = match attach {
                Attach::Native => XdpMode::Driver,
                Attach::Generic => XdpMode::Skb,
            };
            program.attach_to_if_index(interface.index, xdp_mode).map(|link| (attach, link))
        };
        let attached = match mode {
            AttachMode::Native => attempt(Attach::Native),
            AttachMode::Generic => attempt(Attach::Generic),
            AttachMode::Auto => match attempt(Attach::Native) {
                // After EBUSY and the like, generic mode would fail as well, with a less useful error.
                Err(error) if driver_may_lack_xdp(&error) => {
                    debug!("{name}: no native mode: {}", cause(&error));
                    attempt(Attach::Generic)
                }
                other => other,
            },
        };
        let (attach, link) = attached.map_err(|error| {
            let hint = if mode == AttachMode::Native {
                " (the driver may have none: try --attach auto)"
            } else {
                ""
            };
            anyhow::anyhow!("cannot attach to {name} in {} mode{hint}: {}", mode.name(), cause(&error))
        })?;
        let link = program.take_link(link)?.try_into();
        let link =
            link.with_context(|| format!("no XDP link for {name}: this kernel is older than Linux 5.10"))?;
        Ok((attach, link))
    }
}

impl AttachMode {
    const fn name(self) -> &'static str {
        match self {
            Self::Auto => "native or generic",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// Whether this setting allows a program to be attached in mode `attach`.
    pub fn allows(self, attach: Attach) -> bool {
        match self {
            Self::Auto => true,
            Self::Native => attach == Attach::Native,
            Self::Generic => attach == Attach::Generic,
        }
    }
}

/// Whether an attachment may have failed because the driver has no XDP, or none with this MTU or these channels.
fn driver_may_lack_xdp(error: &ProgramError) -> bool {
    let code = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        // This error is from aya's second attempt, over netlink, which follows EINVAL.
        _ => Some(libc::EINVAL),
    };
    !matches!(code, Some(libc::EBUSY | libc::EEXIST | libc::EPERM | libc::EACCES | libc::ENODEV))
}

/// Returns the kernel's own words for the cause of a failed attachment.
fn cause(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(error) => error.io_error.to_string(),
        other => format!("{other:#}"),
    }
}
