//! What is looked at, how much it stands for, and what the look is told.

use std::collections::HashSet;

use proptest::prelude::*;
use tfo_common::{
    class::Class,
    handed::Hint,
    observed::{Kind, Outcomes, RTT_BUCKETS, rtt_bucket},
    parse::{Fault, Malformed, Unsupported},
    policy::Decision,
    sample::{BUDGET, Budget, EVENT_BUDGET, FIRSTS, SPARSEST, Sampler, Samplers},
    segment::{Addresses, FastOpen, Segment},
    verdict::Verdict,
};

/// A kind of SYN, with its counter.
#[derive(Default)]
struct Source {
    sampler: Sampler,
    packets: u64,
    due: u64,
    weight: u64,
    looks: u64,
}

impl Source {
    /// One more packet; whether it was looked at.
    fn packet(&mut self, jiffies: u64, budget: &mut Budget) -> bool {
        self.packets += 1;
        if self.packets < self.due {
            return false;
        }
        let taken = self.sampler.take(self.packets, &mut self.due, jiffies, budget);
        let Some(taken) = taken else { return false };
        self.weight += taken.weight;
        self.looks += 1;
        // It stands for all since the last, itself among them.
        assert_eq!(self.weight, self.packets);
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, no packet is left out of what the looks stand for, and a jiffy never costs more than its budget.
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
        // What there was no budget for is in what the next that is looked at stands for.
        for mut source in [flood, rare] {
            let is_seen = (0..SPARSEST).any(|n| source.packet(now + 2 + n, &mut budget));
            prop_assert!(is_seen && source.weight == source.packets);
        }
    }
}

/// While they are few, each is looked at.
#[test]
fn few_are_all_looked_at() {
    let (mut budget, mut source) = (Budget::default(), Source::default());
    for jiffy in 1..100 {
        for _ in 0..BUDGET / 2 {
            assert!(source.packet(jiffy, &mut budget));
        }
    }
}

/// A flood is thinned out, and what comes beside it is seen: the first in each jiffy at once.
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
    // When it is over, what is left of it is soon seen whole again.
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

/// Refusals are told up to so many in a jiffy.
#[test]
fn refusals_that_are_told() {
    let mut told = [0, 0];
    for jiffy in [7, 8, 10] {
        for n in 1..=EVENT_BUDGET {
            told = Outcomes::may_tell(told, jiffy).expect("there is room");
            assert_eq!(told, [jiffy, n]);
        }
        assert_eq!(Outcomes::may_tell(told, jiffy), None);
    }
}

/// `verdict`, by no guard.
fn decision(verdict: Verdict) -> Decision {
    Decision::from_word(verdict as u64)
}

/// What is put into a hint comes out again.
#[test]
fn hints() {
    for addresses in [Addresses::from_ipv4([1; 8]), Addresses::from_ipv6([1; 32])] {
        for class in Class::ALL {
            for verdict in Verdict::ALL {
                for (source, tcp, service) in
                    [(0, 0, 0), (26, 34, 1), (0x3fff, 0x3ffe, 4095), (12, 0x3fff, 0x1fff)]
                {
                    let segment =
                        Segment { addresses, fast_open: FastOpen::Absent, source, tcp, data_len: 0 };
                    let hint = Hint::syn(&segment, *class, decision(*verdict), service);
                    assert_eq!((hint.kind(), hint.detail()), (Kind::Syn as u32, *class as u32));
                    assert_eq!((hint.verdict(), hint.service()), (*verdict as u16, service));
                    assert_eq!((hint.place().family(), hint.guard()), (addresses.family, 0));
                    assert_eq!((hint.place().source(), hint.place().tcp()), (source as usize, tcp as usize));
                }
            }
        }
    }
    for reason in Malformed::ALL {
        let hint = Hint::fault(Fault::Malformed(*reason));
        assert_eq!((hint.kind(), hint.detail()), (Kind::Malformed as u32, *reason as u32));
    }
    for reason in Unsupported::ALL {
        let hint = Hint::fault(Fault::Unsupported(*reason));
        assert_eq!((hint.kind(), hint.detail()), (Kind::Unsupported as u32, *reason as u32));
    }
}

/// Each kind of packet has a sampler of its own, within those of its service.
#[test]
fn each_kind_has_its_own_sampler() {
    let mut hints: Vec<Hint> = Vec::new();
    for addresses in [Addresses::from_ipv4([1; 8]), Addresses::from_ipv6([1; 32])] {
        let segment = Segment { addresses, fast_open: FastOpen::Absent, source: 26, tcp: 34, data_len: 0 };
        for class in Class::ALL {
            hints.extend(
                Verdict::ALL.iter().map(|verdict| Hint::syn(&segment, *class, decision(*verdict), 1)),
            );
        }
    }
    hints.extend(Malformed::ALL.iter().map(|reason| Hint::fault(Fault::Malformed(*reason))));
    hints.extend(Unsupported::ALL.iter().map(|reason| Hint::fault(Fault::Unsupported(*reason))));
    let mut samplers = Samplers::NEW;
    let places: HashSet<_> = hints.iter().map(|hint| &raw const *samplers.of(*hint)).collect();
    assert_eq!(places.len(), hints.len());
}
