//! Sampling: the packets that are looked at, and the number for which each look stands.

use std::collections::HashSet;

use proptest::prelude::*;
use tfo_common::{
    class::Class,
    counters::Cell,
    description::Description,
    observed::{Outcomes, RTT_BUCKETS, rtt_bucket},
    parse::{Fault, Malformed, Unsupported},
    policy::Decision,
    sample::{BUDGET, Budget, EVENT_BUDGET, FIRSTS, SPARSEST, Sampler, Samplers},
    segment::{Addresses, FastOpen, Segment},
    verdict::Verdict,
};

/// Kind of SYN with its counter.
#[derive(Default)]
struct Source {
    sampler: Sampler,
    packets: u64,
    due: u64,
    weight: u64,
    looks: u64,
}

impl Source {
    /// Counts a packet. Returns whether it is looked at.
    fn packet(&mut self, jiffies: u64, budget: &mut Budget) -> bool {
        self.packets += 1;
        if self.packets < self.due {
            return false;
        }
        let taken = self.sampler.take(self.packets, &mut self.due, jiffies, budget);
        let Some(taken) = taken else { return false };
        self.weight += taken.weight;
        self.looks += 1;
        // The look stands for all packets since the last look, its own included.
        assert_eq!(self.weight, self.packets);
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The looks stand for all packets together, and no jiffy exceeds its budget.
    #[test]
    fn nothing_is_lost_and_the_budget_holds(jiffies in prop::collection::vec((0_u64..4, 0_u64..2000, 0_u64..5), 1..60)) {
        let mut budget = Budget::default();
        let (mut flood, mut rare) = (Source::default(), Source::default());
        let mut now = 4_294_900_000;
        for (gap, many, few) in jiffies {
            now += gap + 1;
            let before = flood.looks + rare.looks;
            for n in 0..many.max(few) {
                if n < many {
                    flood.packet(now, &mut budget);
                }
                if n < few {
                    rare.packet(now, &mut budget);
                }
            }
            prop_assert!(flood.looks + rare.looks - before <= BUDGET + FIRSTS);
        }
        // Packets beyond the budget are included in the next look.
        for mut source in [flood, rare] {
            let is_seen = (0..SPARSEST).any(|n| source.packet(now + 2 + n, &mut budget));
            prop_assert!(is_seen && source.weight == source.packets);
        }
    }
}

/// While packets are few, each is looked at.
#[test]
fn few_are_all_looked_at() {
    let (mut budget, mut source) = (Budget::default(), Source::default());
    for jiffy in 1..100 {
        for _ in 0..BUDGET / 2 {
            assert!(source.packet(jiffy, &mut budget));
        }
    }
}

/// A flood is sampled sparsely. Other kinds are still seen: the first packet in each jiffy at once.
#[test]
fn a_flood_hides_no_other_kind() {
    let (mut budget, mut flood, mut rare) = (Budget::default(), Source::default(), Source::default());
    for jiffy in 1..1000 {
        for _ in 0..5000 {
            flood.packet(jiffy, &mut budget);
        }
        assert!(rare.packet(jiffy, &mut budget), "jiffy {jiffy}");
    }
    assert!(flood.looks < 1000 * (BUDGET + FIRSTS) && flood.looks > 1000);
    // After the flood, each packet is soon looked at again.
    let mut unseen = 0;
    for jiffy in 2000..3000 {
        unseen += u64::from(!flood.packet(jiffy, &mut budget));
    }
    assert!(unseen < 2 * SPARSEST, "{unseen}");
}

#[test]
fn round_trips_by_their_length() {
    for (us, bucket) in
        [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1023, 10), (1024, 11), (u32::MAX, RTT_BUCKETS - 1)]
    {
        assert_eq!(rtt_bucket(us), bucket, "{us}");
    }
    for bits in 1..31 {
        assert_eq!([rtt_bucket((1 << bits) - 1), rtt_bucket(1 << bits)], [bits, bits + 1]);
    }
}

/// Only a limited number of refusals is reported in each jiffy.
#[test]
fn reported_refusals_are_limited() {
    let mut told = [0, 0];
    for jiffy in [7, 8, 10] {
        for n in 1..=EVENT_BUDGET {
            told = Outcomes::count_event(told, jiffy).expect("there is room");
            assert_eq!(told, [jiffy, n]);
        }
        assert_eq!(Outcomes::count_event(told, jiffy), None);
    }
}

/// Kinds of packets have samplers and counts of their own.
#[test]
fn each_kind_has_its_own_sampler() {
    let mut packets: Vec<Description> = Vec::new();
    for addresses in [Addresses::from_ipv4([1; 8]), Addresses::from_ipv6([1; 32])] {
        let segment = Segment {
            addresses,
            fast_open: FastOpen::Absent,
            is_signed: false,
            is_fragment: false,
            tcp: 34,
            data_len: 0,
        };
        for (class, verdict) in
            Class::ALL.iter().flat_map(|class| Verdict::ALL.iter().map(move |v| (class, v)))
        {
            let decision = Decision { verdict: *verdict, ..Decision::PASS };
            let mut packet = Description::default();
            packet.set_syn(&segment, *class);
            packet.set_decision(decision, 1);
            packets.push(packet);
        }
    }
    let malformed = Malformed::ALL.iter().map(|reason| Fault::Malformed(*reason));
    for fault in malformed.chain(Unsupported::ALL.iter().map(|reason| Fault::Unsupported(*reason))) {
        let mut packet = Description::default();
        packet.set_fault(fault);
        packets.push(packet);
    }
    let (mut samplers, mut cell) = (Samplers::NEW, Cell::EMPTY);
    let places: HashSet<_> = packets.iter().map(|packet| &raw const *samplers.of(packet)).collect();
    assert_eq!(places.len(), packets.len());
    let places: HashSet<_> = packets.iter().map(|packet| &raw const *cell.due(packet).1).collect();
    assert_eq!(places.len(), packets.len());
}
