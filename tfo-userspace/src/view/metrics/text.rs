//! Text of a snapshot.
//!
//! SYN counters begin with zero for each family, class and possible verdict, so `rate` misses no first event. A verdict
//! that is impossible for its class has no row.

use std::{fmt, ops::RangeInclusive, panic::resume_unwind, sync::Arc, thread};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};
use tfo_common::{
    class::Class,
    client::Attempt,
    counters::{Counters, GuardCounts, Tally},
    info::Attach,
    observed::{RTT_BUCKETS, RttBucket},
    parse::{Malformed, Unsupported},
    policy::{Guard, Policy, WithoutGuards, decide},
    segment::Family,
    verdict::{Mode, Verdict},
};

use super::{Answering, Format, Program, Snapshot, labels::Labels};
use crate::{
    dataplane::{Entries, ServiceCounters},
    fleet::feed::State,
    model::services::OTHER_NAME,
};

/// Bytes of text reserved for one service, enough for all its rows. Reserved pages take no memory until written.
const BYTES_PER_SERVICE: usize = 10 * 1024;
/// Upper bounds of histogram buckets, as powers of two of microseconds: 128 us to 8.4 s. Shorter round trips are in the
/// first bucket, longer ones in a last bucket without a bound.
const BUCKET_POWERS: RangeInclusive<usize> = 7..=23;
const BUCKETS: usize = *BUCKET_POWERS.end() - *BUCKET_POWERS.start() + 2;

