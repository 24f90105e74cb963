//! A snapshot as text.
//!
//! Each SYN counter is there from the beginning, with a zero, for every family and class, and every verdict that the
//! program may reach on it: `rate` misses no first event, and there is no row for what can't be.

use std::{fmt, ops::RangeInclusive, panic::resume_unwind, sync::Arc, thread};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};
use tfo_common::{
    class::Class,
    counters::{Counters, Guarded, Tally},
    info::Attach,
    observed::{RTT_BUCKETS, RttBucket},
    parse::{Malformed, Unsupported},
    policy::{Guard, Policy, Unguarded, decide},
    segment::Family,
    verdict::{Mode, Verdict},
};

use super::{Format, Program, Snapshot, labels::Labels};
use crate::dataplane::{Entries, ServiceCounters};

/// Bytes for a service that has all rows. A page that is not written to takes no memory.
const OF_A_SERVICE: usize = 10 * 1024;
/// The powers of two of microseconds that bound the buckets of round trips: 128 us to 8.4 s. Shorter ones are in the first,
/// longer ones beyond the last.
const ROUND_TRIPS: RangeInclusive<usize> = 7..=23;
const BUCKETS: usize = *ROUND_TRIPS.end() - *ROUND_TRIPS.start() + 2;

impl Snapshot {
    /// All of it, as text. It is written in two halves, side by side: of a thousand services, each takes milliseconds.
    pub fn text(self, format: Format) -> String {
        let snapshot = Arc::new(self);
        let half = |collector: Box<dyn Collector>| {
            let services: usize = snapshot.programs().map(|(_, program)| program.services.len()).sum();
            // A text that grows is copied.
            let mut text = String::with_capacity(OF_A_SERVICE * (services + 4));
            let mut registry = Registry::default();
            registry.register_collector(collector);
            text::encode_registry(&mut text, &registry).expect("writing to a String cannot fail");
            format.of_open_metrics(text)
        };
        let mut text = thread::scope(|scope| {
            let outcomes = scope.spawn(|| half(Box::new(Outcomes(Arc::clone(&snapshot)))));
            let mut text = half(Box::new(Syns(Arc::clone(&snapshot))));
            text.push_str(&outcomes.join().unwrap_or_else(|panic| resume_unwind(panic)));
            text
        });
        if format == Format::OpenMetrics {
            text::encode_eof(&mut text).expect("writing to a String cannot fail");
        }
        text
    }

    /// The programs that are attached, with the names of their interfaces.
    fn programs(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.interfaces.iter().filter_map(|on| Some((on.name.as_str(), on.program.as_ref()?)))
    }

    fn encode_attached(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Whether the program is attached, and where in the receive path";
        let mut attached = gauge(encoder, "tfo_xdp_attached", help, None)?;
        for on in self.interfaces.iter().filter(|on| !on.is_unreadable) {
            for mode in Attach::ALL {
                let is_so = on.program.as_ref().is_some_and(|program| program.info.attach == *mode as u32);
                let labels = [("interface", on.name.as_str()), ("mode", mode.name())];
                set(&mut attached, &labels, u64::from(is_so))?;
            }
        }
        let help =
            "Whether the program is attached and its maps can be read; without, its other rows are missing";
        let mut up = gauge(encoder, "tfo_interface_up", help, None)?;
        for on in &self.interfaces {
            set(&mut up, &[("interface", on.name.as_str())], u64::from(on.program.is_some()))?;
        }
        Ok(())
    }

    /// SYNs by interface, service and kind: those that the program can count, and those that it did, in another mode.
    fn encode_syns(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let tables: Vec<_> = self.programs().map(|(name, program)| SynTable::of(name, program)).collect();
        let rows = || tables.iter().flat_map(SynTable::rows);
        let mut syns = counter(encoder, "tfo_syn", "SYNs, by what they are and what was done", None)?;
        for (labels, tally, _) in rows().filter(|(_, tally, is_possible)| *is_possible || tally.packets > 0) {
            add(&mut syns, &labels, tally.packets)?;
        }
        let help = "Bytes of data in SYNs; no row is zero";
        let mut bytes = counter(encoder, "tfo_syn_data", help, Some(&Unit::Bytes))?;
        for (labels, tally, _) in rows().filter(|(_, tally, _)| tally.data_bytes > 0) {
            add(&mut bytes, &labels, tally.data_bytes)?;
        }
        Ok(())
    }

    /// What protections did, or would have done; no row is zero.
    fn encode_guards(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "SYNs on which a protection acted, or would have; no row is zero";
        let mut guards = counter(encoder, "tfo_guard", help, None)?;
        for (name, program) in self.programs() {
            for ServiceCounters { name: service, counters, .. } in &program.services {
                for (guard, Guarded { acted, would }) in Guard::ALL.iter().zip(counters.guards) {
                    for (effect, packets) in [("acted", acted), ("would", would)] {
                        if packets > 0 {
                            let of_guard = [("guard", guard.name()), ("effect", effect)];
                            let of_service = [("interface", name), ("service", service.as_str())];
                            add(&mut guards, &[of_service, of_guard].concat(), packets)?;
                        }
                    }
                }
            }
        }
        let help = "Sources of which it was forgotten how much they had used, to make room for others";
        let mut sources = counter(encoder, "tfo_sources_forgotten", help, None)?;
        for (name, program) in self.programs() {
            add(&mut sources, &[("interface", name)], program.watch.sources_forgotten)?;
        }
        Ok(())
    }

