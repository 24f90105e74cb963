//! Where on an interface the XDP program can run.

use tfo_common::info::Attach;

use super::{Finding, netdev};
use crate::{
    dataplane::{linked_program, pins::Bpffs},
    kernel::interface::{Interface, XdpOnInterface},
};

/// What a driver with one page for a frame keeps of it for itself, in bytes: room before it (XDP_PACKET_HEADROOM), behind it
/// (skb_shared_info), and for an Ethernet header with two tags.
const NOT_FOR_THE_PACKET: u64 = 256 + 320 + 22;

/// What is attached or can be, and whether the MTU leaves room for it in the driver. Nothing is attached to find out.
pub(super) async fn check(name: &str, bpffs: &Bpffs) -> (Finding, Option<Finding>) {
    let interface = match Interface::find(name).await {
        Ok(interface) => interface,
        Err(error) => return (Finding::fail(format!("{error:#}"), "name another one"), None),
    };
    let driver = netdev::has_native_xdp(interface.index);
    let xdp = match interface.xdp {
        Some(xdp) => attached(name, xdp, matches!(driver, Ok(Some(true))), bpffs),
        None => offered(name, &driver),
    };
    let mtu = match driver {
        Ok(Some(false)) => Finding::ok(format!("{}: in the stack, any will do", interface.mtu)),
        _ => room(interface.mtu, procfs::page_size()),
    };
    (xdp, Some(mtu))
}

/// `is_native`: whether the driver says that it takes programs.
fn attached(name: &str, xdp: XdpOnInterface, is_native: bool, bpffs: &Bpffs) -> Finding {
    let XdpOnInterface { program_id, attach } = xdp;
    let pins = bpffs.pins(name);
    match linked_program(&pins) {
        Ok(Some(program)) if program == program_id => match pins.has_controller() {
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
        Ok(_) => Finding::fail(
            format!("{name} has another XDP program already (id {program_id}, {attach} mode)"),
            "tfo leaves it alone: detach it first, by whoever attached it",
        ),
        Err(error) => Finding::warn(
            format!(
                "{name} has an XDP program (id {program_id}, {attach} mode), of unknown owner: {error:#}"
            ),
            "run it as root, in the mount namespace of the `tfo run` that may be its owner",
        ),
    }
}

fn offered(name: &str, driver: &std::io::Result<Option<bool>>) -> Finding {
    match driver {
        Ok(Some(true)) => Finding::ok(format!("{name}: its driver takes XDP programs (native mode)")),
        Ok(Some(false)) => Finding::warn(
            format!("{name}: its driver takes no XDP programs"),
            "tfo attaches in the stack (generic mode), which costs more for each packet",
        ),
        Ok(None) => Finding::ok(format!(
            "{name}: drivers are asked since Linux 6.3; `tfo run` tries native mode first"
        )),
        Err(error) => Finding::warn(
            format!("{name}: what its driver can do cannot be told: {error}"),
            "`tfo run` tries native mode first, then generic",
        ),
    }
}

fn room(mtu: u32, page: u64) -> Finding {
    let most = page.saturating_sub(NOT_FOR_THE_PACKET);
    if u64::from(mtu) <= most {
        Finding::ok(format!("{mtu}: a frame fits into one page"))
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
        assert_eq!(room(1500, 4096).status, Status::Ok);
        // The most that mlx5 and ena take, as their documentation says.
        assert_eq!(room(3498, 4096).status, Status::Ok);
        assert_eq!(room(3499, 4096).status, Status::Warn);
        assert_eq!(room(9000, 65_536).status, Status::Ok);
    }
}
