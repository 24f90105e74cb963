//! Values of the configuration, from the tables of the file.
//!
//! A wrong value is noted and replaced by a default, so that the rest of the file is checked, too.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use tfo_common::verdict::Mode;
use toml::de::DeValue;

use super::{
    Config, Keys,
    protections::guards,
    table::{Table, choice, flag, number, text, wrong_type},
};
use crate::{
    kernel::interface,
    keys::schedule::{LONGEST, Schedule},
    model::{
        fleet::{Etcd, PREFIX, parse_beginning, parse_endpoint, parse_host},
        services::{
            Conflict, Conflicts, Named, Place, QUEUES, Services, Unfollowed, parse_name, parse_ports,
            parse_prefix,
        },
        settings::{KeysFrom, ProgramMode, Sizes, parse_share},
    },
    util::time::parse_duration,
};

/// Range of each of the [`Sizes`].
const SIZES: RangeInclusive<u32> = 1024..=16 << 20;

/// Reads the whole file.
pub(super) fn config(root: &mut Table) -> Config {
    root.need("interfaces", "[\"eth0\"]");
    Config {
        interfaces: root
            .list("interfaces", text(interface::parse_name))
            .into_iter()
            .map(|(_, name)| name)
            .collect(),
        attach: root.get("attach", choice).unwrap_or_default(),
        metrics: root.get("metrics", text(parse_address)),
        keys: root.table("keys", keys).unwrap_or_default(),
        maps: root.table("maps", sizes).unwrap_or_default(),
        services: services(root),
    }
}

fn keys(table: &mut Table) -> Keys {
    let default = Keys::default();
    let source = table.get("source", text(KeysFrom::parse)).unwrap_or(default.source);
    // A table without the source is for `tfo fleet` alone.
    if source == KeysFrom::Etcd {
        table.need("etcd", "{ endpoints = [\"https://10.0.0.1:2379\"], seal_key = \"/etc/tfo/fleet.key\" }");
    }
    Keys {
        source,
        rotate: table.get("rotate", text(interval)),
        overlap: table.get("overlap", text(overlap)).unwrap_or(default.overlap),
        state: table.get("state", text(not_empty)).map_or(default.state, PathBuf::from),
        retire_below: table.get("retire_below", text(parse_share)),
        max_age: table.get("max_age", text(age)),
        etcd: table.table("etcd", etcd),
    }
}

fn etcd(table: &mut Table) -> Etcd {
    table.need("endpoints", "[\"https://10.0.0.1:2379\"]");
    table.need("seal_key", "\"/etc/tfo/fleet.key\"");
    let endpoints = table.list("endpoints", text(parse_endpoint));
    for (one, other) in [("certificate", "key"), ("key", "certificate"), ("certificate", "ca")] {
        if table.has(one) && !table.has(other) {
            table.refuse(&format!("{one} needs {other}"));
        }
    }
    if table.has("user") != table.has("password_file") {
        table.refuse("user and password_file need each other");
    }
    let is_open = |(_, url): &&(usize, String)| url.starts_with("http://");
    if let Some((at, url)) = endpoints.iter().find(is_open)
        && (table.has("ca") || table.has("password_file"))
    {
        table
            .faults
            .add(*at, format!("{url} is without TLS, and ca and password_file need it: write https://"));
    }
    if let Some((at, url)) = endpoints.iter().find(|endpoint| !is_open(endpoint))
        && !table.has("ca")
    {
        table.faults.add(*at, format!("{url} needs ca, the certificates that etcd's is checked against"));
    }
    let mut file = |key| table.get(key, text(not_empty)).map(PathBuf::from);
    let [ca, certificate, key, password_file] = ["ca", "certificate", "key", "password_file"].map(&mut file);
    Etcd {
        endpoints: endpoints.into_iter().map(|(_, url)| url).collect(),
        prefix: table.get("prefix", text(parse_beginning)).unwrap_or_else(|| PREFIX.to_owned()),
        name: table.get("name", text(parse_host)),
        seal_key: table.get("seal_key", text(not_empty)).unwrap_or_default(),
        ca,
        certificate,
        key,
        user: table.get("user", text(not_empty)),
        password_file,
    }
}

fn sizes(table: &mut Table) -> Sizes {
    let default = Sizes::default();
    Sizes {
        sources: table.get("sources", number(SIZES)).unwrap_or(default.sources),
        replays: table.get("replays", number(SIZES)).unwrap_or(default.replays),
    }
}

