//! A snapshot as text.
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
    policy::{Policy, Unguarded, decide},
    segment::Family,
    verdict::{Mode, Verdict},
};

use super::{Format, Program, Snapshot, labels::Labels};
use crate::{
    counters::{ReasonRow, Report, SynRow},
    datapath::Entries,
    saved::RttSaved,
};

/// Bytes for a service that has all rows.
const OF_A_SERVICE: usize = 6 * 1024;
/// The powers of two of microseconds that bound the buckets of round trips: 128 us to 8.4 s. Shorter ones are in the first,
/// longer ones beyond the last.
const ROUND_TRIPS: RangeInclusive<u32> = 7..=23;

impl Snapshot {
    /// All of it, as text.
    pub fn text(self, format: Format) -> String {
        let services: usize = self.programs().map(|(_, program)| program.report.services.len()).sum();
        // A text that grows is copied.
        let mut text = String::with_capacity(OF_A_SERVICE * (services + 4));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        text::encode(&mut text, &registry).expect("writing to a String cannot fail");
        format.of_open_metrics(text)
    }

    /// The programs that are attached, with the names of their interfaces.
    fn programs(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.interfaces.iter().filter_map(|on| Some((on.name.as_str(), on.program.as_ref()?)))
    }

    fn encode_syns(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut syns = counter(encoder, "tfo_syn", "SYNs, by what they are and what was done", None)?;
        each_syn(self.programs(), |labels, row| add(&mut syns, labels, row.map_or(0, |row| row.packets)))?;
        let help = "Bytes of data in SYNs; no row is zero";
        let mut bytes = counter(encoder, "tfo_syn_data", help, Some(&Unit::Bytes))?;
        each_syn(self.programs(), |labels, row| match row {
            Some(row) if row.data_bytes > 0 => add(&mut bytes, labels, row.data_bytes),
            _ => Ok(()),
        })
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
        for service in services().filter(|service| service.accepted > 0) {
            let RttSaved { connections, seconds, .. } = service.rtt_saved;
            let labels = Labels::new(&[("service", &service.name)]);
            saved.encode_family(&[&labels])?.encode_histogram::<NoLabelSet>(
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
        // Once, since each entry takes a system call.
        let counted = self.programs().filter_map(|(name, program)| Some((name, program, program.entries()?)));
        let counted: Vec<_> = counted.collect();
        let help = "Entries of the maps of what is remembered";
        let mut entries = gauge(encoder, "tfo_map_entries", help, None)?;
        for (name, _, Entries { prefixes, pending }) in &counted {
            for (map, count) in [("prefixes", prefixes), ("pending", pending)] {
                set(&mut entries, &[("interface", *name), ("map", map)], *count)?;
            }
        }
        let help = "Prefixes of sources that had to make room for others";
        let mut evicted = counter(encoder, "tfo_prefixes_evicted", help, None)?;
        for (name, program, Entries { prefixes, .. }) in &counted {
            add(&mut evicted, &[("interface", *name)], program.watch.prefixes.saturating_sub(*prefixes))?;
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

/// A kind of SYN.
struct SynKind {
    /// Family, class and verdict.
    names: (&'static str, &'static str, &'static str),
    labels: Labels,
    /// Whether it may be reached, but for guards.
    is_possible: bool,
}

/// Every kind of SYN, in the order of rows in a report.
fn kinds(report: &Report) -> Vec<SynKind> {
    let mode = Mode::ALL.iter().find(|known| known.name() == report.mode).copied();
    let is_possible = |class: Class, verdict: Verdict| {
        mode.is_some_and(|mode| {
            let policy = Policy::of_mode(mode);
            [false, true].iter().any(|known| decide(&policy, class, Unguarded(*known)).verdict() == verdict)
        })
    };
    let mut kinds = Vec::new();
    for family in Family::ALL {
        for class in Class::ALL {
            for verdict in Verdict::ALL {
                let names = (family.name(), class.name(), verdict.name());
                let labels = Labels::new(&[("family", names.0), ("class", names.1), ("verdict", names.2)]);
                kinds.push(SynKind { names, labels, is_possible: is_possible(*class, *verdict) });
            }
        }
    }
    kinds
}

/// Shows `see` all SYNs by interface, service and kind, by their labels: those that the program can count, with `None` where it
/// has not, and those that it did, in another mode.
fn each_syn<'a>(
    programs: impl Iterator<Item = (&'a str, &'a Program)>,
    mut see: impl FnMut(&[&Labels; 2], Option<&SynRow>) -> fmt::Result,
) -> fmt::Result {
    for (interface, Program { report, .. }) in programs {
        let kinds = kinds(report);
        for service in &report.services {
            let of_service = Labels::new(&[("interface", interface), ("service", &service.name)]);
            // Both are in the same order.
            let mut counted = service.syn.iter().peekable();
            for kind in &kinds {
                let row = counted.next_if(|row| (row.family, row.class, row.verdict) == kind.names);
                if row.is_some() || kind.is_possible {
                    see(&[&of_service, &kind.labels], row)?;
                }
            }
            debug_assert_eq!(counted.next(), None);
        }
    }
    Ok(())
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

fn reason_packets(rows: &[ReasonRow], reason: &str) -> u64 {
    rows.iter().find(|row| row.reason == reason).map_or(0, |row| row.packets)
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
