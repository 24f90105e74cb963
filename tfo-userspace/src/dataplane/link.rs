//! The link that attaches the program to an interface.

use std::{
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::programs::{ProgramError, ProgramInfo, TcAttachType, XdpMode, links::FdLink};
use tfo_common::info::Attach;
use tracing::{debug, warn};

use super::{
    Object, Pinned,
    ingress::Ingress,
    syscall::{self, LinkOnInterface},
    tc::{self, Attached},
};
use crate::{
    dataplane::pins::Pins,
    kernel::{
        interface::{self, Interface},
        netns,
    },
    model::settings::AttachMode,
};

/// Pinned link, as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linked {
    /// Id of the program that it attaches.
    pub program_id: u32,
    /// Whether it attaches the program at tcx.
    pub is_tcx: bool,
    /// Index of the interface in its network namespace; 0 once the interface is gone.
    pub ifindex: u32,
}

impl Linked {
    /// Whether the program runs at tcx on the interface with this index.
    pub const fn is_at_tcx_of(&self, index: u32) -> bool {
        self.is_tcx && self.ifindex == index
    }
}

/// Returns the pinned link of the program in force, or `None` if no link is pinned.
pub fn linked(pins: &Pins) -> Result<Option<Linked>> {
    let Some(generation) = pins.in_force()? else { return Ok(None) };
    let filter = generation.ingress_filter();
    if filter.exists() {
        let program = ProgramInfo::from_pin(&filter);
        let program = program.with_context(|| format!("cannot open {}", filter.display()))?;
        let info = Pinned::info_of(pins)?;
        // The filter is gone with its interface.
        let ifindex = if tc::name_at(&info)?.is_some() { info.ifindex } else { 0 };
        return Ok(Some(Linked { program_id: program.id(), is_tcx: true, ifindex }));
    }
    let path = generation.link();
    let ask = || syscall::link_on_interface(syscall::pinned(&path)?.as_fd());
    let info = ask().with_context(|| format!("cannot open the pinned link {}", path.display()))?;
    let is_tcx = info.kind == LinkOnInterface::TCX;
    Ok(Some(Linked { program_id: info.program_id, is_tcx, ifindex: info.ifindex }))
}

/// Returns whether the program behind the pinned link is still on its interface, which may have been renamed since. A
/// link attaches nothing once its interface is gone. The result is `None` if the interface is in another network
/// namespace, where it can't be looked up.
pub async fn is_attached(pins: &Pins) -> Result<Option<bool>> {
    let Some(linked) = linked(pins)? else { return Ok(Some(false)) };
    let pinned = Pinned::open(pins)?;
    if pinned.info().netns != netns::netns()? {
        return Ok(None);
    }
    let index = pinned.info().ifindex;
    Ok(Some(if linked.is_tcx { linked.ifindex == index } else { runs_at(index, linked.program_id).await }))
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
    let linked = linked(pins).ok().flatten();
    let program = linked.filter(|linked| attached && !linked.is_tcx).map(|linked| linked.program_id);
    // Nothing shows later whether a program is still at tcx, so it is detached at once.
    let at_tcx = linked.filter(|linked| linked.is_tcx).and(pins.in_force()?);
    let at_tcx = at_tcx.map(|generation| generation.link()).filter(|link| link.exists());
    let at_tcx = at_tcx.map(|link| syscall::pinned(&link));
    let index = Pinned::open(pins).map_or(0, |pinned| pinned.info().ifindex);
    for (direction, has_filter) in
        [TcAttachType::Egress, TcAttachType::Ingress].into_iter().zip(pins.has_filters()?)
    {
        if has_filter && let Err(error) = tc::remove_filter(pins, direction) {
            warn!("{}: {error:#}", pins.interface());
        }
    }
    pins.remove_links()?;
    if let Some(link) = at_tcx
        && let Err(error) = link.and_then(|link| syscall::detach_link(link.as_fd()))
    {
        warn!("{}: cannot detach the program at tcx: {error}", pins.interface());
    }
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
    pub(super) fn attach_new(
        &mut self,
        interface: &Interface,
        mode: AttachMode,
    ) -> Result<(Attach, Attached)> {
        let name = &interface.name;
        let program = match self.ingress()? {
            Ingress::Xdp(program) => program,
            Ingress::Tcx(program) => {
                return Ok((Attach::Tcx, tc::attach(program, name, TcAttachType::Ingress, false)?));
            }
        };
        let mut attempt = |attach| {
            let xdp_mode = match attach {
                Attach::Native => XdpMode::Driver,
                Attach::Generic | Attach::Tcx => XdpMode::Skb,
            };
            program.attach_to_if_index(interface.index, xdp_mode).map(|link| (attach, link))
        };
        let attached = match mode {
            AttachMode::Native => attempt(Attach::Native),
            AttachMode::Generic => attempt(Attach::Generic),
            // The programs would be those for tcx.
            AttachMode::Auto | AttachMode::Tcx => match attempt(Attach::Native) {
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
        let link: Result<FdLink, _> = program.take_link(link)?.try_into();
        let link =
            link.with_context(|| format!("no XDP link for {name}: this kernel is older than Linux 5.10"))?;
        Ok((attach, Attached::Link(link)))
    }
}

impl AttachMode {
    const fn name(self) -> &'static str {
        match self {
            Self::Auto => "native or generic",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tcx => "tcx",
        }
    }

    /// Whether this setting allows a program to be attached in mode `attach`.
    pub fn allows(self, attach: Attach) -> bool {
        match self {
            Self::Auto => true,
            Self::Native => attach == Attach::Native,
            Self::Generic => attach == Attach::Generic,
            Self::Tcx => attach == Attach::Tcx,
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
