//! `tfo keys …`.

use std::{
    fs,
    io::{self, Read as _},
};

use anyhow::{Context as _, Result, bail};
use tfo_common::cookie;

use crate::{
    cli::Cookie,
    keys::{addresses, parse_key},
    output::print,
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
            let json = serde_json::json!({
                "key": role, "family": addresses.family.name(), "src": args.src, "dst": args.dst, "cookie": hex,
            });
            print(&json.to_string())?;
        } else {
            print(&hex)?;
        }
    }
    Ok(())
}

/// The key's text: `-` reads standard input, `@FILE` a file.
fn key_text(argument: &str) -> Result<String> {
    match argument.strip_prefix('@') {
        _ if argument == "-" => read(io::stdin()).context("cannot read the key from standard input"),
        Some(file) => {
            fs::File::open(file).and_then(read).with_context(|| format!("cannot read the key file {file:?}"))
        }
        None => Ok(argument.to_owned()),
    }
}

/// What is there to read, up to more than two keys have.
fn read(from: impl io::Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(200).read_to_string(&mut text)?;
    Ok(text)
}
