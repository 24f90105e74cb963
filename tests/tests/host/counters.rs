//! Sums of counters, and their names in tables and metrics.

use std::collections::HashSet;

use tfo_common::{
    carried::Carried,
    class::Class,
    counters::{Cell, Counters, Sampled, Tally},
    info::Attach,
    keyring::{SLOTS, Searches, TRACKS},
    observed::{Outcomes, RttBucket, Watch},
    parse::{LinkLayer, Malformed, Unsupported},
    policy::{Guard, Policy},
    segment::Family,
    verdict::{Mode, Verdict},
};
use tfo_tests::{
    cases::{Expected, all},
    host,
};

#[test]
fn counters_of_two_cpus_add_up() {
    let cases = all();
    let mut cpus = [Counters::default(); 2];
    for (n, case) in cases.iter().enumerate() {
        cpus[n % 2].add(&case.expected.counters());
    }
    let [mut sum, other] = cpus;
    sum.add(&other);

    for class in Class::ALL {
        let lengths: Vec<u64> = cases.iter().filter_map(|case| data_len(case.expected, *class)).collect();
        let tally = sum.class(*class);
        assert_eq!(tally.packets, lengths.len() as u64, "{class}");
        assert_eq!(tally.with_data, lengths.iter().filter(|len| **len > 0).count() as u64, "{class}");
        assert_eq!(tally.data_bytes, lengths.iter().sum::<u64>(), "{class}");
    }
    let of_slot =
        |expected: Expected, slot| matches!(expected, Expected::Syn { slot: s, .. } if s == Some(slot));
    for slot in 0..SLOTS {
        let expected = cases.iter().filter(|case| of_slot(case.expected, slot)).count();
        assert!(expected > 0 && sum.hits[slot] == expected as u64, "slot {slot}: {:?}", sum.hits);
    }
    assert_eq!(sum.hits[SLOTS..], [0; TRACKS - SLOTS]);
    let count = |is: &dyn Fn(Expected) -> bool| cases.iter().filter(|case| is(case.expected)).count() as u64;
    for reason in Malformed::ALL {
        let expected = count(&|expected| expected == Expected::Malformed(*reason));
        assert_eq!(sum.malformed[reason.index()], expected, "{reason}");
    }
    for reason in Unsupported::ALL {
        let expected = count(&|expected| expected == Expected::Unsupported(*reason));
        assert_eq!(sum.unsupported[reason.index()], expected, "{reason}");
    }
    assert_eq!(sum.malformed_total(), count(&|expected| matches!(expected, Expected::Malformed(_))));
    assert_eq!(sum.unsupported_total(), count(&|expected| matches!(expected, Expected::Unsupported(_))));
}

/// Cells add up field by field, as when a removed service goes into `removed`.
#[test]
fn cells_add_up() {
    let policy = Policy::of_mode(Mode::Shield).with(Guard::Hide, true).with(Guard::Clamp, false);
    let policies = [Policy::of_mode(Mode::Accelerate), policy];
    let mut cells = [Cell::EMPTY; 2];
    for case in all() {
        for (cell, policy) in cells.iter_mut().zip(&policies) {
            host::count_in(cell, &case.frame, case.link, policy, &case.keys.ring());
        }
    }
    let [mut cell, other] = cells;
    let mut sum = cell.counters();
    sum.add(&other.counters());
    assert!(sum.guards[Guard::Hide.index()].acted > 0);
    cell.add(&other);
    assert_eq!(cell.counters(), sum);

    let mut outcomes =
        Outcomes { accepted: 1, refused: 2, events_skipped: 3, replays_forgotten: 4, ..Outcomes::default() };
    outcomes.rtt_saved[5] = RttBucket { connections: 6, us: 7 };
    let mut twice = outcomes;
    twice.add(&outcomes);
    let mut expected =
        Outcomes { accepted: 2, refused: 4, events_skipped: 6, replays_forgotten: 8, ..Outcomes::default() };
    expected.rtt_saved[5] = RttBucket { connections: 12, us: 14 };
    assert_eq!(twice, expected);
}

