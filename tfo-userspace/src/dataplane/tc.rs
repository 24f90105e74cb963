//! Attachment of programs to packets that leave an interface, or arrive at it behind XDP.
//!
//! From Linux 6.6 on, a link (tcx) attaches them. Before, a filter on the qdisc clsact does, which has no pin: a second pin of
//! the program says that it is there.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, Link as _},
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
};
use nix::net::if_::if_indextoname;
use tfo_common::info::Info;
use tracing::debug;

use super::{Object, Pinned};
use crate::{
    dataplane::pins::{Generation, Pins},
    kernel::{interface::Interface, netns},
};

/// Priority of the filter: before those of others. They may end the walk through the filters, or change addresses.
const PRIORITY: u16 = 1;
/// Handle of the filter, by which it is found again.
const HANDLE: TcHandle = TcHandle::new(0, 7413);

impl Object {
    /// Loads the program. The error says why the kernel refused it.
    pub(super) fn verify_egress(&mut self) -> Result<(), String> {
        let loaded = self.egress_program().and_then(|program| {
            program.load().map_err(|error| {
                debug!("{error:#}");
                // The error returned leaves out the verifier's output.
                match error {
                    ProgramError::LoadError { io_error, .. } => io_error.into(),
                    other => anyhow::Error::from(other),
                }
            })
        });
        loaded.map_err(|error| format!("the kernel refused the program: {error:#}"))
    }

    /// Attaches the program to the packets that leave `interface`, and pins that in `generation`. `has_filter` says that a
    /// filter of ours attaches an earlier program.
    pub(super) fn attach_egress(
        &mut self,
        interface: &Interface,
        generation: &Generation,
        has_filter: bool,
    ) -> Result<()> {
        let program = self.egress_program()?;
        let attached = attach(program, &interface.name, TcAttachType::Egress, has_filter)?;
        let path = generation.egress_filter();
        pin(attached, &generation.egress_link(), || {
            program.pin(&path).with_context(|| format!("cannot pin the program at {}", path.display()))
        })
    }
}

/// Way in which a program is attached.
pub(super) enum Attached {
    /// By this link.
    Link(FdLink),
    /// By our filter.
    Filter,
}

/// Attaches `program` to packets of the interface `name` in one direction. `has_filter` says that a filter of ours attaches an
/// earlier program.
pub(super) fn attach(
    program: &mut SchedClassifier,
    name: &str,
    direction: TcAttachType,
    has_filter: bool,
) -> Result<Attached> {
    // Before the programs of others, as with the filter.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    match program.attach_with_options(name, direction, order) {
        Ok(link) => Ok(Attached::Link(program.take_link(link)?.try_into()?)),
        // Linux before 6.6 does not know the kind of attachment.
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
            debug!("{name}: no tcx: {}", error.io_error);
            attach_filter(program, name, direction, has_filter)?;
            Ok(Attached::Filter)
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot attach to packets that {} {name}", verb(direction)))
        }
    }
}

/// Pins what is `attached`: the link at `path`, or the program by `pin_program`.
pub(super) fn pin(attached: Attached, path: &Path, pin_program: impl FnOnce() -> Result<()>) -> Result<()> {
    match attached {
        Attached::Link(link) => {
            link.pin(path).map(drop).with_context(|| format!("cannot pin the link at {}", path.display()))
        }
        Attached::Filter => pin_program(),
    }
}

/// Returns what packets of a direction do.
const fn verb(direction: TcAttachType) -> &'static str {
    match direction {
        TcAttachType::Egress => "leave",
        TcAttachType::Ingress | TcAttachType::Custom(_) => "arrive at",
    }
}

/// Attaches `program` to the interface `name` by our filter, which is there already if `has_filter`.
pub(super) fn attach_filter(
    program: &mut SchedClassifier,
    name: &str,
    direction: TcAttachType,
    has_filter: bool,
) -> Result<()> {
    let context = || format!("cannot add a filter to packets that {} {name}", verb(direction));
    if has_filter {
        match program.attach_to_link(filter(name, direction)?) {
            Ok(link) => return forget(program.take_link(link)?),
            Err(error) => debug!("{name}: {error:#}"),
        }
    }
    match qdisc_add_clsact(name) {
        Ok(()) => {}
        // The qdisc is there, or the next step says what is wrong.
        Err(error) => debug!("{name}: {error}"),
    }
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let link = program
        .attach_with_options(name, direction, TcAttachOptions::Netlink(options))
        .with_context(context)?;
    forget(program.take_link(link)?)
}

/// Lets the filter outlive the process.
#[expect(clippy::unnecessary_wraps, reason = "it ends functions that return a result")]
fn forget(link: SchedClassifierLink) -> Result<()> {
    std::mem::forget(link);
    Ok(())
}

/// Returns our filter on the interface `name`.
fn filter(name: &str, direction: TcAttachType) -> Result<SchedClassifierLink> {
    let filter = SchedClassifierLink::attached(name, direction, PRIORITY, HANDLE, None);
    filter.with_context(|| format!("there is no interface {name}"))
}

/// Removes our filter from the interface of `pins`, if the interface is still there.
pub(super) fn remove_filter(pins: &Pins, direction: TcAttachType) -> Result<()> {
    remove_filter_at(&Pinned::info_of(pins)?, direction)
}

fn remove_filter_at(info: &Info, direction: TcAttachType) -> Result<()> {
    // The interface may have been renamed.
    let Some(name) = name_at(info)? else { return Ok(()) };
    match filter(&name, direction)?.detach() {
        Err(ProgramError::NetlinkError(error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.with_context(|| {
            format!("cannot remove the filter from packets that {} {name}", verb(direction))
        }),
    }
}

/// Puts the program that is pinned at `before` back into our filter, or removes the filter.
pub(super) fn restore_filter(info: &Info, direction: TcAttachType, before: Option<&Path>) -> Result<()> {
    let (Some(before), Some(name)) = (before, name_at(info)?) else {
        return remove_filter_at(info, direction);
    };
    let mut program = SchedClassifier::from_pin(before)
        .with_context(|| format!("cannot open the program at {}", before.display()))?;
    let link = program
        .attach_to_link(filter(&name, direction)?)
        .with_context(|| format!("cannot go back on {name}"))?;
    forget(program.take_link(link)?)
}

/// Returns the name of the interface that `info` is about, if it is in this network namespace.
pub(super) fn name_at(info: &Info) -> Result<Option<String>> {
    if info.netns != netns::netns()? {
        return Ok(None);
    }
    Ok(if_indextoname(info.ifindex).ok().and_then(|name| name.into_string().ok()))
}
