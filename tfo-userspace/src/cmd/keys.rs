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
};

/// Prints the cookie that each given key makes for the two addresses.
pub(super) fn cookie(args: &Cookie) -> Result<()> {
    let addresses = addresses(args.src, args.dst)?;
    for text in key_text(&args.key)?.trim_end().split(',') {
        let Some(key) = parse_key(text) else {
            bail!(
                "this is no key: it takes four groups of eight hexadecimal digits, xxxxxxxx-xxxxxxxx-xxxxxxxx-xxxxxxxx"
            );
        };
        let bytes = cookie::make(&key, &addresses).to_le_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if args.json {
            let json = serde_json::json!({
                "family": addresses.family.name(), "src": args.src, "dst": args.dst, "cookie": hex,
            });
            println!("{json}");
        } else {
            println!("{hex}");
        }
    }
    Ok(())
}

/// The key's text: `-` reads standard input, `@FILE` a file.
fn key_text(argument: &str) -> Result<String> {
    if argument == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("cannot read the key from standard input")?;
        return Ok(text);
    }
    match argument.strip_prefix('@') {
        Some(file) => fs::read_to_string(file).with_context(|| format!("cannot read the key file {file}")),
        None => Ok(argument.to_owned()),
    }
}
