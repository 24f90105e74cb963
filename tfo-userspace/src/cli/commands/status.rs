//! `tfo status`.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    cli::{args::Status, exit::NOT_RUNNING},
    control::client,
    dataplane::{
        Pinned, is_attached,
        pins::{Bpffs, Pins},
    },
    fleet::feed::State,
    model::{guards::Hidden, keys::fingerprint},
    util::output::{json, print},
    view::{
        attestation::Attestation,
        counters::{attach_name, mode_name, since},
        fleet,
    },
};

/// State of one interface.
#[derive(Serialize)]
struct Report {
    interface: String,
    /// Name of its network namespace, if `--netns` named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<String>,
    /// Whether the XDP program sees the interface's packets.
    attached: bool,
    /// Whether a `tfo run` keeps its keys in step.
    controller: bool,
    /// Process ID of the controller.
    pid: Option<u32>,
    attach: &'static str,
    /// Mode of the program: what it may do to packets.
    mode: &'static str,
    /// Orders of `tfo hide` in force.
    hidden: Vec<Hidden>,
    /// Services whose SYNs are answered.
    answering: BTreeSet<String>,
    /// Services with portable cookies.
    portable: BTreeSet<String>,
    /// Whether portable cookies are handed out; `None` if no service has them.
    hands_out_portable: Option<bool>,
    since: Timestamp,
    /// Memory of all maps in the kernel, in bytes.
    map_bytes: u64,
    keys: Keys,
    /// State of the host in its fleet, if its keys come from etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    fleet: Option<State>,
}

/// Fingerprints of the keys in the map, and their comparison with the kernel and the schedule. It holds no keys.
#[derive(Serialize)]
struct Keys {
    generation: u64,
    current: Option<String>,
    backup: Option<String>,
    retired: Vec<String>,
    #[serde(flatten)]
    attestation: Attestation,
}

/// Interface whose state can't be read.
#[derive(Serialize)]
struct Failure<'a> {
    interface: &'a str,
    /// Reason.
    error: String,
}

/// Prints the state of each interface. The exit status is 1 if one can't be read (the others are shown), else 3 if one
/// is not attached or has no controller, else 0.
pub(super) async fn run(args: &Status, bpffs: &Bpffs) -> Result<ExitCode> {
    let (mut all_well, mut all_read) = (true, true);
    for pins in super::attached(args.select.interface.as_deref(), bpffs)? {
        let report = match report(&pins).await {
            Ok(report) => report,
            Err(error) => {
                all_read = false;
                let (interface, error) = (pins.interface(), format!("{error:#}"));
                eprintln!("error: {}: {error}", pins.full_name());
                if args.select.json {
                    print(&json(&Failure { interface, error })?)?;
                }
                continue;
            }
        };
        all_well &= report.attached && report.controller;
        if args.select.json {
            print(&json(&report)?)?;
        } else {
            print(&text(&report))?;
        }
    }
    Ok(match (all_read, all_well) {
        (false, _) => ExitCode::FAILURE,
        (true, false) => ExitCode::from(NOT_RUNNING),
        (true, true) => ExitCode::SUCCESS,
    })
}

async fn report(pins: &Pins) -> Result<Report> {
    let pinned = Pinned::open(pins)?;
    let ring = pinned.key_ring()?;
    let portable = pinned.portable()?;
    Ok(Report {
        fleet: fleet::state(pins, &pinned).await,
        interface: pins.interface().to_owned(),
        netns: pins.netns().map(str::to_owned),
        // In another network namespace, only the pinned link shows that it is attached.
        attached: is_attached(pins).await?.unwrap_or(true),
        controller: pins.has_controller()?,
        pid: client::process(pins),
        attach: attach_name(pinned.info()),
        mode: mode_name(pinned.info()),
        hidden: pinned.hidden()?,
        answering: pinned.answering()?,
        hands_out_portable: if portable.is_empty() { None } else { Some(pins.has_egress()?) },
        portable,
        since: since(pinned.info()),
        map_bytes: Pinned::memory(pins)?,
        keys: Keys {
            generation: ring.generation,
            current: ring.get(0).map(fingerprint),
            backup: ring.get(1).map(fingerprint),
            retired: ring.retired().map(fingerprint).collect(),
            attestation: Attestation::of(pins, &ring, pinned.info())?,
        },
    })
}

fn text(report: &Report) -> String {
    let Report { interface, attached, controller, pid, attach, mode, hidden, answering, .. } = report;
    let Report { since, map_bytes, keys, fleet, portable, hands_out_portable, netns, .. } = report;
    let (within, option) = match netns {
        Some(netns) => (format!("{netns}/"), format!("--netns {netns} ")),
        None => Default::default(),
    };
    let fleet = fleet.as_ref().map(|fleet| format!("\n  fleet        {}", fleet.text())).unwrap_or_default();
    let attached = if *attached { format!("attached, {attach} mode") } else { "not attached".to_owned() };
    let hidden: Vec<_> = hidden.iter().map(Hidden::to_string).collect();
    let hidden = match hidden.join(", ") {
        all if all.is_empty() => all,
        some => format!("\n  hidden       {some}: `tfo show` ends that"),
    };
    let answering: Vec<_> = answering.iter().map(String::as_str).collect();
    let answering = match answering.join(", ") {
        none if none.is_empty() => none,
        some => format!("\n  answering    {some}"),
    };
    let portable: Vec<_> = portable.iter().map(String::as_str).collect();
    let portable = match (portable.join(", "), hands_out_portable) {
        (_, None) => String::new(),
        (services, Some(true)) => format!("\n  portable     {services}"),
        (services, Some(false)) => {
            format!(
                "\n  portable     {services}: accepted, but not handed out; the log of `tfo run` says why"
            )
        }
    };
    let controller = match controller {
        true => pid.map_or_else(|| "running".to_owned(), |pid| format!("running, process {pid}")),
        false => {
            format!(
                "none: keys are not followed, and shed and answer do nothing; `tfo {option}run -i {interface}` takes over"
            )
        }
    };
    let retired = if keys.retired.is_empty() { "none".to_owned() } else { keys.retired.join(", ") };
    format!(
        "{within}{interface}: {attached}\n  mode         {mode}{hidden}{answering}{portable}\n  controller   {controller}{fleet}\n  \
         counting     since {since:.0}\n  memory       {:.1} MiB in maps\n  retired keys {retired}\n{}",
        *map_bytes as f64 / f64::from(1 << 20),
        keys.attestation.text()
    )
}