    /// What became of connections, where that is known. Each interface's program sees those of the whole network namespace, but
    /// began to count at another time: so that no counter ever goes back, they are the first one's, or none. A SYN that was
    /// refused is known where it came in.
    fn encode_outcomes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let knows = |program: &&Program| program.knows_outcomes;
        let first = self.interfaces.first().and_then(|on| on.program.as_ref()).filter(knows);
        let services = || first.iter().flat_map(|program| &program.services);

        let help = "Connections that the kernel made of a SYN at once";
        let mut accepted = counter(encoder, "tfo_accepted", help, None)?;
        for service in services() {
            add(&mut accepted, &[("service", service.name.as_str())], service.outcomes.accepted)?;
        }
        let help = "SYNs with a good cookie that the kernel answered with an ordinary handshake";
        let mut refused = counter(encoder, "tfo_refused", help, None)?;
        for (name, program) in self.programs().filter(|(_, program)| knows(program)) {
            for ServiceCounters { name: service, outcomes, .. } in &program.services {
                add(&mut refused, &[("interface", name), ("service", service)], outcomes.refused)?;
            }
        }
        let help = "SYNs that the guard against replays forgot before their time, to make room for others";
        let mut forgotten = counter(encoder, "tfo_replays_forgotten", help, None)?;
        for service in first.iter().filter(|program| is_shield(program)).flat_map(|program| &program.services)
        {
            let replays = service.outcomes.replays_forgotten;
            add(&mut forgotten, &[("service", service.name.as_str())], replays)?;
        }
        let help = "Round trips that accepted connections did not wait for";
        let mut saved =
            encoder.encode_descriptor("tfo_rtt_saved", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for ServiceCounters { name, outcomes, .. } in services() {
            if outcomes.accepted > 0 {
                let labels = Labels::new(&[("service", name)]);
                encode_round_trips(&mut saved.encode_family(&[&labels])?, &outcomes.rtt_saved)?;
            }
        }
        Ok(())
    }

