//! Checks of an interface: whether the XDP program runs or can run in its driver.

use tfo_common::{info::Attach, names};

use super::{
    Finding,
    netdev::{self, Features},
};
use crate::{
    dataplane::{Linked, linked, name_of, pins::Bpffs},
    kernel::{
        ethtool::hides_vlans,
        interface::{Interface, XdpOnInterface},
        listeners::shows_multi_buffers,
    },
};

/// Bytes of a page that are not for the packet, in a driver with one page for each frame: room before the frame
/// (XDP_PACKET_HEADROOM), room behind it (skb_shared_info), and an Ethernet header with two tags.
const NOT_FOR_THE_PACKET: u64 = 256 + 320 + 22;

/// Checks which program is or can be attached, and whether the MTU leaves room for it in the driver. It attaches
/// nothing.
pub(super) async fn check(name: &str, bpffs: &Bpffs) -> (Finding, Option<Finding>) {
    let interface = match Interface::find(name).await {
        Ok(interface) => interface,
        Err(error) => return (Finding::fail(format!("{error:#}"), "name another one"), None),
    };
    let driver = netdev::features(interface.index);
    let at_tcx = |linked: &Linked| linked.is_at_tcx_of(interface.index);
    let is_at_tcx = linked(&bpffs.pins(name)).ok().flatten().is_some_and(|linked| at_tcx(&linked));
    let xdp = match interface.xdp {
        xdp if is_at_tcx => attached_at_tcx(name, xdp, bpffs),
        Some(xdp) => attached(name, xdp, matches!(driver, Ok(Some(Features { runs: true, .. }))), bpffs),
        None => offered(name, &driver),
    };
    let mtu = match &driver {
        Ok(Some(Features { runs: false, .. })) => {
            Finding::ok(format!("{}: in the stack, any MTU will do", interface.mtu))
        }
        features => {
            let takes_more = matches!(features, Ok(Some(Features { several_buffers: true, .. })));
            room(interface.mtu, procfs::page_size(), takes_more && shows_multi_buffers())
        }
    };
    (xdp, Some(mtu))
}

/// Checks whether XDP sees the tags of the interface's VLANs.
pub(super) fn vlan_tags(name: &str) -> Finding {
    if hides_vlans(name) {
        return Finding::warn(
            format!(
                "{name}: the hardware takes the tags of its VLANs out of frames, so `answer` answers none here"
            ),
            format!("`ethtool -K {name} rxvlan off`"),
        );
    }
    Finding::ok(format!("{name}: it has no VLANs, or XDP sees their tags"))
}

/// Judges the attached program. `is_native` says whether the driver takes XDP programs.
fn attached(name: &str, xdp: XdpOnInterface, is_native: bool, bpffs: &Bpffs) -> Finding {
    let XdpOnInterface { program_id, attach } = xdp;
    let pins = bpffs.pins(name);
    match linked(&pins) {
        Ok(Some(linked)) if linked.program_id == program_id => match pins.has_controller() {
            Ok(false) => Finding::warn(
                format!("{name}: tfo is attached, {attach} mode, without its controller"),
                format!("`tfo run -i {name}` takes it over"),
            ),
            _ if is_native && attach == Attach::Generic => Finding::warn(
                format!("{name}: tfo runs, generic mode, and the driver takes XDP programs"),
                format!(
                    "if --attach generic was not wanted: `tfo unload -i {name}`, then `tfo run -i {name} --attach native` \
                     says why the driver refuses (often the MTU; a veth's depends on its peer's)"
                ),
            ),
            _ => Finding::ok(format!("{name}: tfo runs, {attach} mode")),
        },
        Ok(_) if matches!(name_of(xdp).as_str(), names::PROGRAM | names::SHIELD_PROGRAM) => Finding::fail(
            format!("{name} has another XDP program already (id {program_id}, {attach} mode)"),
            "it is of another tfo, which counts here already: end that one first",
        ),
        Ok(_) => Finding::ok(format!(
            "{name} has another XDP program already ({}, id {program_id}, {attach} mode): tfo goes behind it (--attach tcx, which \
             auto chooses)",
            name_of(xdp)
        )),
        Err(error) => Finding::warn(
            format!(
                "{name} has an XDP program (id {program_id}, {attach} mode), of unknown owner: {error:#}"
            ),
            "run it as root, in the mount namespace of the `tfo run` that may be its owner",
        ),
    }
}

/// Judges our program at tcx, which is behind the program `xdp` of somebody else.
fn attached_at_tcx(name: &str, xdp: Option<XdpOnInterface>, bpffs: &Bpffs) -> Finding {
    let behind = xdp.map_or_else(String::new, |xdp| {
        format!(", behind the XDP program {} (id {})", name_of(xdp), xdp.program_id)
    });
    match bpffs.pins(name).has_controller() {
        Ok(false) => Finding::warn(
            format!("{name}: tfo is attached, tcx mode{behind}, without its controller"),
            format!("`tfo run -i {name}` takes it over"),
        ),
        _ => Finding::ok(format!("{name}: tfo runs, tcx mode{behind}")),
    }
}

fn offered(name: &str, driver: &std::io::Result<Option<Features>>) -> Finding {
    match driver {
        Ok(Some(Features { runs: true, .. })) => {
            Finding::ok(format!("{name}: its driver takes XDP programs (native mode)"))
        }
        Ok(Some(Features { runs: false, .. })) => Finding::warn(
            format!("{name}: its driver takes no XDP programs"),
            "tfo attaches in the stack (generic mode), which costs more for each packet",
        ),
        Ok(None) => Finding::ok(format!(
            "{name}: before Linux 6.3 its driver can't be asked; `tfo run` tries native mode first"
        )),
        Err(error) => Finding::warn(
            format!("{name}: what its driver can do is unknown: {error}"),
            "`tfo run` tries native mode first, then generic",
        ),
    }
}

/// Judges the MTU. `takes_more` says whether the driver and the kernel show a program frames that lie in several pages.
fn room(mtu: u32, page: u64, takes_more: bool) -> Finding {
    let most = page.saturating_sub(NOT_FOR_THE_PACKET);
    if u64::from(mtu) <= most {
        Finding::ok(format!("{mtu}: a frame fits into one page"))
    } else if takes_more {
        Finding::ok(format!("{mtu}: a frame lies in several pages, which the driver shows"))
    } else {
        Finding::warn(
            format!("{mtu}: more than the {most} bytes that fit into one page"),
            "most drivers refuse native mode like this, and tfo then attaches in generic mode: lower it if you can",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;

    #[test]
    fn a_frame_is_to_fit_into_a_page() {
        assert_eq!(room(1500, 4096, false).status, Status::Ok);
        // Largest MTU of mlx5 and ena for XDP, by their documentation.
        assert_eq!(room(3498, 4096, false).status, Status::Ok);
        assert_eq!(room(3499, 4096, false).status, Status::Warn);
        assert_eq!(room(3499, 4096, true).status, Status::Ok);
        assert_eq!(room(9000, 65_536, false).status, Status::Ok);
    }
}