/// Offsets in the file: of the name of a service, and of each of its ports.
type Offsets = (usize, Vec<usize>);

fn services(root: &mut Table) -> Services {
    let (named, offsets): (Vec<_>, Vec<Offsets>) = root.tables("service", service).into_iter().unzip();
    // Packets that belong to no service are only observed.
    let services = Services::new(named, Mode::Observe);
    services.unwrap_or_else(|Conflicts(conflicts)| {
        let offset = |(service, ports): Place| match ports {
            Some(ports) => offsets[service].1[ports],
            None => offsets[service].0,
        };
        for Conflict { at, earlier, what, advice } in conflicts {
            let earlier = earlier.map(|earlier| format!(" (line {})", root.faults.line(offset(earlier))));
            root.faults.add(offset(at), format!("{what}{}; {advice}", earlier.unwrap_or_default()));
        }
        Services::default()
    })
}

fn service(table: &mut Table) -> (Named, Offsets) {
    table.need("name", "\"web\"");
    table.need("ports", "[80, 443, \"8000-8010\"]");
    let offset = table.place("name");
    // The substitute for a missing or wrong name is not a valid name, so it equals no other.
    let line = table.faults.line(table.at);
    let name = table.get("name", text(parse_name)).unwrap_or_else(|| format!("on line {line}"));
    let (offsets, ports) = table.list("ports", ports).into_iter().unzip();
    let has_mode = table.has("mode");
    let mode = table.get("mode", choice::<ProgramMode>);
    // A wrong mode is a fault of its own.
    let may_drop = mode.map_or(has_mode, |mode| mode == ProgramMode::Shield);
    let may_change = mode.map_or(has_mode, |mode| mode != ProgramMode::Observe);
    let named = Named {
        name,
        ports,
        addresses: table
            .list("addresses", text(parse_prefix))
            .into_iter()
            .map(|(_, prefix)| prefix)
            .collect(),
        mode: mode.unwrap_or_default().into(),
        guards: guards(table),
        unfollowed: table.get("unfollowed", |value| unfollowed(value, may_drop)).unwrap_or_default(),
        portable: table.get("portable", |value| portable(value, may_change)).unwrap_or_default(),
        fast_open: table.get("fast_open", number(QUEUES)),
    };
    (named, (offset, offsets))
}

fn unfollowed(value: &DeValue, may_drop: bool) -> Result<Unfollowed, String> {
    match choice(value)? {
        Unfollowed::Drop if !may_drop => {
            Err("`drop` needs mode = \"shield\", since the other modes drop nothing".to_owned())
        }
        chosen => Ok(chosen),
    }
}

fn portable(value: &DeValue, may_change: bool) -> Result<bool, String> {
    match flag(value)? {
        true if !may_change => {
            Err("this needs mode = \"accelerate\" or \"shield\", since mode \"observe\" changes no packet"
                .to_owned())
        }
        chosen => Ok(chosen),
    }
}

fn ports(value: &DeValue) -> Result<RangeInclusive<u16>, String> {
    match value {
        DeValue::Integer(_) => number(1..=u16::MAX)(value).map(|port| port..=port),
        DeValue::String(range) => parse_ports(range),
        other => Err(wrong_type(other, "ports such as 80 and \"8000-8010\"")),
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("this is empty; leave it out, or fill it".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Parses the address for metrics. Port 0 is refused, since it would be a different port at each start.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    const EXAMPLE: &str = "write, for example, 127.0.0.1:9434";
    let address: SocketAddr =
        text.parse().map_err(|_| format!("`{text}` is not an address with a port; {EXAMPLE}"))?;
    if address.port() == 0 { Err(format!("{text} has port 0; {EXAMPLE}")) } else { Ok(address) }
}

fn interval(text: &str) -> Result<Duration, String> {
    Schedule::new(parse_duration(text)?)
        .map(|schedule| schedule.interval())
        .map_err(|error| error.to_string())
}

/// Parses the value of `keys.overlap` and `--overlap`.
pub(crate) fn overlap(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|overlap| match overlap {
        overlap if overlap > LONGEST => Err("it takes at most 1w".to_owned()),
        overlap => Ok(overlap),
    })
}

fn age(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .and_then(|age| if age.is_zero() { Err("it takes at least 1s".to_owned()) } else { Ok(age) })
}
