//! `tfo fleet …`.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use comfy_table::CellAlignment::{Left, Right};

use crate::{
    cli::args::{Fleet, FleetAccess, FleetRotate, FleetStatus},
    config::Config,
    fleet::{
        access::Access,
        console::{Console, Overview, Rotated},
        kept::Kept,
        standing::{Host, Standing},
    },
    util::{
        output::{json, print},
        time::unix_seconds,
    },
    view::table::table,
};

/// Wait for hosts that have not learnt a new secret.
const PATIENCE: Duration = Duration::from_mins(1);
/// Wait for them in an emergency, and with `--force`: hosts in reach take a fraction of it.
const PROMPT: Duration = Duration::from_secs(1);

/// Carries out a subcommand. `state` is the folder in which the host keeps what it knows of the fleet.
pub(super) async fn run(args: &Fleet, state: &Path) -> Result<ExitCode> {
    match args {
        Fleet::Status(args) => status(args).await,
        Fleet::Rotate(args) => rotate(args).await,
        Fleet::Init(args) => {
            let outline = console(args)?.init().await?;
            print(&format!("the fleet has its first secret, generation {}", outline.generation))?;
            Ok(ExitCode::SUCCESS)
        }
        Fleet::Restore(args) => {
            let access = access(args)?;
            let (_, kept) = Kept::open(state, &access.key)?;
            let kept = kept.with_context(|| format!("this host has kept nothing in {}", state.display()))?;
            let outline = Console::new(access).restore(kept).await?;
            print(&format!(
                "generation {}: secret {} is in force, as this host had it",
                outline.generation, outline.in_force
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Fleet::Forget(args) => {
            console(&args.access)?.forget(&args.host).await?;
            print(&format!("{} is no host of the fleet any more", args.host))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn access(args: &FleetAccess) -> Result<Access> {
    let settings = Config::read(&args.config)?.keys.etcd;
    let settings = settings.with_context(|| {
        format!("{} has no table [keys.etcd], which says where etcd is", args.config.display())
    })?;
    Access::read(&settings)
}

fn console(args: &FleetAccess) -> Result<Console> {
    access(args).map(Console::new)
}

async fn status(args: &FleetStatus) -> Result<ExitCode> {
    let overview = console(&args.access)?.overview().await?;
    print(&if args.json { json(&object(&overview))? } else { text(&overview) })?;
    let is_well =
        overview.outline.is_some() && overview.hosts.iter().all(|host| host.standing == Standing::InStep);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn object(overview: &Overview) -> serde_json::Value {
    let outline = overview.outline.as_ref();
    serde_json::json!({
        "generation": outline.map(|outline| outline.generation),
        "in_force": outline.map(|outline| outline.in_force),
        "fingerprint": outline.map(|outline| &outline.fingerprint),
        "in_force_since": overview.since,
        "next": outline.and_then(|outline| outline.next),
        "forgotten_below": outline.map(|outline| outline.forget_below),
        "hosts": overview.hosts,
    })
}

fn text(overview: &Overview) -> String {
    let Some(outline) = &overview.outline else {
        return "the fleet has no document: `tfo fleet init` makes one".to_owned();
    };
    let next = match outline.next {
        Some(next) => format!("; secret {next} is to be learnt"),
        None => String::new(),
    };
    let head = format!(
        "generation {}: secret {} ({}) is in force{next}",
        outline.generation, outline.in_force, outline.fingerprint
    );
    let columns = [
        ("host", Left),
        ("standing", Left),
        ("generation", Right),
        ("learnt", Right),
        ("in force", Right),
        ("current key", Left),
        ("interfaces", Left),
        ("version", Left),
        ("record", Right),
    ];
    let now = unix_seconds();
    let mut lines = vec![head, table(&columns, overview.hosts.iter().map(|host| row(host, now)))];
    let reasons =
        overview.hosts.iter().filter_map(|host| Some(format!("{}: {}", host.name, host.why.as_ref()?)));
    lines.extend(reasons);
    lines.join("\n")
}

fn row(host: &Host, now: u64) -> [String; 9] {
    let standing = host.standing.name().to_owned();
    let Some(record) = &host.record else {
        return [&host.name, &standing, "", "", "", "", "", "", ""].map(str::to_owned);
    };
    let applied = &record.applied;
    [
        host.name.clone(),
        standing,
        applied.generation.to_string(),
        applied.learnt.to_string(),
        applied.in_force.to_string(),
        applied.current.clone().unwrap_or_else(|| "none".to_owned()),
        applied.interfaces.join(" "),
        record.tfo.clone(),
        format!("{} s ago", now.saturating_sub(record.written)),
    ]
}

async fn rotate(args: &FleetRotate) -> Result<ExitCode> {
    let mut console = console(&args.access)?;
    let say = |line: &str| {
        // A reader that has gone away does not end a rotation.
        drop(print(line));
    };
    let rotated = if args.emergency {
        console.emergency(args.wait.unwrap_or(PROMPT), say).await?
    } else {
        let patience = if args.force { PROMPT } else { PATIENCE };
        console.rotate(args.wait.unwrap_or(patience), say).await?
    };
    let Rotated { silent, answered, outline } = rotated;
    print(&format!("{answered} hosts have secret {} in force", outline.in_force))?;
    if silent.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let fate =
        if args.emergency { "still has the leaked secret, or has not said" } else { "has not said so" };
    print(&format!("{fate}: {}. It changes as soon as it gets to etcd", silent.join(", ")))?;
    Ok(ExitCode::FAILURE)
}