    fn encode_faults(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Frames passed unclassified because the kernel drops them";
        let mut malformed = counter(encoder, "tfo_malformed", help, None)?;
        for (name, program) in self.programs() {
            for reason in Malformed::ALL {
                let of = |service: &ServiceCounters| service.counters.malformed[reason.index()];
                let packets = program.services.iter().map(of).sum();
                add(&mut malformed, &[("interface", name), ("reason", reason.name())], packets)?;
            }
        }
        let help = "Frames passed unclassified because the program does not support what they use";
        let mut unsupported = counter(encoder, "tfo_unsupported", help, None)?;
        for (name, program) in self.programs() {
            for reason in Unsupported::ALL {
                let of = |service: &ServiceCounters| service.counters.unsupported[reason.index()];
                let packets = program.services.iter().map(of).sum();
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
        let help = "SYNs not shed and cookies not translated because the keys in the map were not confirmed";
        let mut unconfirmed = counter(encoder, "tfo_keys_unconfirmed", help, None)?;
        for (name, program) in self.programs() {
            add(&mut unconfirmed, &[("interface", name)], program.watch.unconfirmed)?;
        }
        let help =
            "Times that the kernel's keys could not be read or written, or were changed by somebody else";
        let mut failures = counter(encoder, "tfo_key_failures", help, None)?;
        failures.encode_counter::<NoLabelSet, _, u64>(&self.key_failures, None)?;
        let help = "Log lines that were not written, since there were too many or nobody read them";
        let mut dropped = counter(encoder, "tfo_log_lines_dropped", help, None)?;
        dropped.encode_counter::<NoLabelSet, _, u64>(&self.log_lines_dropped, None)
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

/// The half of a snapshot that has the SYNs.
#[derive(Debug)]
struct Syns(Arc<Snapshot>);

impl Collector for Syns {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let mut build = encoder.encode_descriptor("tfo_build", "This tfo", None, MetricType::Info)?;
        build.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        self.0.encode_attached(encoder)?;
        self.0.encode_syns(encoder)?;
        self.0.encode_guards(encoder)
    }
}

/// The half that has what became of connections, and all else.
#[derive(Debug)]
struct Outcomes(Arc<Snapshot>);

impl Collector for Outcomes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.0.encode_outcomes(encoder)?;
        self.0.encode_faults(encoder)?;
        self.0.encode_watch(encoder)?;
        self.0.encode_keys(encoder)?;
        self.0.encode_kernel(encoder)
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

/// Whether its services may be protected.
fn is_shield(program: &Program) -> bool {
    program.info.mode == Mode::Shield as u32
}

/// A row of a counter.
fn add(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

/// A row of a gauge.
fn set(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_gauge(&value)
}

/// The SYNs that one program counts.
struct SynTable<'a> {
    kinds: Vec<SynKind>,
    services: Vec<(Labels, &'a Counters)>,
}

/// A kind of SYN.
struct SynKind {
    family: Family,
    class: Class,
    verdict: Verdict,
    labels: Labels,
    /// Whether it may be reached, but for guards.
    is_possible: bool,
}

impl<'a> SynTable<'a> {
    fn of(interface: &str, Program { info, services, .. }: &'a Program) -> Self {
        let labels = |service: &str| Labels::new(&[("interface", interface), ("service", service)]);
        Self {
            kinds: kinds(Mode::ALL.get(info.mode as usize).copied()),
            services: services.iter().map(|service| (labels(&service.name), &service.counters)).collect(),
        }
    }

    /// All kinds of each service, with their labels, and whether they are possible.
    fn rows(&self) -> impl Iterator<Item = ([&Labels; 2], &Tally, bool)> {
        self.services.iter().flat_map(|(of_service, counters)| {
            self.kinds.iter().map(move |SynKind { family, class, verdict, labels, is_possible }| {
                let tally = &counters.syn[family.index()][class.index()][verdict.index()];
                ([of_service, labels], tally, *is_possible)
            })
        })
    }
}

/// Every kind of SYN, in `mode`.
fn kinds(mode: Option<Mode>) -> Vec<SynKind> {
    let is_possible = |class: Class, verdict: Verdict| {
        mode.is_some_and(|mode| {
            let policy = Policy::of_mode(mode);
            [false, true].iter().any(|known| decide(&policy, class, Unguarded(*known)).verdict == verdict)
        })
    };
    let mut kinds = Vec::new();
    for &family in Family::ALL {
        for &class in Class::ALL {
            for &verdict in Verdict::ALL {
                let names = [("family", family.name()), ("class", class.name()), ("verdict", verdict.name())];
                let (labels, is_possible) = (Labels::new(&names), is_possible(class, verdict));
                kinds.push(SynKind { family, class, verdict, labels, is_possible });
            }
        }
    }
    kinds
}

/// A histogram of `saved`, in seconds.
fn encode_round_trips(family: &mut MetricEncoder<'_>, saved: &[RttBucket; RTT_BUCKETS]) -> fmt::Result {
    let connections = saved.iter().map(|bucket| bucket.connections).sum();
    let us: u64 = saved.iter().map(|bucket| bucket.us).sum();
    family.encode_histogram::<NoLabelSet>(us as f64 / 1e6, connections, &buckets(saved), None)
}

/// By the upper bound of each bucket of the histogram, in seconds, how many round trips are in it alone.
fn buckets(saved: &[RttBucket; RTT_BUCKETS]) -> [(f64, u64); BUCKETS] {
    let mut buckets = [(f64::INFINITY, 0); BUCKETS];
    for (bucket, power) in buckets.iter_mut().zip(ROUND_TRIPS) {
        bucket.0 = (1_u64 << power) as f64 / 1e6;
    }
    for (power, bucket) in saved.iter().enumerate() {
        buckets[power.clamp(*ROUND_TRIPS.start(), ROUND_TRIPS.end() + 1) - ROUND_TRIPS.start()].1 +=
            bucket.connections;
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kernel::tcp_ext::TcpExt, view::metrics::OnInterface};

    #[test]
    fn an_interface_that_cannot_be_read_has_no_rows_but_one() {
        let on =
            |name: &str, is_unreadable| OnInterface { name: name.to_owned(), program: None, is_unreadable };
        let snapshot = Snapshot {
            interfaces: vec![on("v0", true), on("w0", false)],
            kernel: TcpExt::default(),
            key_failures: 0,
            log_lines_dropped: 0,
            rotation_interval: None,
        };
        let text = snapshot.text(Format::Prometheus);
        let of = |name: &str| text.lines().filter(|line| line.contains(name)).collect::<Vec<_>>();
        assert_eq!(of("\"v0\""), ["tfo_interface_up{interface=\"v0\"} 0"]);
        assert_eq!(of("\"w0\"").len(), 3, "{text}");
        assert_eq!(of("tfo_kernel_passive_total ").last(), Some(&"tfo_kernel_passive_total 0"));
    }

    #[test]
    fn a_round_trip_is_in_the_first_bucket_that_covers_it() {
        let mut saved = [RttBucket::default(); RTT_BUCKETS];
        for (power, connections) in [(0, 1), (7, 2), (8, 4), (23, 8), (24, 16), (31, 32)] {
            saved[power].connections = connections;
        }
        let filled: Vec<_> =
            buckets(&saved).into_iter().filter(|(_, connections)| *connections > 0).collect();
        assert_eq!(filled, [(0.000_128, 3), (0.000_256, 4), (8.388_608, 8), (f64::INFINITY, 48)]);
    }
}
