//! A snapshot as text.
//!
//! Each SYN counter is there from the beginning, with a zero, for every family and class, and every verdict that the
//! program may reach on it: `rate` misses no first event, and there is no row for what can't be.

use std::ops::RangeInclusive;

use tfo_common::{
    class::Class,
    info::Attach,
    parse::{Malformed, Unsupported},
    segment::Family,
    verdict::{Mode, Verdict, decide},
};

use super::{
    Format, Program, Snapshot,
    exposition::{
        Exposition,
        Kind::{Counter, Gauge, Histogram, Info},
        labels,
    },
};
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
    pub fn text(&self, format: Format) -> String {
        let services: usize = self.programs().map(|(_, program)| program.report.services.len()).sum();
        let mut to = Exposition::new(format, OF_A_SERVICE * (services + 4));
        let version = labels(&[("version", env!("CARGO_PKG_VERSION"))]);
        to.metric("tfo_build", Info, None, "This tfo").add(&[&version], 1);
        self.write_attached(&mut to);
        self.write_syns(&mut to);
        self.write_outcomes(&mut to);
        self.write_faults(&mut to);
        self.write_watch(&mut to);
        self.write_keys(&mut to);
        self.write_kernel(&mut to);
        to.end()
    }

    /// The programs that are attached, with the label of their interfaces.
    fn programs(&self) -> impl Iterator<Item = (String, &Program)> {
        self.interfaces.iter().filter_map(|on| Some((of_interface(&on.name), on.program.as_ref()?)))
    }

    fn write_attached(&self, to: &mut Exposition) {
        let help = "Whether the program is attached, and where in the receive path";
        let mut attached = to.metric("tfo_xdp_attached", Gauge, None, help);
        for on in &self.interfaces {
            for mode in Attach::ALL {
                let is_so = on.program.as_ref().is_some_and(|program| program.report.attach == mode.name());
                let mode = labels(&[("mode", mode.name())]);
                attached.add(&[&of_interface(&on.name), &mode], u64::from(is_so));
            }
        }
    }

    fn write_syns(&self, to: &mut Exposition) {
        let mut syns = to.metric("tfo_syn", Counter, None, "SYNs, by what they are and what was done");
        each_syn(self.programs(), |sets, row| syns.add(sets, row.map_or(0, |row| row.packets)));
        let help = "Bytes of data in SYNs; no row is zero";
        let mut bytes = to.metric("tfo_syn_data_bytes", Counter, Some("bytes"), help);
        each_syn(self.programs(), |sets, row| {
            if let Some(row) = row.filter(|row| row.data_bytes > 0) {
                bytes.add(sets, row.data_bytes);
            }
        });
    }

    /// What became of connections, where that is known. Each interface's program sees those of the whole network namespace, but
    /// began to count at another time: so that no counter ever goes back, they are the first one's, or none. A SYN that was
    /// refused is known where it came in.
    fn write_outcomes(&self, to: &mut Exposition) {
        let knows = |program: &Program| program.report.outcomes;
        let first = self.interfaces.first().and_then(|on| on.program.as_ref());
        let first = first.filter(|program| knows(program));
        let services = || first.iter().flat_map(|program| &program.report.services);

        let help = "Connections that the kernel made of a SYN at once";
        let mut accepted = to.metric("tfo_accepted", Counter, None, help);
        for service in services() {
            accepted.add(&[&of_service(&service.name)], service.accepted);
        }
        let help = "SYNs with a good cookie that the kernel answered with an ordinary handshake";
        let mut refused = to.metric("tfo_refused", Counter, None, help);
        for (interface, program) in self.programs().filter(|(_, program)| knows(program)) {
            for service in &program.report.services {
                refused.add(&[&interface, &of_service(&service.name)], service.refused);
            }
        }
        let help = "Round trips that accepted connections did not wait for";
        let mut saved = to.metric("tfo_rtt_saved_seconds", Histogram, Some("seconds"), help);
        let mut buckets = Buckets::new();
        for service in services().filter(|service| service.accepted > 0) {
            let filled = buckets.fill(&service.rtt_saved);
            saved.histogram(&of_service(&service.name), filled, service.rtt_saved.seconds);
        }
    }

    fn write_faults(&self, to: &mut Exposition) {
        let help = "Frames passed unclassified because the kernel drops them";
        let mut malformed = to.metric("tfo_malformed", Counter, None, help);
        for (interface, program) in self.programs() {
            for reason in Malformed::ALL {
                let packets = reason_packets(&program.report.malformed, reason.name());
                malformed.add(&[&interface, &labels(&[("reason", reason.name())])], packets);
            }
        }
        let help = "Frames passed unclassified because the program does not support what they use";
        let mut unsupported = to.metric("tfo_unsupported", Counter, None, help);
        for (interface, program) in self.programs() {
            for reason in Unsupported::ALL {
                let packets = reason_packets(&program.report.unsupported, reason.name());
                unsupported.add(&[&interface, &labels(&[("reason", reason.name())])], packets);
            }
        }
    }

    fn write_watch(&self, to: &mut Exposition) {
        let mut events = to.metric("tfo_events", Counter, None, "Events that were reported");
        for (interface, program) in self.programs() {
            events.add(&[&interface], program.watch.events);
        }
        let help = "Packets whose event found no room in the ring, or came too fast for the controller";
        let mut lost = to.metric("tfo_events_lost", Counter, None, help);
        for (interface, program) in self.programs() {
            for (at, packets) in [("ring", program.watch.events_lost), ("controller", program.dropped_events)]
            {
                lost.add(&[&interface, &labels(&[("at", at)])], packets);
            }
        }
        let help = "Packets that were no event because of the rate";
        let mut skipped = to.metric("tfo_events_skipped", Counter, None, help);
        for (interface, program) in self.programs() {
            skipped.add(&[&interface], program.watch.events_skipped);
        }
        // Once, since each entry takes a system call.
        let counted =
            self.programs().filter_map(|(interface, program)| Some((interface, program, program.entries()?)));
        let counted: Vec<_> = counted.collect();
        let help = "Entries of the maps of what is remembered";
        let mut entries = to.metric("tfo_map_entries", Gauge, None, help);
        for (interface, _, Entries { prefixes, pending }) in &counted {
            for (map, count) in [("prefixes", prefixes), ("pending", pending)] {
                entries.add(&[interface, &labels(&[("map", map)])], *count);
            }
        }
        let help = "Prefixes of sources that had to make room for others";
        let mut evicted = to.metric("tfo_prefixes_evicted", Counter, None, help);
        for (interface, program, Entries { prefixes, .. }) in &counted {
            evicted.add(&[interface], program.watch.prefixes.saturating_sub(*prefixes));
        }
    }

    fn write_keys(&self, to: &mut Exposition) {
        let help = "Whether the map's keys are the kernel's and the schedule's";
        let mut in_step = to.metric("tfo_keys_in_step", Gauge, None, help);
        for (interface, program) in self.programs() {
            if let Some(is_in_step) = program.in_step {
                in_step.add(&[&interface], u64::from(is_in_step));
            }
        }
        let help = "Keys in the map, by what they are to the kernel";
        let mut keys = to.metric("tfo_keys", Gauge, None, help);
        for (interface, program) in self.programs() {
            for of_role in &program.keys {
                keys.add(&[&interface, &labels(&[("role", of_role.role.name())])], of_role.count);
            }
        }
        let help = "How long ago the key came into the map; of several, the oldest";
        let mut age = to.metric("tfo_key_age_seconds", Gauge, Some("seconds"), help);
        for (interface, program) in self.programs() {
            for of_role in &program.keys {
                if let Some(seconds) = of_role.age {
                    age.add(&[&interface, &labels(&[("role", of_role.role.name())])], seconds);
                }
            }
        }
        let help = "How often a new key is made or derived; absent where keys are the kernel's to change";
        let mut interval = to.metric("tfo_key_rotation_interval_seconds", Gauge, Some("seconds"), help);
        if let Some(seconds) = self.rotation_interval {
            interval.add(&[], seconds);
        }
        let help =
            "Times that the kernel's keys could not be read or written, or were changed by somebody else";
        to.metric("tfo_key_failures", Counter, None, help).add(&[], self.key_failures);
    }

    /// The kernel's own counters, under their own names.
    fn write_kernel(&self, to: &mut Exposition) {
        for (name, value) in self.kernel.named() {
            let help = format!("{name} of the kernel, TcpExt in /proc/net/netstat");
            let name = format!("tfo_kernel{}", snake_case(name.trim_start_matches("TCPFastOpen")));
            to.metric(&name, Counter, None, &help).add(&[], value);
        }
    }
}

