//! `cargo xtask bench --scrape`: duration of a scrape of `tfo run --metrics`, by the number of services.
//!
//! The duration is that from connecting to the last byte, as of `curl -w '%{time_total}'`, for a client on the same
//! machine. The counts are written into the maps of the running tfo, the same for each service, and checked in the
//! answer.

use std::{
    io::{Read as _, Write as _},
    mem::{offset_of, size_of},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{Array, Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use tfo_common::{
    class::Class,
    counters::{Cell, Sampled, Tally, VERDICT_SLOTS},
    names,
    observed::{Outcomes, RttBucket},
    segment::Family,
    verdict::Verdict,
};
use tfo_tests::{
    netns::{BPFFS, ip, sandbox},
    scrape,
};
use tfo_userspace::dataplane::pins::{Bpffs, Pins};

/// Numbers of configured services; `other` comes on top.
const SERVICES: [usize; 4] = [0, 10, 100, 1000];
/// Formats by name, with the `Accept` header that asks for each: `curl` gets the older one, Prometheus asks for the
/// newer.
const FORMATS: [(&str, &str); 2] = [("text", "*/*"), ("OpenMetrics", "application/openmetrics-text")];
const IFACE: &str = "v0";

/// Size of the words in the maps' structs.
const WORD: usize = size_of::<u64>();
type CellWords = [u64; size_of::<Cell>() / WORD];
type OutcomesWords = [u64; size_of::<Outcomes>() / WORD];

/// Results of one number of services in one format, with or without traffic.
#[derive(Serialize)]
pub(crate) struct Measured {
    services: usize,
    busy: bool,
    format: &'static str,
    rows: usize,
    bytes: usize,
    least_ms: f64,
    median_ms: f64,
}

/// Measures all combinations, with `scrapes` of each.
pub(crate) fn run(scrapes: u32) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for services in SERVICES {
        let mut measured = Ok(Vec::new());
        // Each runs in its own sandbox, since a killed tfo leaves its maps.
        sandbox(|| {
            ip("link set lo up");
            ip("link add v0 type veth peer name v1");
            measured = measure(services, scrapes);
        });
        all.extend(measured?);
    }
    Ok(all)
}

/// Prints a line for each result.
pub(crate) fn print(all: &[Measured]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["services", "SYNs", "format", "rows", "KB", "least ms", "median ms"]);
    for Measured { services, busy, format, rows, bytes, least_ms, median_ms } in all {
        table.add_row([
            services.to_string(),
            if *busy { "of all kinds" } else { "none" }.to_owned(),
            (*format).to_owned(),
            rows.to_string(),
            (bytes / 1000).to_string(),
            format!("{least_ms:.2}"),
            format!("{median_ms:.2}"),
        ]);
    }
    for number in [0, 3, 4, 5, 6] {
        table.column_mut(number).expect("there are seven").set_cell_alignment(CellAlignment::Right);
    }
    println!("{}", table.trim_fmt());
}

/// Measures a tfo with this many services, before any SYN and after many.
fn measure(services: usize, scrapes: u32) -> Result<Vec<Measured>> {
    let named: Vec<String> = (1..=services).map(|port| format!("service-{port}={port}")).collect();
    let args: Vec<&str> = named.iter().flat_map(|service| ["--service", service]).collect();
    let _tfo = scrape::run(IFACE, &args);
    let mut all = Vec::new();
    for busy in [false, true] {
        if busy {
            fill(&Bpffs::new(BPFFS.as_ref()).pins(IFACE), services as u32 + 1)?;
        }
        for (format, accept) in FORMATS {
            eprint!("\r{services} services, {format} ");
            let mut answer = Vec::new();
            let mut times = Vec::new();
            for _ in 0..scrapes {
                times.push(time(accept, &mut answer)?);
            }
            times.sort_unstable();
            let answer = str::from_utf8(&answer)?;
            let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
            ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
            let rows = body.lines().filter(|line| !line.starts_with('#'));
            ensure!(sum_of(body, "tfo_syn_total")? == expected(busy, services), "it is not what was counted");
            all.push(Measured {
                services,
                busy,
                format,
                rows: rows.count(),
                bytes: body.len(),
                least_ms: times[0].as_secs_f64() * 1e3,
                median_ms: times[times.len() / 2].as_secs_f64() * 1e3,
            });
        }
    }
    eprint!("\r                                \r");
    Ok(all)
}

/// Returns the duration of one scrape. The body replaces the earlier one in `answer`, whose memory is used again, so
/// that the client's allocations are not measured.
fn time(accept: &str, answer: &mut Vec<u8>) -> Result<Duration> {
    answer.clear();
    let begin = Instant::now();
    let mut stream = scrape::connect();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: tfo\r\nAccept: {accept}\r\n\r\n")?;
    stream.read_to_end(answer)?;
    Ok(begin.elapsed())
}

/// Returns the sum of all rows of `name` in `text`.
fn sum_of(text: &str, name: &str) -> Result<u64> {
    let rows = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
    rows.map(|row| Ok(row.rsplit_once(' ').context("a sample has a value")?.1.parse::<u64>()?)).sum()
}

/// Number of SYNs of each kind on each CPU.
const OF_A_KIND: u64 = 123_456;

fn expected(busy: bool, services: usize) -> u64 {
    let kinds = Family::ALL.len() * Class::ALL.len();
    if busy { OF_A_KIND * (kinds * (services + 1)) as u64 } else { 0 }
}

/// Writes counts for each of the first `services`: SYNs of each family and class, with data if they have an option, and
/// connections with round trips of eight lengths.
fn fill(pins: &Pins, services: u32) -> Result<()> {
    let mut cell: CellWords = [0; _];
    for family in Family::ALL {
        for class in Class::ALL {
            let tally =
                (family.index() * Class::COUNT + class.index()) * VERDICT_SLOTS + Verdict::Pass.index();
            let at = (offset_of!(Cell, syn) + tally * size_of::<Sampled<Tally>>()) / WORD;
            let with_data = if *class == Class::PlainSyn { 0 } else { OF_A_KIND };
            cell[at..at + 3].copy_from_slice(&[OF_A_KIND, with_data, 400 * with_data]);
        }
    }
    let mut outcomes: OutcomesWords = [0; _];
    [outcomes[offset_of!(Outcomes, accepted) / WORD], outcomes[offset_of!(Outcomes, refused) / WORD]] =
        [8 * OF_A_KIND, 7];
    for power in 10..18 {
        let at = (offset_of!(Outcomes, rtt_saved) + power * size_of::<RttBucket>()) / WORD;
        outcomes[at..at + 2].copy_from_slice(&[OF_A_KIND, OF_A_KIND * (3 << (power - 2))]);
    }

    let cpus = nr_cpus().map_err(|(_, error)| error).context("cannot count CPUs")?;
    let mut cells: PerCpuArray<_, CellWords> = open(pins, names::COUNTERS)?.try_into()?;
    let mut all_outcomes: Array<_, OutcomesWords> = open(pins, names::OUTCOMES)?.try_into()?;
    for index in 0..services {
        let first = |cpu| if cpu == 0 { cell } else { [0; _] };
        cells.set(index, PerCpuValues::try_from((0..cpus).map(first).collect::<Vec<_>>())?, 0)?;
        all_outcomes.set(index, outcomes, 0)?;
    }
    Ok(())
}

fn open(pins: &Pins, name: &str) -> Result<Map> {
    let path = pins.current()?.map(name);
    let map = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Map::from_map_data(map)?)
}
