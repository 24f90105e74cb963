//! Results of the scenarios, as a table and as JSON.

use std::fs;

use anyhow::Result;
use comfy_table::CellAlignment::{Left, Right};
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};
use tfo_userspace::view::table::table;

use crate::{
    measure::{Measured, Plan, Sample},
    scenarios::Subject,
};

/// Nanoseconds that driver and kernel are assumed to take per packet around the program. The estimate of packets per
/// second adds the net cost to it.
const DRIVER_NS: f64 = 40.0;
/// Speed of 10 GbE, in bits per nanosecond.
const LINE: f64 = 10.0;
/// Bytes on the wire besides the frame (preamble, checksum, gap), and the length of the shortest frame.
const WIRE: usize = 24;
const SHORTEST: usize = 60;

/// Results of a run.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    kernel: String,
    cpu: String,
    rounds: u32,
    #[serde(default = "once")]
    loads: u32,
    repeat: u32,
    driver_ns: f64,
    /// Nanoseconds that a test run takes per packet if the program does nothing.
    pass_ns: f64,
    scenarios: Vec<Row>,
}

/// Returns the default of `loads`, which earlier versions did not write.
const fn once() -> u32 {
    1
}

/// Results of one scenario. Times are in nanoseconds per packet.
#[derive(Serialize, Deserialize)]
struct Row {
    name: String,
    frame_bytes: usize,
    /// Time beyond the program that does nothing: the median of all rounds, and the difference of both minima.
    net_ns: f64,
    net_ns_min: f64,
    /// Gross time as a multiple of the time of the program that does nothing.
    times_pass: f64,
    /// Millions of packets per second on one core, if the driver takes [`DRIVER_NS`] for each and the stack takes
    /// nothing.
    mpps: f64,
    /// `mpps` as a share of the packets of this size that 10 GbE can carry.
    of_10gbe: f64,
}

impl Report {
    pub(crate) fn new(plan: &Plan, measured: Vec<Measured>) -> Result<Self> {
        let is_plain = |it: &&Measured| !matches!(it.scenario.subject, Subject::Varied { .. });
        let passes = measured.iter().filter(is_plain).flat_map(|it| &it.samples).map(|sample| sample.pass);
        let mut passes = sorted(passes);
        if passes.is_empty() {
            passes = sorted(measured.iter().flat_map(|it| &it.samples).map(|sample| sample.pass));
        }
        let pass_ns = median(&passes);
        Ok(Self {
            kernel: kernel_release()?,
            cpu: cpu_model()?,
            rounds: plan.rounds,
            loads: plan.loads,
            repeat: plan.repeat,
            driver_ns: DRIVER_NS,
            pass_ns,
            scenarios: measured.iter().map(|measured| Row::new(measured, pass_ns)).collect(),
        })
    }

    /// Prints the table, with the values of `earlier` beside it.
    pub(crate) fn print(&self, earlier: Option<&Self>) {
        println!("{}", self.circumstances());
        if let Some(earlier) = earlier {
            println!("before: {}", earlier.circumstances());
        }
        println!(
            "net: CPU time for a packet beyond that of XDP_PASS, {:.1} ns in a test run. Mpps, and share of 10 GbE: what\n\
             one core could do if the driver took {DRIVER_NS} ns for a packet, and what comes behind nothing.\n",
            self.pass_ns
        );
        let mut columns = vec![
            ("scenario", Left),
            ("net ns", Right),
            ("min", Right),
            ("x PASS", Right),
            ("Mpps", Right),
            ("of 10 GbE", Right),
        ];
        if earlier.is_some() {
            columns.extend([("before", Right), ("change", Right)]);
        }
        let rows = self.scenarios.iter().map(|row| {
            let mut cells = vec![
                row.name.clone(),
                format!("{:.1}", row.net_ns),
                format!("{:.1}", row.net_ns_min),
                format!("{:.1}", row.times_pass),
                format!("{:.1}", row.mpps),
                format!("{:.0}%", row.of_10gbe * 100.0),
            ];
            let before = earlier.and_then(|earlier| earlier.scenarios.iter().find(|it| it.name == row.name));
            if let Some(before) = before {
                cells
                    .extend([format!("{:.1}", before.net_ns), format!("{:+.1}", row.net_ns - before.net_ns)]);
            }
            cells
        });
        print!("{}", table(&columns, rows));
    }

    fn circumstances(&self) -> String {
        let Self { cpu, kernel, rounds, loads, repeat, .. } = self;
        format!("{cpu}, Linux {kernel}, {loads} loads, {rounds} rounds of {repeat} runs")
    }
}

impl Row {
    fn new(measured: &Measured, pass_ns: f64) -> Self {
        let net = sorted(measured.samples.iter().map(|sample| sample.gross - sample.pass));
        let least = |of: fn(&Sample) -> f64| measured.samples.iter().map(of).fold(f64::INFINITY, f64::min);
        let frame_bytes = measured.scenario.frame.len();
        let mpps = 1e3 / (DRIVER_NS + median(&net));
        let line_mpps = 1e3 * LINE / (8 * (frame_bytes.max(SHORTEST) + WIRE)) as f64;
        Self {
            name: measured.scenario.name.clone(),
            frame_bytes,
            net_ns: median(&net),
            net_ns_min: least(|sample| sample.gross) - least(|sample| sample.pass),
            times_pass: 1.0 + median(&net) / pass_ns,
            mpps,
            of_10gbe: mpps / line_mpps,
        }
    }
}

pub(crate) fn kernel_release() -> Result<String> {
    Ok(uname()?.release().to_string_lossy().into_owned())
}

pub(crate) fn cpu_model() -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(model.map_or("unknown", |(_, model)| model).to_owned())
}

pub(crate) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Returns the median of sorted values, of which there must be at least one.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}