fn of_interface(name: &str) -> String {
    labels(&[("interface", name)])
}

fn of_service(name: &str) -> String {
    labels(&[("service", name)])
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

/// Shows `see` all SYNs by interface, service and kind, by their labels: those that the program can count, with `None` where it
/// has not, and those that it did, in another mode.
fn each_syn<'a>(
    programs: impl Iterator<Item = (String, &'a Program)>,
    mut see: impl FnMut(&[&str], Option<&SynRow>),
) {
    for (interface, Program { report, .. }) in programs {
        let kinds = kinds(report);
        for service in &report.services {
            let of_service = of_service(&service.name);
            // Both are in the same order.
            let mut counted = service.syn.iter().peekable();
            for kind in &kinds {
                let row = counted.next_if(|row| (row.family, row.class, row.verdict) == kind.names);
                if row.is_some() || kind.is_possible {
                    see(&[&interface, &of_service, &kind.labels], row);
                }
            }
            debug_assert_eq!(counted.next(), None);
        }
    }
}

/// A kind of SYN.
struct SynKind {
    /// Family, class and verdict.
    names: (&'static str, &'static str, &'static str),
    labels: String,
    /// Whether `decide` may reach that verdict.
    is_possible: bool,
}

/// Every kind of SYN, in the order of rows in a report.
fn kinds(report: &Report) -> Vec<SynKind> {
    let mode = Mode::ALL.iter().find(|known| known.name() == report.mode).copied();
    let is_possible = |class: Class, verdict: Verdict| {
        mode.is_some_and(|mode| [false, true].iter().any(|known| decide(mode, class, *known) == verdict))
    };
    let mut kinds = Vec::new();
    for family in Family::ALL {
        for class in Class::ALL {
            for verdict in Verdict::ALL {
                let names = (family.name(), class.name(), verdict.name());
                let labels = labels(&[("family", names.0), ("class", names.1), ("verdict", names.2)]);
                kinds.push(SynKind { names, labels, is_possible: is_possible(*class, *verdict) });
            }
        }
    }
    kinds
}

/// The buckets of a histogram of round trips: the label `le` of each, and how many are in it alone.
struct Buckets(Vec<(String, u64)>);

impl Buckets {
    fn new() -> Self {
        let bounds = ROUND_TRIPS.map(|power| ((1_u64 << power) as f64 / 1e6).to_string());
        let bounds = bounds.chain(["+Inf".to_owned()]);
        Self(bounds.map(|bound| (labels(&[("le", &bound)]), 0)).collect())
    }

    /// Those of `saved`.
    fn fill(&mut self, saved: &RttSaved) -> &[(String, u64)] {
        self.0.iter_mut().for_each(|(_, count)| *count = 0);
        for bucket in &saved.buckets {
            let place = ROUND_TRIPS.take_while(|power| 1_u64 << power < bucket.below_us).count();
            self.0[place].1 += bucket.connections;
        }
        &self.0
    }
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
        let mut buckets = Buckets::new();
        let filled = buckets.fill(&saved).iter().filter(|(_, connections)| *connections > 0);
        let filled: Vec<_> = filled.map(|(le, connections)| (le.as_str(), *connections)).collect();
        let expected =
            [("le=\"0.000128\"", 3), ("le=\"0.000256\"", 4), ("le=\"8.388608\"", 8), ("le=\"+Inf\"", 48)];
        assert_eq!(filled, expected);
    }
}
