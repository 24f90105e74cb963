//! A snapshot as text: OpenMetrics, or the older format of Prometheus, which says the same.
//!
//! Each SYN counter is there from the beginning, with a zero, for every family and class, and every verdict that the
//! program may reach on it: `rate` misses no first event, and there is no row for what can't be.

use std::{fmt, ops::RangeInclusive};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};
use tfo_common::{
    class::Class,
    info::Attach,
    parse::{Malformed, Unsupported},
    segment::Family,
    verdict::{Mode, Verdict, decide},
};

use super::{Program, Snapshot};
use crate::{
    counters::{ReasonRow, Report, ServiceReport, SynRow},
    datapath::Entries,
    saved::RttSaved,
};

/// The powers of two of microseconds that bound the buckets of round trips: 128 us to 8.4 s. Shorter ones are in the first,
/// longer ones beyond the last.
const ROUND_TRIPS: RangeInclusive<u32> = 7..=23;

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, for those who ask for it, as Prometheus does.
    OpenMetrics,
    /// The text format of Prometheus 0.0.4, for everybody else.
    Prometheus,
}

impl Format {
    /// What a client with these `Accept` headers gets.
    pub fn accepted<'a>(mut accept: impl Iterator<Item = &'a str>) -> Self {
        let has_open_metrics = accept.any(|value| value.contains("application/openmetrics-text"));
        if has_open_metrics { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

impl Snapshot {
    /// All of it, as text.
    pub fn text(self, format: Format) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("writing to a String cannot fail");
        match format {
            Format::OpenMetrics => text,
            Format::Prometheus => older(&text),
        }
    }

    /// The programs that are attached, with the names of their interfaces.
    fn programs(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.interfaces.iter().filter_map(|on| Some((on.name.as_str(), on.program.as_ref()?)))
    }

    fn encode_syns(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rows: Vec<_> =
            self.programs().flat_map(|(name, program)| syn_rows(name, &program.report)).collect();
        let mut syns = counter(encoder, "tfo_syn", "SYNs, by what they are and what was done", None)?;
        for (labels, row) in &rows {
            add(&mut syns, labels, row.packets)?;
        }
        let mut bytes = counter(encoder, "tfo_syn_data", "Bytes of data in SYNs", Some(&Unit::Bytes))?;
        for (labels, row) in &rows {
            add(&mut bytes, labels, row.data_bytes)?;
        }
        Ok(())
    }

    /// What became of connections, where that is known. Each interface's program sees those of the whole network namespace, but
    /// began to count at another time: so that no counter ever goes back, they are the first one's, or none. A SYN that was
    /// refused is known where it came in.
    fn encode_outcomes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let knows = |program: &&Program| program.report.outcomes;
        let first = self.interfaces.first().and_then(|on| on.program.as_ref()).filter(knows);
        let services = || first.iter().flat_map(|program| &program.report.services);

        let help = "Connections that the kernel made of a SYN at once";
        let mut accepted = counter(encoder, "tfo_accepted", help, None)?;
        for service in services() {
            add(&mut accepted, &[("service", service.name.as_str())], service.accepted)?;
        }
        let help = "SYNs with a good cookie that the kernel answered with an ordinary handshake";
        let mut refused = counter(encoder, "tfo_refused", help, None)?;
        for (name, program) in self.programs().filter(|(_, program)| knows(program)) {
            for service in &program.report.services {
                add(&mut refused, &[("interface", name), ("service", &service.name)], service.refused)?;
            }
        }
        let help = "Round trips that accepted connections did not wait for";
        let mut saved =
            encoder.encode_descriptor("tfo_rtt_saved", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for service in services() {
            let RttSaved { connections, seconds, .. } = service.rtt_saved;
            saved.encode_family(&[("service", service.name.as_str())])?.encode_histogram::<NoLabelSet>(
                seconds,
                connections,
                &buckets(&service.rtt_saved),
                None,
            )?;
        }
        Ok(())
    }

    fn encode_faults(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Frames passed unclassified because the kernel drops them";
        let mut malformed = counter(encoder, "tfo_malformed", help, None)?;
        for (name, program) in self.programs() {
            for reason in Malformed::ALL {
                let packets = reason_packets(&program.report.malformed, reason.name());
                add(&mut malformed, &[("interface", name), ("reason", reason.name())], packets)?;
            }
        }
        let help = "Frames passed unclassified because the program does not support what they use";
        let mut unsupported = counter(encoder, "tfo_unsupported", help, None)?;
        for (name, program) in self.programs() {
            for reason in Unsupported::ALL {
                let packets = reason_packets(&program.report.unsupported, reason.name());
                add(&mut unsupported, &[("interface", name), ("reason", reason.name())], packets)?;
            }
        }
        Ok(())
    }

    fn encode_watch(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut events = counter(encoder, "tfo_events", "Events that were reported", None)?;
        for (name, program) in self.programs() {
            add(&mut events, &[("interface", name)], program.watch.events)?;
        }
        let help = "Packets whose event found no room in the ring, or came too fast for the controller";
        let mut lost = counter(encoder, "tfo_events_lost", help, None)?;
        for (name, program) in self.programs() {
            for (at, packets) in [("ring", program.watch.events_lost), ("controller", program.dropped_events)]
            {
                add(&mut lost, &[("interface", name), ("at", at)], packets)?;
            }
        }
        let help = "Packets that were no event because of the rate";
        let mut skipped = counter(encoder, "tfo_events_skipped", help, None)?;
        for (name, program) in self.programs() {
            add(&mut skipped, &[("interface", name)], program.watch.events_skipped)?;
        }
        let mut entries =
            gauge(encoder, "tfo_map_entries", "Entries of the maps of what is remembered", None)?;
        for (name, program) in self.programs() {
            let Some(Entries { prefixes, pending }) = program.entries() else { continue };
            for (map, count) in [("prefixes", prefixes), ("pending", pending)] {
                set(&mut entries, &[("interface", name), ("map", map)], count)?;
            }
        }
        Ok(())
    }

    fn encode_keys(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Whether the map's keys are the kernel's and the schedule's";
        let mut in_step = gauge(encoder, "tfo_keys_in_step", help, None)?;
        for (name, program) in self.programs() {
            if let Some(is_in_step) = program.in_step {
                set(&mut in_step, &[("interface", name)], u64::from(is_in_step))?;
            }
        }
        let mut keys = gauge(encoder, "tfo_keys", "Keys in the map, by what they are to the kernel", None)?;
        for (name, program) in self.programs() {
            for of_role in &program.keys {
                set(&mut keys, &[("interface", name), ("role", of_role.role.name())], of_role.count)?;
            }
        }
        let help = "How long ago the key came into the map; of several, the oldest";
        let mut age = gauge(encoder, "tfo_key_age", help, Some(&Unit::Seconds))?;
        for (name, program) in self.programs() {
            for of_role in &program.keys {
                if let Some(seconds) = of_role.age {
                    set(&mut age, &[("interface", name), ("role", of_role.role.name())], seconds)?;
                }
            }
        }
        let help = "How often a new key is made or derived; absent where keys are the kernel's to change";
        let mut interval = gauge(encoder, "tfo_key_rotation_interval", help, Some(&Unit::Seconds))?;
        if let Some(seconds) = self.rotation_interval {
            interval.encode_gauge(&seconds)?;
        }
        let help =
            "Times that the kernel's keys could not be read or written, or were changed by somebody else";
        let mut failures = counter(encoder, "tfo_key_failures", help, None)?;
        failures.encode_counter::<NoLabelSet, _, u64>(&self.key_failures, None)
    }

    /// The kernel's own counters, under their own names.
    fn encode_kernel(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, value) in self.kernel.named() {
            let help = format!("{name} of the kernel, TcpExt in /proc/net/netstat");
            let name = format!("tfo_kernel{}", snake_case(name.trim_start_matches("TCPFastOpen")));
            counter(encoder, &name, &help, None)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }
}

/// `_passive_alt_key` for `PassiveAltKey`.
fn snake_case(name: &str) -> String {
    name.chars().fold(String::new(), |mut snake, letter| {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
        snake
    })
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let mut build = encoder.encode_descriptor("tfo_build", "This tfo", None, MetricType::Info)?;
        build.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        let help = "Whether the program is attached, and where in the receive path";
        let mut attached = gauge(encoder, "tfo_xdp_attached", help, None)?;
        for on in &self.interfaces {
            for mode in Attach::ALL {
                let is_so = on.program.as_ref().is_some_and(|program| program.report.attach == mode.name());
                set(
                    &mut attached,
                    &[("interface", on.name.as_str()), ("mode", mode.name())],
                    u64::from(is_so),
                )?;
            }
        }
        self.encode_syns(encoder)?;
        self.encode_outcomes(encoder)?;
        self.encode_faults(encoder)?;
        self.encode_watch(encoder)?;
        self.encode_keys(encoder)?;
        self.encode_kernel(encoder)
    }
}