impl Snapshot {
    /// Writes the snapshot in `format`. Two threads write one half each, since a thousand services take milliseconds.
    pub fn text(self, format: Format) -> String {
        let snapshot = Arc::new(self);
        let half = |collector: Box<dyn Collector>| {
            let services: usize = snapshot.programs().map(|(_, program)| program.services.len()).sum();
            // A String that outgrows its capacity is copied.
            let mut text = String::with_capacity(BYTES_PER_SERVICE * (services + 4));
            let netns = snapshot.netns.iter().map(|name| ("netns".into(), name.clone().into()));
            let mut registry = Registry::with_labels(netns);
            registry.register_collector(collector);
            text::encode_registry(&mut text, &registry).expect("writing to a String cannot fail");
            format.convert(text)
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

    /// Iterates over the attached programs, with the names of their interfaces.
    fn programs(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.interfaces.iter().filter_map(|on| Some((on.name.as_str(), on.program.as_ref()?)))
    }

    /// Iterates over the services that have the protection `answer`, with the names of their interfaces.
    fn answering(&self) -> impl Iterator<Item = (&str, &Answering)> {
        self.programs().flat_map(|(name, program)| program.answering.iter().map(move |of| (name, of)))
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
            "Whether the program is attached and its maps can be read; if not, its other rows are missing";
        let mut up = gauge(encoder, "tfo_interface_up", help, None)?;
        for on in &self.interfaces {
            set(&mut up, &[("interface", on.name.as_str())], u64::from(on.program.is_some()))?;
        }
        Ok(())
    }

    /// Encodes SYNs by interface, service and kind. A kind that is impossible in this mode has a row only if it was
    /// counted, as before a change of mode.
    fn encode_syns(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let tables: Vec<_> = self.programs().map(|(name, program)| SynTable::of(name, program)).collect();
        let rows = || tables.iter().flat_map(SynTable::rows);
        let mut syns = counter(encoder, "tfo_syn", "SYNs by service, family, class and verdict", None)?;
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

    /// Encodes the counters of protections, without the rows that are zero.
    fn encode_guards(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "SYNs on which a protection acted, or would have; no row is zero";
        let mut guards = counter(encoder, "tfo_guard", help, None)?;
        for (name, program) in self.programs() {
            for ServiceCounters { name: service, counters, .. } in &program.services {
                for (guard, GuardCounts { acted, would }) in Guard::ALL.iter().zip(counters.guards) {
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
        let help = "Sources whose entry made room for another although part of their share was used";
        let mut sources = counter(encoder, "tfo_sources_forgotten", help, None)?;
        for (name, program) in self.programs() {
            add(&mut sources, &[("interface", name)], program.watch.sources_forgotten)?;
        }
        Ok(())
    }

    /// Encodes the outcomes of connections. The program of each interface sees all connections of the network
    /// namespace, but each began to count at another time. So that no counter ever decreases, the outcomes are those of
    /// the first interface, and are absent while it is gone. Refused SYNs have rows for each interface, since they are
    /// counted where they arrived.
    fn encode_outcomes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let knows = |program: &&Program| program.has_outcomes;
        let first = self.interfaces.first().and_then(|on| on.program.as_ref()).filter(knows);
        let services = || first.iter().flat_map(|program| &program.services);

        let help = "Connections that began with Fast Open";
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
        let help = "SYNs that the replay protection forgot early, to make room for others";
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

    /// Encodes connections from here, of the first interface as outcomes are. Destinations have no rows: their number has no
    /// bound that is small enough, and metrics have no addresses.
    fn encode_client(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let first = self.interfaces.first().and_then(|on| on.program.as_ref());
        let client = first.and_then(|program| program.client.as_ref());
        let help = "Connections from here that wanted Fast Open, by what became of it";
        let mut connections = counter(encoder, "tfo_client", help, None)?;
        if let Some(client) = client {
            for (family, attempts) in Family::ALL.iter().zip(&client.attempts) {
                for attempt in Attempt::ALL {
                    let labels = [("family", family.name()), ("outcome", attempt.name())];
                    add(&mut connections, &labels, attempts.sum(&[*attempt]))?;
                }
            }
        }
        let help = "Time until connections stood whose SYN with data was lost";
        let mut lost =
            encoder.encode_descriptor("tfo_client_lost", help, Some(&Unit::Seconds), MetricType::Counter)?;
        if let Some(client) = client {
            lost.encode_counter::<NoLabelSet, _, u64>(&(client.lost_us as f64 / 1e6), None)?;
        }
        let help = "Round trips that connections from here did not wait for";
        let mut saved = encoder.encode_descriptor(
            "tfo_client_rtt_saved",
            help,
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        if let Some(client) = client {
            encode_round_trips(&mut saved, &client.rtt_saved)?;
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
        let help = "Frames that are not classified because the program does not support what they use";
        let mut unsupported = counter(encoder, "tfo_unsupported", help, None)?;
        for (name, program) in self.programs() {
            for reason in Unsupported::ALL {
                let of = |service: &ServiceCounters| service.counters.unsupported[reason.index()];
                let packets = program.services.iter().map(of).sum();
                add(&mut unsupported, &[("interface", name), ("reason", reason.name())], packets)?;
            }
        }
        self.encode_unfollowed(encoder)
    }

    /// Encodes the frames that may have brought a SYN to a service past its protections, without the rows that are zero.
    fn encode_unfollowed(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Unsupported frames that may be a SYN to a service, by what was done; no row is zero";
        let mut unfollowed = counter(encoder, "tfo_unfollowed", help, None)?;
        for (name, program) in self.programs() {
            for service in program.services.iter().filter(|service| service.name != OTHER_NAME) {
                for reason in Unsupported::ALL {
                    let all = service.counters.unsupported[reason.index()];
                    let dropped = service.counters.dropped[reason.index()];
                    let verdicts = [(Verdict::Pass, all.saturating_sub(dropped)), (Verdict::Drop, dropped)];
                    for (verdict, packets) in verdicts.iter().filter(|(_, packets)| *packets > 0) {
                        let of_frame = [("reason", reason.name()), ("verdict", verdict.name())];
                        let of_service = [("interface", name), ("service", service.name.as_str())];
                        add(&mut unfollowed, &[of_service, of_frame].concat(), *packets)?;
                    }
                }
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
        let help = "Packets without an event because of the rate limit of events";
        let mut skipped = counter(encoder, "tfo_events_skipped", help, None)?;
        for (name, program) in self.programs() {
            add(&mut skipped, &[("interface", name)], program.watch.events_skipped)?;
        }
        // Entries are counted only once, since each takes a system call.
        let counted = self.programs().filter_map(|(name, program)| Some((name, program, program.entries()?)));
        let counted: Vec<_> = counted.collect();
        let help = "Entries of the maps of source prefixes and of pending SYNs";
        let mut entries = gauge(encoder, "tfo_map_entries", help, None)?;
        for (name, _, Entries { prefixes, pending }) in &counted {
            for (map, count) in [("prefixes", prefixes), ("pending", pending)] {
                set(&mut entries, &[("interface", *name), ("map", map)], *count)?;
            }
        }
        let help = "Source prefixes that were evicted from their map";
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
        let mut keys = gauge(encoder, "tfo_keys", "Keys in the map, by role", None)?;
        for (name, program) in self.programs() {
            for of_role in &program.keys {
                set(&mut keys, &[("interface", name), ("role", of_role.role.name())], of_role.count)?;
            }
        }
        let help = "Time since the key came into the map; the oldest, where there are several";
        let mut age = gauge(encoder, "tfo_key_age", help, Some(&Unit::Seconds))?;
        for (name, program) in self.programs() {
            for of_role in &program.keys {
                if let Some(seconds) = of_role.age {
                    set(&mut age, &[("interface", name), ("role", of_role.role.name())], seconds)?;
                }
            }
        }
        let help = "Interval of key rotations; absent where the kernel's keys are followed";
        let mut interval = gauge(encoder, "tfo_key_rotation_interval", help, Some(&Unit::Seconds))?;
        if let Some(seconds) = self.rotation_interval {
            interval.encode_gauge(&seconds)?;
        }
        let help = "SYNs not shed or answered and cookies not translated because the keys in the map were not confirmed";
        let mut unconfirmed = counter(encoder, "tfo_keys_unconfirmed", help, None)?;
        for (name, program) in self.programs() {
            add(&mut unconfirmed, &[("interface", name)], program.watch.unconfirmed)?;
        }
        let help =
            "Cookies not compared with keys that the kernel does not hold, because of a flood of forged ones";
        let mut skipped = counter(encoder, "tfo_key_searches_skipped", help, None)?;
        for (name, program) in self.programs() {
            add(&mut skipped, &[("interface", name)], program.watch.searches.skipped)?;
        }
        let help =
            "Signed SYNs that passed as they came, and would have been changed or dropped if not signed";
        let mut spared = counter(encoder, "tfo_signed_spared", help, None)?;
        for (name, program) in self.programs() {
            add(&mut spared, &[("interface", name)], program.watch.signed_spared)?;
        }
        let help = "SYNs that shed left alone, since a listener on their port has keys of its own that can't be read";
        let mut own_keys = counter(encoder, "tfo_own_keys_spared", help, None)?;
        for (name, program) in self.programs() {
            add(&mut own_keys, &[("interface", name)], program.watch.own_keys_spared)?;
        }
        let help =
            "Times that the kernel's keys could not be read or written, or were changed by somebody else";
        let mut failures = counter(encoder, "tfo_key_failures", help, None)?;
        failures.encode_counter::<NoLabelSet, _, u64>(&self.key_failures, None)?;
        let help = "Log lines that were not written, since there were too many or nobody read them";
        let mut dropped = counter(encoder, "tfo_log_lines_dropped", help, None)?;
        dropped.encode_counter::<NoLabelSet, _, u64>(&self.log_lines_dropped, None)
    }

    /// Encodes the state of this host in its fleet.
    fn encode_fleet(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(state) = &self.fleet else { return Ok(()) };
        let State { link, applied } = state;
        for (name, help, value) in [
            (
                "tfo_fleet_in_step",
                "Whether kernel and maps have the secrets of the fleet's document, as far as this host knows",
                u64::from(state.is_in_step()),
            ),
            ("tfo_fleet_connected", "Whether this host is in touch with etcd", u64::from(link.is_connected)),
            ("tfo_fleet_lease", "Whether this host is registered in etcd", u64::from(link.has_lease)),
        ] {
            gauge(encoder, name, help, None)?.encode_gauge(&value)?;
        }
        let help = "Generation of the fleet's document: taken from etcd, and applied to kernel and maps";
        let mut generation = gauge(encoder, "tfo_fleet_generation", help, None)?;
        set(&mut generation, &[("state", "taken")], link.taken.generation)?;
        set(&mut generation, &[("state", "applied")], applied.generation)?;
        let help = "Number of the newest secret that kernel and maps have learnt, and of the one in force";
        let mut secret = gauge(encoder, "tfo_fleet_secret", help, None)?;
        set(&mut secret, &[("state", "learnt")], applied.learnt)?;
        set(&mut secret, &[("state", "in_force")], applied.in_force)?;
        let help = "Time of the last document from etcd; 0 if there was none since the start";
        let mut changed = gauge(encoder, "tfo_fleet_changed_timestamp", help, Some(&Unit::Seconds))?;
        changed.encode_gauge(&link.taken_at)?;
        let help = "Times that etcd could not be reached, or gave an error";
        counter(encoder, "tfo_fleet_failures", help, None)?
            .encode_counter::<NoLabelSet, _, u64>(&link.failures, None)?;
        let help = "Documents in etcd that were refused: tampered ones, those of another key, and older ones";
        counter(encoder, "tfo_fleet_refused", help, None)?
            .encode_counter::<NoLabelSet, _, u64>(&link.refused, None)
    }

    /// Encodes the number of portable cookies that were handed out.
    fn encode_portable(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "SYN-ACKs in which the kernel's cookie was replaced by a portable one";
        let mut portable = counter(encoder, "tfo_portable_cookies", help, None)?;
        for (name, program) in self.programs() {
            add(&mut portable, &[("interface", name)], program.watch.exchanged)?;
        }
        Ok(())
    }

    /// Encodes the state of the protection `answer`.
    fn encode_answers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "SYNs left to the kernel although their service answers";
        let mut unanswered = counter(encoder, "tfo_syn_unanswered", help, None)?;
        for (name, program) in self.programs() {
            add(&mut unanswered, &[("interface", name)], program.watch.unanswered)?;
        }
        let help = "Whether SYNs without a good cookie are answered by the program";
        let mut answering = gauge(encoder, "tfo_answering", help, None)?;
        for (name, of_service) in self.answering() {
            let labels = [("interface", name), ("service", of_service.service.as_str())];
            set(&mut answering, &labels, u64::from(of_service.is_engaged))?;
        }
        let help = "Times that the protection answer has engaged since the controller began";
        let mut engaged = counter(encoder, "tfo_answer_engaged", help, None)?;
        for (name, of_service) in self.answering() {
            let labels = [("interface", name), ("service", of_service.service.as_str())];
            add(&mut engaged, &labels, of_service.engaged)?;
        }
        Ok(())
    }

    /// Encodes the kernel's Fast Open counters, under names made from the kernel's.
    fn encode_kernel(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, value) in self.kernel.named() {
            let help = format!("{name} of the kernel, TcpExt in /proc/net/netstat");
            let name = format!("tfo_kernel{}", snake_case(name.trim_start_matches("TCPFastOpen")));
            counter(encoder, &name, &help, None)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }
}

/// Converts `PassiveAltKey` to `_passive_alt_key`.
fn snake_case(name: &str) -> String {
    name.chars().fold(String::new(), |mut snake, letter| {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
        snake
    })
}

/// First half of a snapshot: interfaces, SYNs and protections.
#[derive(Debug)]
struct Syns(Arc<Snapshot>);

impl Collector for Syns {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let mut build = encoder.encode_descriptor("tfo_build", "Version of tfo", None, MetricType::Info)?;
        build.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        self.0.encode_attached(encoder)?;
        self.0.encode_syns(encoder)?;
        self.0.encode_guards(encoder)
    }
}

/// Second half of a snapshot: outcomes of connections, and all other metrics.
#[derive(Debug)]
struct Outcomes(Arc<Snapshot>);

impl Collector for Outcomes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.0.encode_outcomes(encoder)?;
        self.0.encode_client(encoder)?;
        self.0.encode_faults(encoder)?;
        self.0.encode_watch(encoder)?;
        self.0.encode_keys(encoder)?;
        self.0.encode_portable(encoder)?;
        self.0.encode_answers(encoder)?;
        self.0.encode_fleet(encoder)?;
        self.0.encode_kernel(encoder)?;
        self.0.encode_listeners(encoder)
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

pub(super) fn gauge<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
    unit: Option<&'a Unit>,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Gauge)
}

/// Returns whether the program runs in mode `shield`.
fn is_shield(program: &Program) -> bool {
    program.info.mode == Mode::Shield as u32
}

/// Adds a row to a counter.
fn add(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

/// Adds a row to a gauge.
pub(super) fn set(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_gauge(&value)
}

/// SYN counters of one program.
struct SynTable<'a> {
    kinds: Vec<SynKind>,
    services: Vec<(Labels, &'a Counters)>,
}

/// Kind of SYN.
struct SynKind {
    family: Family,
    class: Class,
    verdict: Verdict,
    labels: Labels,
    /// Whether the program can reach `verdict` for `class` without a guard.
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

    /// Iterates over all kinds of SYN of each service: labels, counters, and whether the kind is possible.
    fn rows(&self) -> impl Iterator<Item = ([&Labels; 2], &Tally, bool)> {
        self.services.iter().flat_map(|(of_service, counters)| {
            self.kinds.iter().map(move |SynKind { family, class, verdict, labels, is_possible }| {
                let tally = &counters.syn[family.index()][class.index()][verdict.index()];
                ([of_service, labels], tally, *is_possible)
            })
        })
    }
}

/// Lists all kinds of SYN, and which are possible in `mode`.
fn kinds(mode: Option<Mode>) -> Vec<SynKind> {
    let is_possible = |class: Class, verdict: Verdict| {
        mode.is_some_and(|mode| {
            let policy = Policy::of_mode(mode);
            [false, true]
                .iter()
                .any(|has_key| decide(&policy, class, WithoutGuards(*has_key)).verdict == verdict)
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

/// Encodes `saved` as a histogram in seconds.
fn encode_round_trips(family: &mut MetricEncoder<'_>, saved: &[RttBucket; RTT_BUCKETS]) -> fmt::Result {
    let connections = saved.iter().map(|bucket| bucket.connections).sum();
    let us: u64 = saved.iter().map(|bucket| bucket.us).sum();
    family.encode_histogram::<NoLabelSet>(us as f64 / 1e6, connections, &buckets(saved), None)
}

/// Returns the upper bound of each histogram bucket, in seconds, and the number of round trips in this bucket alone.
fn buckets(saved: &[RttBucket; RTT_BUCKETS]) -> [(f64, u64); BUCKETS] {
    let mut buckets = [(f64::INFINITY, 0); BUCKETS];
    for (bucket, power) in buckets.iter_mut().zip(BUCKET_POWERS) {
        bucket.0 = (1_u64 << power) as f64 / 1e6;
    }
    for (power, bucket) in saved.iter().enumerate() {
        buckets[power.clamp(*BUCKET_POWERS.start(), BUCKET_POWERS.end() + 1) - BUCKET_POWERS.start()].1 +=
            bucket.connections;
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kernel::tcp_ext::TcpExt, view::metrics::InterfaceSnapshot};

    #[test]
    fn an_interface_that_cannot_be_read_has_no_rows_but_one() {
        let on = |name: &str, is_unreadable| InterfaceSnapshot {
            name: name.to_owned(),
            program: None,
            is_unreadable,
        };
        let snapshot = Snapshot {
            netns: None,
            interfaces: vec![on("v0", true), on("w0", false)],
            kernel: TcpExt::default(),
            listeners: None,
            key_failures: 0,
            log_lines_dropped: 0,
            rotation_interval: None,
            fleet: None,
        };
        let text = snapshot.text(Format::Prometheus);
        let of = |name: &str| text.lines().filter(|line| line.contains(name)).collect::<Vec<_>>();
        assert_eq!(of("\"v0\""), ["tfo_interface_up{interface=\"v0\"} 0"]);
        // Three modes, and whether it is up.
        assert_eq!(of("\"w0\"").len(), 4, "{text}");
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