fn data_len(expected: Expected, class: Class) -> Option<u64> {
    match expected {
        Expected::Syn { class: c, data_len, .. } if c == class => Some(data_len as u64),
        _ => None,
    }
}

/// Carried counts are added field by field. Words that are not counts stay.
#[test]
fn carried_counts_add_up() {
    let searches = |skipped| {
        let mut searches = Searches::NEW;
        searches.skipped = skipped;
        searches
    };
    let watch = |n| Watch {
        events: n,
        events_lost: 2 * n,
        events_skipped: 3 * n,
        prefixes: 4 * n,
        sources_forgotten: 5 * n,
        unconfirmed: 6 * n,
        signed_spared: 7 * n,
        searches: searches(8 * n),
        own_keys_spared: 9 * n,
        exchanged: 10 * n,
        ..Watch::EMPTY
    };
    let mut one = Carried { watch: watch(1), ..Carried::EMPTY };
    one.cell.syn[0][3][1] = Sampled { count: Tally { packets: 1, with_data: 2, data_bytes: 3 }, due: 4 };
    one.cell.malformed[1] = Sampled { count: 5, due: 6 };
    one.cell.hits[2] = 7;
    one.outcomes.events_skipped = 8;
    one.outcomes.event_budget = [9; 2];
    let mut sum = Carried::EMPTY;
    sum.add(&one);
    sum.add(&one);
    let mut expected = Carried { watch: watch(2), ..Carried::EMPTY };
    expected.cell.syn[0][3][1] = Sampled { count: Tally { packets: 2, with_data: 4, data_bytes: 6 }, due: 0 };
    expected.cell.malformed[1] = Sampled { count: 10, due: 0 };
    expected.cell.hits[2] = 14;
    expected.outcomes.events_skipped = 16;
    assert_eq!(sum, expected);
}

#[test]
fn a_class_sums_up_families_and_verdicts() {
    let mut counters = Counters::default();
    let cells = [(Family::Ipv4, 0), (Family::Ipv6, 0), (Family::Ipv4, 3)];
    for (n, (family, verdict)) in cells.into_iter().enumerate() {
        let tally = &mut counters.syn[family.index()][Class::CookieRetired.index()][verdict];
        (tally.packets, tally.with_data, tally.data_bytes) = (10 << n, 20 << n, 30 << n);
    }
    let tally = counters.class(Class::CookieRetired);
    assert_eq!((tally.packets, tally.with_data, tally.data_bytes), (70, 140, 210));
    assert_eq!(counters.class(Class::CookieCurrent).packets, 0);
    assert_eq!(counters.verdict(Class::CookieRetired, Verdict::Pass), 30);
    assert_eq!(counters.verdict(Class::CookieRetired, Verdict::Rewrite), 0);
    assert_eq!(counters.verdict(Class::CookieCurrent, Verdict::Pass), 0);
}

#[test]
fn names_are_unique_and_lower_case() {
    fn check(names: impl Iterator<Item = &'static str>) {
        let mut seen = HashSet::new();
        for name in names {
            assert!(
                !name.is_empty()
                    && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            );
            assert!(seen.insert(name), "{name} stands twice");
        }
    }
    check(Class::ALL.iter().map(|class| class.name()));
    check(Family::ALL.iter().map(|family| family.name()));
    check(Verdict::ALL.iter().map(|verdict| verdict.name()));
    check(Guard::ALL.iter().map(|guard| guard.name()));
    check(Mode::ALL.iter().map(|mode| mode.name()));
    check(LinkLayer::ALL.iter().map(|link| link.name()));
    check(Attach::ALL.iter().map(|attach| attach.name()));
    // Reasons of both kinds stand in one log line, so they share a name space.
    let faults = Malformed::ALL.iter().map(|reason| reason.name());
    check(faults.chain(Unsupported::ALL.iter().map(|reason| reason.name())));
}