fn counter<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
    unit: Option<&'a Unit>,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Counter)
}

fn gauge<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
    unit: Option<&'a Unit>,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Gauge)
}

/// A row of a counter.
fn add(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

/// A row of a gauge.
fn set(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_gauge(&value)
}

type SynLabels<'a> = [(&'static str, &'a str); 5];

/// The rows of one interface, by service: those that the program can count, and those that it did, in another mode.
fn syn_rows<'a>(interface: &'a str, report: &'a Report) -> impl Iterator<Item = (SynLabels<'a>, SynRow)> {
    report.services.iter().flat_map(move |service| {
        let ServiceReport { name: service, syn: counted, .. } = service;
        let possible = possible(report.mode);
        let zeros = possible.filter(|zero| !counted.iter().any(|row| is_same(row, zero)));
        zeros.chain(counted.iter().cloned()).map(move |row| {
            let labels = [
                ("interface", interface),
                ("service", service),
                ("family", row.family),
                ("class", row.class),
                ("verdict", row.verdict),
            ];
            (labels, row)
        })
    })
}

/// The histogram of `saved`: by the upper bound of each bucket, in seconds, how many round trips are in it alone.
fn buckets(saved: &RttSaved) -> Vec<(f64, u64)> {
    let bounds = ROUND_TRIPS.map(|power| 1_u64 << power);
    let mut buckets: Vec<_> =
        bounds.clone().map(|us| (us as f64 / 1e6, 0)).chain([(f64::INFINITY, 0)]).collect();
    for bucket in &saved.buckets {
        let place = bounds.clone().take_while(|us| *us < bucket.below_us).count();
        buckets[place].1 += bucket.connections;
    }
    buckets
}

