//! `tfo keys …`.

use std::{
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use tfo_common::{cookie, info::KeySource};
use zeroize::Zeroizing;

use crate::{
    cli::args::{Cookie, Derive, Import, KeysStatus, Rotate},
    control::{self, Request},
    dataplane::{
        Pinned, forget_keys,
        pins::{Bpffs, Pins},
    },
    kernel::{netns, sysctl::KernelKeys},
    keys::{schedule::Schedule, secret::Secret},
    model::keys::{addresses, fingerprint, parse_key},
    util::{
        files::open_regular,
        output::{json, print},
        secrecy::leaving_no_trace,
        time::unix_seconds,
    },
    view::key_listing::Listing,
};

/// Prints the cookie that each given key makes for the two addresses.
pub(super) fn cookie(args: &Cookie) -> Result<()> {
    let addresses = addresses(args.src, args.dst)?;
    let text = key_text(&args.key)?;
    let keys: Vec<_> = text.trim_end().split(',').map(parse_key).collect();
    if keys.len() > 2 {
        bail!("these are {} keys: the kernel holds a primary and a backup key", keys.len());
    }
    for (key, role) in keys.into_iter().zip(["current", "backup"]) {
        let Some(key) = key else {
            bail!(
                "this is no key: it takes four hexadecimal numbers of up to eight digits, \
                 xxxxxxxx-xxxxxxxx-xxxxxxxx-xxxxxxxx"
            );
        };
        let bytes = cookie::make(&key, &addresses).to_le_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if args.json {
            let object = serde_json::json!({
                "key": role, "family": addresses.family.name(), "src": args.src, "dst": args.dst, "cookie": hex,
            });
            print(&json(&object)?)?;
        } else {
            print(&hex)?;
        }
    }
    Ok(())
}

/// Returns the text of a key argument: of standard input for `-`, of a file for `@FILE`, else the argument itself.
fn key_text(argument: &str) -> Result<Zeroizing<String>> {
    match argument.strip_prefix('@') {
        _ if argument == "-" => read(io::stdin()).context("cannot read the key from standard input"),
        Some(file) => {
            let key = open_regular(Path::new(file)).and_then(|key| Ok(read(key)?));
            key.with_context(|| format!("cannot read the key file {file:?}"))
        }
        None => Ok(Zeroizing::new(argument.to_owned())),
    }
}

/// Reads up to 200 bytes, more than two keys have.
fn read(from: impl io::Read) -> io::Result<Zeroizing<String>> {
    const LONGEST: usize = 200;
    let mut text = Zeroizing::new(String::with_capacity(LONGEST + 1));
    from.take(LONGEST as u64).read_to_string(&mut text)?;
    Ok(text)
}

/// Prints the fingerprints of the keys that a host with the secret holds at a time.
pub(super) fn derive(args: &Derive) -> Result<()> {
    let secret = Secret::read(&args.secret)?;
    let schedule = Schedule::new(args.rotate)?;
    let at = args.at.unwrap_or_else(unix_seconds);
    let held = schedule.held(&secret, at);
    let [current, backup, next] = [held.current, held.backup, held.next].map(|key| key.map(fingerprint));
    let until = schedule.next_change(at);
    if args.json {
        let object = serde_json::json!({
            "at": at, "current": current, "backup": backup, "next": next, "changes_at": until,
        });
        return print(&json(&object)?);
    }
    let [current, backup, next] = [current, backup, next].map(|key| key.unwrap_or_else(|| "none".to_owned()));
    print(&format!("at {at}, until {until}\n  current {current}\n  backup  {backup}\n  next    {next}"))
}

/// Requests a rotation. In an emergency, all other programs in this network namespace forget their old keys, too.
pub(super) async fn rotate(args: &Rotate, bpffs: &Bpffs) -> Result<()> {
    let to = recipient(args.interface.as_deref(), bpffs)?;
    let here = if args.emergency { attached_here(bpffs)? } else { Vec::new() };
    let rotated = control::send(&to, &Request::Rotate { emergency: args.emergency }).await;
    let mut outcome = rotated.and_then(|done| print(&done));
    for pins in here {
        let name = pins.interface();
        let forgotten = match name == to.interface() {
            true => Ok(()),
            false => forget(&pins).await,
        };
        // The map is read: the answer is not enough.
        let forgotten = forgotten.and_then(|()| leaving_no_trace(|| holds_only_the_kernels(&pins)));
        if let Err(error) = forgotten {
            let error = anyhow!("{name}: its map may still contain old keys: {error:#}");
            match &outcome {
                // Its text only, without `NotRunning`: exit status 1, not 3, since a program runs.
                Ok(()) => outcome = Err(error),
                Err(_) => eprintln!("error: {error:#}"),
            }
        }
    }
    outcome
}

/// Makes the program behind `pins` forget all keys but the kernel's: through its controller or, without one, in its
/// maps.
async fn forget(pins: &Pins) -> Result<()> {
    if pins.has_controller()? {
        return control::send(pins, &Request::Forget).await.map(drop);
    }
    let locked = pins.lock(Duration::from_millis(500))?;
    leaving_no_trace(|| forget_keys(&locked, KernelKeys::read()?.into()))
}

/// Fails if a current, backup or retired key in the map is not one of the kernel's. The next key may be in the map.
fn holds_only_the_kernels(pins: &Pins) -> Result<()> {
    let kernel = KernelKeys::read()?;
    let ring = Pinned::open(pins)?.key_ring()?;
    let held = ring.held();
    let foreign = [held.current, held.backup].into_iter().flatten().chain(ring.retired());
    match foreign.filter(|key| ![kernel.current, kernel.backup].contains(&Some(*key))).count() {
        0 => Ok(()),
        count => bail!("it holds {count} keys that are not the kernel's"),
    }
}

/// Returns the attached interfaces that are not known to be in another network namespace. Unreadable maps may hold the
/// keys, so their interfaces are among them.
fn attached_here(bpffs: &Bpffs) -> Result<Vec<Pins>> {
    let here = netns::netns()?;
    let is_elsewhere = |pins: &Pins| Pinned::info_of(pins).is_ok_and(|info| info.netns != here);
    let all = super::attached(None, bpffs)?.into_iter();
    Ok(all.filter(|pins| !is_elsewhere(pins)).collect())
}

/// Returns the interface whose controller gets a request: the given one, else the first with keys of its own, else the
/// first.
fn recipient(interface: Option<&str>, bpffs: &Bpffs) -> Result<Pins> {
    let mut attached = super::attached(interface, bpffs)?;
    let has_own_keys = |pins: &&Pins| {
        Pinned::open(pins).is_ok_and(|pinned| pinned.info().key_source != KeySource::Kernel as u64)
    };
    let found = attached.iter().position(|pins| has_own_keys(&pins)).unwrap_or(0);
    Ok(attached.swap_remove(found))
}

/// Reads a key and requests its use.
pub(super) async fn import(args: &Import, bpffs: &Bpffs) -> Result<()> {
    let key = if args.file == "-" { key_text("-") } else { key_text(&format!("@{}", args.file)) }?;
    let to = recipient(args.interface.as_deref(), bpffs)?;
    print(&control::send(&to, &Request::Import { key }).await?)
}

/// Prints the keys of each interface.
pub(super) fn status(args: &KeysStatus, bpffs: &Bpffs) -> Result<()> {
    for pins in super::attached(args.select.interface.as_deref(), bpffs)? {
        let keys = Listing::of(&pins, &Pinned::open(&pins)?)?;
        print(&if args.select.json { json(&keys)? } else { keys.text() })?;
    }
    Ok(())
}
