//! Results of `--live`, as a table and as JSON.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use comfy_table::CellAlignment::{Left, Right};
use serde::Serialize;
use tfo_userspace::view::table::table;

use super::{Measured, STACK, Sample};
use crate::{
    measure::Plan,
    report::{cpu_model, kernel_release, median, sorted},
};

/// Results of a run.
#[derive(Serialize)]
pub(crate) struct Report {
    kernel: String,
    cpu: String,
    rounds: u32,
    repeat: u32,
    rows: Vec<Row>,
}

/// Results of a flood on a route. Values that are no sums are medians over all rounds.
#[derive(Serialize)]
struct Row {
    flood: &'static str,
    route: &'static str,
    /// Millions of SYNs per second that were sent, and that were received.
    sent_mpps: f64,
    received_mpps: f64,
    /// CPU time per received SYN, in nanoseconds: the median and the least of all rounds.
    cpu_ns: f64,
    cpu_ns_min: f64,
    /// Millions of SYNs per second that one CPU can process.
    mpps: f64,
    /// CPU time beyond that of the same route with a program that only passes, in nanoseconds.
    tfo_ns: Option<f64>,
    /// SYNs over all rounds: all that were received, and those that the listener counted, by their TcpExt counter.
    received: u64,
    stack: BTreeMap<&'static str, u64>,
}

impl Report {
    pub(super) fn new(plan: &Plan, measured: &[Measured]) -> Result<Self> {
        Ok(Self {
            kernel: kernel_release()?,
            cpu: cpu_model()?,
            rounds: plan.rounds,
            repeat: plan.repeat,
            rows: measured.iter().map(|row| Row::new(row, measured)).collect(),
        })
    }

    pub(crate) fn print(&self) {
        println!("{}, Linux {}, {} rounds of {} SYNs", self.cpu, self.kernel, self.rounds, self.repeat);
        println!("{ABOUT}\n");
        let mut columns = vec![
            ("flood", Left),
            ("received by", Left),
            ("sent", Right),
            ("received", Right),
            ("CPU ns", Right),
            ("min", Right),
            ("Mpps", Right),
            ("tfo's ns", Right),
        ];
        columns.extend(STACK.iter().map(|(_, meaning)| (*meaning, Right)));
        let rows = self.rows.iter().map(|row| {
            let mut cells = vec![
                row.flood.to_owned(),
                row.route.to_owned(),
                format!("{:.2}", row.sent_mpps),
                format!("{:.2}", row.received_mpps),
                format!("{:.0}", row.cpu_ns),
                format!("{:.0}", row.cpu_ns_min),
                format!("{:.2}", row.mpps),
                row.tfo_ns.map_or(String::new(), |ns| format!("{ns:.0}")),
            ];
            cells.extend(STACK.iter().map(|(name, _)| match row.stack[name] {
                0 => String::new(),
                count => format!("{:.1}%", count as f64 * 100.0 / row.received as f64),
            }));
            cells
        });
        print!("{}", table(&columns, rows));
    }
}

const ABOUT: &str = "\
sent, received: million SYNs a second, by the clock; what is not received found no room in the interface's queue.
CPU ns: what it takes to receive a SYN, one that comes from another CPU's cache. Mpps: for how many one CPU has time.
tfo's ns: what of that is beyond XDP_PASS. There are ten keys; a flood of forged cookies is tried with two.
Then dropped: as another host's, first thing in ip_rcv. Then the stack: a listener with Fast Open and room for all;
then SYN cookies: as it answers once its queue is full. The last columns: what has become there of those received.";

impl Row {
    fn new(row: &Measured, all: &[Measured]) -> Self {
        let each = |number: &dyn Fn(&Sample) -> f64| sorted(row.samples.iter().map(number));
        let rate = |number, time: Duration| number as f64 / time.as_secs_f64() / 1e6;
        let cpu = each(&Sample::cpu_ns);
        let baseline = all.iter().find(|it| it.flood.name == row.flood.name && row.route.is_beyond(it.route));
        let tfo = baseline.map(|baseline| {
            let pairs = row.samples.iter().zip(&baseline.samples);
            median(&sorted(pairs.map(|(with, without)| with.cpu_ns() - without.cpu_ns())))
        });
        let sum = |counter: usize| row.samples.iter().map(|sample| sample.stack[counter]).sum();
        Self {
            flood: row.flood.name,
            route: row.route.name,
            sent_mpps: median(&each(&|sample| rate(sample.sent, sample.sending))),
            received_mpps: median(&each(&|sample| rate(sample.received, sample.receiving))),
            cpu_ns: median(&cpu),
            cpu_ns_min: cpu[0],
            mpps: 1e3 / median(&cpu),
            tfo_ns: tfo,
            received: row.samples.iter().map(|sample| sample.received).sum(),
            stack: STACK.iter().enumerate().map(|(counter, (name, _))| (*name, sum(counter))).collect(),
        }
    }
}