/// A zero for each family, each class and each verdict that `decide` may reach on it in `mode`.
fn possible(mode: &str) -> impl Iterator<Item = SynRow> {
    let mode = Mode::ALL.iter().find(|known| known.name() == mode).copied();
    let is_possible = move |class: Class, verdict: Verdict| {
        mode.is_some_and(|mode| [false, true].iter().any(|known| decide(mode, class, *known) == verdict))
    };
    let all = Family::ALL.iter().flat_map(|family| Class::ALL.iter().map(move |class| (*family, *class)));
    let all =
        all.flat_map(|(family, class)| Verdict::ALL.iter().map(move |verdict| (family, class, *verdict)));
    all.filter(move |(_, class, verdict)| is_possible(*class, *verdict)).map(|(family, class, verdict)| {
        SynRow {
            family: family.name(),
            class: class.name(),
            verdict: verdict.name(),
            packets: 0,
            with_data: 0,
            data_bytes: 0,
        }
    })
}

fn is_same(one: &SynRow, other: &SynRow) -> bool {
    (one.family, one.class, one.verdict) == (other.family, other.class, other.verdict)
}

fn reason_packets(rows: &[ReasonRow], reason: &str) -> u64 {
    rows.iter().find(|row| row.reason == reason).map_or(0, |row| row.packets)
}

/// OpenMetrics as the text format of Prometheus 0.0.4: the samples are the same. There, a counter's family is called as its
/// samples are, there are no units, and what is an info is a gauge.
fn older(text: &str) -> String {
    let mut older = String::with_capacity(text.len());
    let mut help = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // It waits for its type.
            help = rest;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            let help = help.strip_prefix(name).unwrap_or_default();
            older += &format!("# HELP {name}{suffix}{help}\n# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            older.push_str(line);
            older.push('\n');
        }
    }
    older
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saved::Bucket;

    #[test]
    fn a_round_trip_is_in_the_first_bucket_that_covers_it() {
        let bucket = |power: u32, connections| Bucket { below_us: 1 << power, connections, seconds: 0.0 };
        let all =
            vec![bucket(0, 1), bucket(7, 2), bucket(8, 4), bucket(23, 8), bucket(24, 16), bucket(31, 32)];
        let saved = RttSaved { connections: 63, seconds: 0.0, buckets: all };
        let filled: Vec<_> =
            buckets(&saved).into_iter().filter(|(_, connections)| *connections > 0).collect();
        assert_eq!(filled, [(0.000_128, 3), (0.000_256, 4), (8.388_608, 8), (f64::INFINITY, 48)]);
    }
}
