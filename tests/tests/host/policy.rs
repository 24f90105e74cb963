//! Decisions on SYNs, and the state behind them: rate limits, tables, and the description of a packet.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use proptest::{collection::vec, prelude::*};
use tfo_common::{
    class::{Class, Classified, Unlimited, classify},
    counters::{self, Counters, GuardCounts},
    description::{Description, Kind},
    filter::SourceFilter,
    keyring::KeyRing,
    limit::{Limit, TICKS},
    observed::EventGuard,
    parse::parse,
    policy::{Decision, Facts, Guard, Policy, decide, decide_good, decide_refused},
    segment::{Addresses, Family, FastOpen, Segment},
    service::OTHER,
    table::{Remembered, Row, SEATS, Seed, SourceMask, Spent, Tag, syn_tag},
    verdict::Verdict,
};
use tfo_tests::{
    cases::{all, rows},
    guards::{Expected, Open, ServiceSettings, Setting},
    keys,
};

/// Facts for guards, which record what guards are asked.
struct RecordedFacts<'a> {
    is_served: bool,
    has_translation: bool,
    trips: u8,
    asked: &'a mut u8,
}

impl Facts for RecordedFacts<'_> {
    fn has_translation(&self) -> bool {
        self.has_translation
    }

    fn may_be_hidden(&self) -> bool {
        panic!("only the quick decision asks")
    }

    fn needs_no_cookie(&self) -> bool {
        self.is_served
    }

    fn triggers(&mut self, guard: Guard) -> bool {
        let bit = 1 << guard.index();
        assert_eq!(*self.asked >> guard.index(), 0, "{guard} is asked late, or once more");
        *self.asked |= bit;
        self.trips & bit != 0
    }
}

fn decided(
    policy: &Policy,
    class: Class,
    open: Open,
    has_translation: bool,
    trips: u8,
) -> (Decision, Expected) {
    let mut asked = 0;
    let described = open_syn(class, open);
    let is_served = described.no_cookie != 0;
    let facts = RecordedFacts { is_served, has_translation, trips, asked: &mut asked };
    let decision = decide(policy, class, facts);
    let (verdict, clamps, would) = (decision.verdict, decision.clamps, decision.would);
    (decision, Expected { verdict, clamps, guard: decision.guard, would, asked })
}

/// Returns the description of a SYN before the decision.
fn open_syn(class: Class, open: Open) -> Description {
    let mut described =
        Description { kind: Kind::Syn as u32, detail: class as u32, ..Description::default() };
    described.data_len = u32::from(open == Open::WithData);
    described.set_no_cookie(open != Open::No);
    described
}

/// Returns all combinations of settings.
fn settings() -> impl Iterator<Item = [Setting; Guard::COUNT]> {
    let each = [Setting::Off, Setting::Dry, Setting::Acts];
    (0..3_usize.pow(Guard::COUNT as u32))
        .map(move |n| std::array::from_fn(|guard| each[n / 3_usize.pow(guard as u32) % 3]))
}

/// Combinations of all settings and reasons, on every class, with and without hiding and translation.
#[test]
fn every_decision() {
    let mut outcomes = HashSet::new();
    for guards in settings() {
        for flags in 0..64 {
            let has = |bit: u32| flags >> bit & 1 == 1;
            let wanted = ServiceSettings {
                guards,
                translates: has(0),
                hidden: has(1),
                hides_sources: has(2),
                drops: has(3),
                all_hidden: has(4),
                answers: has(5),
            };
            let policy = wanted.policy();
            // `answer`, the last one, is not asked for a reason.
            for trips in 0..1 << Guard::Answer.index() {
                let cases = Class::ALL.iter().flat_map(|class| Open::ALL.map(|open| (*class, open)));
                for ((class, open), known) in cases.flat_map(|case| [(case, false), (case, true)]) {
                    let (decision, got) = decided(&policy, class, open, known, trips);
                    let expected =
                        wanted.expected(class, open, known, |guard| trips >> guard.index() & 1 == 1);
                    assert_eq!(
                        got, expected,
                        "{wanted:?}, {class}, {open:?}, translation: {known}, trips {trips:05b}"
                    );
                    let mut described = open_syn(class, open);
                    described.set_decision(decision, OTHER);
                    described.drop_served();
                    let verdict = described.decision().verdict;
                    assert_eq!(verdict, expected.last(open).verdict, "{wanted:?}, {class}, {open:?}");
                    if let Class::CookieCurrent | Class::CookieBackup = class {
                        // A filter may err, but only for sources that no order hides.
                        let is_hidden = trips >> Guard::Hide.index() & 1 == 1;
                        check_quick(&policy, trips, is_hidden, decision);
                        check_quick(&policy, trips, true, decision);
                    }
                    if open == Open::No {
                        let is_hidden = trips >> Guard::Hide.index() & 1 == 1;
                        check_refused(&policy, class, trips, is_hidden, decision);
                        check_refused(&policy, class, trips, true, decision);
                    }
                    outcomes.insert(decision);
                }
            }
        }
    }
    assert!(outcomes.len() > 30, "{} decisions", outcomes.len());
    for decision in outcomes {
        check_description(decision);
    }
}

/// Checks that the quick decision on a good cookie is made exactly if no guard but the clamp concerns it, and equals
/// `decision`. Only then may a source's rate limit be used. `may_be_hidden` is the answer of the filter.
fn check_quick(policy: &Policy, trips: u8, may_be_hidden: bool, decision: Decision) {
    struct Quick<'a> {
        trips: u8,
        may_be_hidden: bool,
        spent: &'a Cell<bool>,
    }
    impl Facts for Quick<'_> {
        fn has_translation(&self) -> bool {
            panic!("a good cookie is not translated")
        }

        fn may_be_hidden(&self) -> bool {
            self.may_be_hidden
        }

        fn needs_no_cookie(&self) -> bool {
            panic!("a good cookie that passes is served anyway")
        }

        fn triggers(&mut self, guard: Guard) -> bool {
            assert!(matches!(guard, Guard::Once | Guard::Fair | Guard::Clamp), "{guard} is asked");
            assert!(!self.spent.get(), "{guard} is asked once something has been taken");
            let trips = self.trips >> guard.index() & 1 == 1;
            self.spent.set(guard == Guard::Fair && !trips);
            trips
        }
    }
    let (spent, quick) = (Cell::new(false), Cell::new(None));
    let is_decided = decide_good(policy, Quick { trips, may_be_hidden, spent: &spent }, |decision| {
        assert_eq!(quick.replace(Some(decision)), None, "decided twice");
    });
    assert_eq!(is_decided, quick.get().is_some());
    let only_clamps = [Some(Guard::Clamp), None].contains(&decision.guard)
        && decision.would & !(1 << Guard::Clamp.index()) == 0;
    let asks_hide = policy.has(Policy::HIDDEN_SERVICE | Policy::HIDDEN_ALL)
        || policy.has(Policy::HIDES_SOURCES) && may_be_hidden
        || [true, false].iter().any(|acts| policy.with(Guard::Hide, *acts) == *policy);
    match quick.get() {
        Some(quick) => assert_eq!(quick, decision, "{policy:?}, trips {trips:05b}"),
        None => assert!(!spent.get() && (asks_hide || !only_clamps), "{policy:?}, trips {trips:05b}"),
    }
}

/// Checks that the quick decision on a SYN that is not served is made exactly if nothing but the limit of `shed` concerns it,
/// and equals `decision`. Only then may that limit be used. `may_be_hidden` is the answer of the filter.
fn check_refused(policy: &Policy, class: Class, trips: u8, may_be_hidden: bool, decision: Decision) {
    struct Refused {
        is_one_of_all: bool,
        may_be_hidden: bool,
        trips: bool,
        spent: bool,
    }
    impl Facts for &mut Refused {
        fn has_translation(&self) -> bool {
            panic!("its cookie is not translated")
        }

        fn may_be_hidden(&self) -> bool {
            self.may_be_hidden
        }

        fn needs_no_cookie(&self) -> bool {
            panic!("its listener needs one")
        }

        fn is_one_of_all(&self) -> bool {
            self.is_one_of_all
        }

        fn is_one_too_many(&mut self) -> bool {
            assert!(self.is_one_of_all && !self.spent, "it is spared, or asked twice");
            self.spent = true;
            self.trips
        }

        fn triggers(&mut self, guard: Guard) -> bool {
            panic!("{guard} is asked")
        }
    }
    let is_on = |guard| [true, false].iter().any(|acts| policy.with(guard, *acts) == *policy);
    let concerns = |guard| match guard {
        Guard::Hide => {
            policy.has(Policy::HIDDEN_SERVICE | Policy::HIDDEN_ALL)
                || policy.has(Policy::HIDES_SOURCES) && may_be_hidden
                || is_on(guard)
        }
        Guard::Answer => is_on(guard) && policy.has(Policy::ANSWERS),
        Guard::Shed => is_on(guard) && class != Class::CookieRequest,
        Guard::Once | Guard::Fair | Guard::Clamp => false,
    };
    for is_one_of_all in [false, true] {
        let trips = trips >> Guard::Shed.index() & 1 == 1;
        let mut facts = Refused { is_one_of_all, may_be_hidden, trips, spent: false };
        let quick = decide_refused(policy, class, &mut facts);
        let is_refused =
            matches!(class, Class::CookieRequest | Class::CookieUnknown | Class::CookieBadLength);
        let takes_more = concerns(Guard::Hide)
            || concerns(Guard::Answer)
            || concerns(Guard::Shed) && !is_one_of_all
            || !is_refused;
        assert_eq!(quick, (!takes_more).then_some(decision), "{policy:?}, {class}, {is_one_of_all}");
        assert_eq!(facts.spent, !takes_more && concerns(Guard::Shed), "{policy:?}, {class}");
    }
}

/// Checks that a decision survives its description, is counted as what it is, and that an event names its guard.
fn check_description(decision: Decision) {
    let segment = Segment {
        addresses: Addresses::from_ipv6([7; 32]),
        fast_open: FastOpen::Request,
        is_signed: false,
        is_fragment: false,
        tcp: 54,
        data_len: 9,
    };
    let found = Classified { class: Class::CookieBackup, slot: Some(1), is_portable: false };
    let (ring, service) = (keys::ring(), 4095);
    let mut described = describe(&segment, found, &ring);
    described.set_decision(decision, service);
    assert_eq!((described.decision(), described.service), (decision, service));

    let first = Guard::ALL.iter().find(|guard| decision.would >> guard.index() & 1 == 1);
    let named = decision.guard.map(|guard| (guard, true)).or(first.map(|guard| (*guard, false)));
    let number = EventGuard::new(described.guard, described.would).number();
    assert_eq!(EventGuard::from_number(number), named, "{decision:?}");

    check_signed(&segment, found, &ring, decision);
    // Counting by parts and counting by description are equal.
    let mut cells = [counters::Cell::EMPTY; 2];
    cells[0].count_syn(&segment, found, decision.verdict, &ring);
    cells[0].count_guards(decision);
    cells[1].count_described(&described);
    let [expected, counted] = cells.map(|cell| cell.counters());
    assert!(counted == expected, "{:#?}, expected {:#?}", rows(&counted), rows(&expected));
    for guard in Guard::ALL {
        let acted = u64::from(decision.guard == Some(*guard));
        let would = u64::from(decision.would >> guard.index() & 1);
        assert_eq!(counted.guards[guard.index()], GuardCounts { acted, would }, "{decision:?}, {guard}");
    }
}

/// Checks that the decision is taken back exactly if the SYN is signed. Then no guard is counted.
fn check_signed(segment: &Segment, found: Classified, ring: &KeyRing, decision: Decision) {
    for is_signed in [false, true] {
        let mut described = describe(&Segment { is_signed, ..*segment }, found, ring);
        described.set_decision(decision, 7);
        let acts = decision.verdict != Verdict::Pass || decision.clamps;
        assert_eq!(described.spare_signed(), is_signed && acts, "{decision:?}");
        assert_eq!(described.decision(), if is_signed { Decision::PASS } else { decision });
        assert_eq!((described.service, described.segment().is_signed), (7, is_signed));
    }
}

/// The default policy changes nothing.
#[test]
fn the_empty_policy_passes_everything() {
    for class in Class::ALL {
        let (decision, _) = decided(&Policy::default(), *class, Open::WithData, true, u8::MAX);
        assert_eq!(decision, Decision::PASS);
    }
}

/// A window is cut to the requested size, at most to the largest possible window.
#[test]
fn windows() {
    for (clamp, data_len, most) in [
        (3, 0, 0),
        (3, 1, 3),
        (3, 1460, 4380),
        (0, 1460, 0),
        (3, 21_845, 65_535),
        (3, 21_846, 65_535),
        (1 << 32, 1 << 16, 65_535),
    ] {
        let policy = Policy { clamp, ..Policy::default() };
        assert_eq!(policy.max_window(data_len), most, "{clamp} times {data_len}");
    }
}

/// The description of each case has the values of the case.
#[test]
fn descriptions() {
    let mut cookies = 0;
    for case in all() {
        let (frame, ring) = (case.frame.as_slice(), case.keys.ring());
        let segment = match parse(frame, case.link) {
            Ok(Some(segment)) => segment,
            Ok(None) => continue,
            Err(fault) => {
                let mut described = Description::default();
                described.set_fault(fault);
                assert_eq!(described.class(), None, "{}", case.name);
                continue;
            }
        };
        let found = classify(&segment, &ring, Unlimited);
        let described = describe(&segment, found, &ring);
        assert_eq!(described.class(), Some(found.class), "{}", case.name);
        assert_eq!(described.addresses(), segment.addresses, "{}", case.name);
        let track = found.slot.map_or(0, |slot| u32::from(ring.tracks[slot]) + 1);
        assert_eq!(described.track, track, "{}", case.name);
        if let FastOpen::Cookie(_) = segment.fast_open {
            assert_eq!(described.segment(), segment, "{}", case.name);
            cookies += 1;
        }
    }
    assert!(cookies > 100, "{cookies} cases have a cookie");
}

/// Returns the description of a SYN, written over another packet's.
fn describe(segment: &Segment, found: Classified, ring: &KeyRing) -> Description {
    let any = u32::MAX;
    let mut described = Description {
        words: [u64::MAX; 4],
        cookie: u64::MAX,
        cookie_offset: any,
        tcp: any,
        kind: any,
        data_len: any,
        signed: any,
        family: any,
        detail: any,
        track: any,
        ..Description::default()
    };
    described.set_syn(segment, found.class);
    described.set_cookie(segment, found, ring);
    described
}

/// Random bytes are a valid description, too.
#[test]
fn any_numbers_are_a_description() {
    let any = u32::MAX;
    let none = Description {
        kind: any,
        detail: any,
        family: any,
        verdict: any,
        guard: any,
        ..Description::default()
    };
    assert_eq!(none.class(), None);
    assert_eq!(none.decision(), Decision::PASS);
    for (index, class) in (0..).zip(Class::ALL) {
        assert_eq!(Class::from_index(index), Some(*class));
    }
    assert_eq!(Class::from_index(Class::COUNT as u32), None);
}

/// Counts of guards add up over CPUs and services.
#[test]
fn counts_of_guards_add_up() {
    let mut cells = [counters::Cell::EMPTY; 2];
    for (cpu, cell) in (1..).zip(&mut cells) {
        for (place, count) in (1..).zip(&mut cell.guards) {
            *count = GuardCounts { acted: cpu * place, would: 100 * cpu * place };
        }
    }
    let mut counters = Counters::default();
    cells.iter().for_each(|cell| counters.add_cell(cell));
    let mut twice = counters;
    twice.add(&counters);
    for (place, (once, twice)) in (1..).zip(counters.guards.iter().zip(twice.guards)) {
        assert_eq!((once.acted, once.would), (3 * place, 300 * place));
        assert_eq!((twice.acted, twice.would), (6 * place, 600 * place));
    }
}

/// Bits of an address that select a bit of [`SourceFilter`], counted as in [`Addresses::source_v6`].
fn filtered(family: Family) -> std::ops::Range<usize> {
    match family {
        Family::Ipv4 => 100..112,
        Family::Ipv6 => 20..32,
    }
}

/// A source as 128 bits, the first bit first. An IPv4 source is mapped.
#[derive(Clone, Copy, Debug)]
struct Source {
    family: Family,
    bits: u128,
}

impl Source {
    fn v4(bits: u32) -> Self {
        Self { family: Family::Ipv4, bits: 0xffff << 32 | u128::from(bits) }
    }

    fn v6(bits: u128) -> Self {
        Self { family: Family::Ipv6, bits }
    }

    fn addresses(self) -> Addresses {
        let octets = self.bits.to_be_bytes();
        match self.family {
            Family::Ipv4 => {
                let source: [u8; 4] = octets[12..].try_into().expect("four bytes");
                Addresses::from_ipv4([source, [7; 4]].concat().try_into().expect("eight bytes"))
            }
            Family::Ipv6 => Addresses::from_ipv6([octets, [7; 16]].concat().try_into().expect("32 bytes")),
        }
    }

    /// Whether both are equal in these bits.
    fn agrees(self, other: Self, bits: std::ops::Range<usize>) -> bool {
        let differ = self.bits ^ other.bits;
        bits.into_iter().all(|bit| differ >> (127 - bit) & 1 == 0)
    }

    /// Number of bits in front of the address.
    fn fixed(self) -> usize {
        if self.family == Family::Ipv4 { 96 } else { 0 }
    }
}

/// Generates sources, many of which differ in few bits only.
fn any_source() -> impl Strategy<Value = Source> {
    let near = |bit: usize, flip: bool| u128::from(flip) << (127 - bit);
    prop_oneof![
        any::<u32>().prop_map(Source::v4),
        (0..32_usize, any::<bool>())
            .prop_map(move |(bit, flip)| { Source::v4(0xc633_6407 ^ near(96 + bit, flip) as u32) }),
        any::<u128>().prop_map(Source::v6),
        (0..128_usize, any::<bool>()).prop_map(move |(bit, flip)| Source::v6(
            0x2001_0db8_0000_0007_0000_0000_0000_0001 ^ near(bit, flip)
        )),
    ]
}

proptest! {
    #![proptest_config(config())]

    /// The filter has every source of every prefix in it, and no source that differs from all prefixes in the bits
    /// that it looks at.
    #[test]
    fn the_filter_misses_no_hidden_source(
        prefixes in vec((any_source(), 0..=128_usize), 0..40),
        sources in vec(any_source(), 1..60),
    ) {
        let mut filter = SourceFilter::EMPTY;
        for (prefix, len) in &prefixes {
            filter.add(prefix.family, (*len).max(prefix.fixed()) as u32, prefix.addresses().source_v6());
        }
        for source in sources {
            let bits = filtered(source.family);
            let mine = prefixes.iter().filter(|(prefix, _)| prefix.family == source.family);
            let may_have = mine.clone().any(|(prefix, len)| {
                prefix.agrees(source, bits.start..bits.end.min(*len).max(bits.start))
            });
            prop_assert_eq!(filter.may_have(&source.addresses()), may_have, "{:?}", source);
            let is_hidden = mine.clone().any(|(prefix, len)| prefix.agrees(source, 0..*len));
            prop_assert!(may_have || !is_hidden, "{:?}", source);
        }
    }
}

/// Token bucket, as a simple model of a [`Limit`].
#[derive(Clone, Copy, Debug)]
struct Bucket {
    share: u64,
    room: u64,
    level: u64,
    at: u64,
}

impl Bucket {
    fn full(limit: &Limit, at: u64) -> Self {
        let room = limit.tolerance + limit.interval;
        Self { share: limit.interval, room, level: room, at }
    }

    fn take(&mut self, now: u64) -> bool {
        self.level = (self.level + (now - self.at)).min(self.room);
        self.at = now;
        let is_granted = self.level >= self.share;
        self.level -= if is_granted { self.share } else { 0 };
        is_granted
    }
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases * 4, failure_persistence: None, ..default }
}

fn any_limit() -> impl Strategy<Value = (u64, u64, u64)> {
    (1..100_000_u64, 1..1_000_000_u64, 1..50_u64)
}

/// Generates gaps between events, in jiffies, mostly short.
fn gaps(about: u64) -> impl Strategy<Value = Vec<u64>> {
    vec(prop_oneof![2 => Just(0), 4 => 0..3_u64, 2 => 0..=about, 1 => 0..=50 * about], 1..300)
}

/// Jiffy at which the kernel's clock begins, about (`INITIAL_JIFFIES`, linux/jiffies.h).
const FIRST_JIFFY: u64 = 4_294_900_000;

/// Adds to a word, as long as there is one CPU.
fn add(word: &Cell<u64>, n: u64) {
    word.set(word.get().wrapping_add(n));
}

/// Returns the number of grants to a source that asks for `asked` in each of these jiffies.
fn granted(limit: &Limit, jiffies: u64, asked: impl Fn(u64) -> u64) -> u64 {
    let last = Cell::new(0);
    let spend = |jiffy| limit.spend(&last, (FIRST_JIFFY + jiffy) * TICKS, add);
    let granted = |jiffy| (0..asked(jiffy)).filter(|_| spend(jiffy)).count() as u64;
    (1..=jiffies).map(granted).sum()
}

/// CPUs that spend at the same instant are granted no more than one after the other, in every interleaving of two.
#[test]
fn cpus_together_are_granted_no_more() {
    let now = FIRST_JIFFY * TICKS;
    for burst in 1..4 {
        let limit = Limit::new(1, 10, burst);
        // Times at which the last SYN was due, from a full share to none. After a long pause, one too many does not matter.
        for last in (0..=burst + 4).map(|intervals| now + limit.tolerance - intervals * limit.interval) {
            let alone = Cell::new(last);
            let granted_alone = (0..2).filter(|_| limit.spend(&alone, now, add)).count();
            // The other CPU spends before this one adds, before it reads, or before it takes back.
            for at in 0..4 {
                let (word, steps, other) = (Cell::new(last), Cell::new(0), Cell::new(None));
                let interrupt = || {
                    if steps.replace(steps.get() + 1) == at {
                        other.set(Some(limit.spend(&word, now, add)));
                    }
                };
                let granted = limit.spend(&word, now, |word, n| {
                    interrupt();
                    add(word, n);
                    interrupt();
                });
                let other = other.get().unwrap_or_else(|| limit.spend(&word, now, add));
                let together = usize::from(granted) + usize::from(other);
                assert!(together <= granted_alone, "burst {burst}, {last}, step {at}");
                assert!(word.get() <= now + limit.tolerance, "what was taken back is no debt");
            }
        }
    }
}

/// A source that has lost its seat to another one is granted its SYN, and takes nothing from the other.
#[test]
fn a_seat_that_is_taken_over_harms_nobody() {
    let (limit, now) = (Limit::new(1, 10, 4), FIRST_JIFFY * TICKS);
    let seed = Seed::new(5);
    let tag = |who: u64| Tag::of(|at| seed.word(at), [who]);
    let spend = |row: &Row, who, now| row.spend(tag(who), &limit, now, add);
    for before in [true, false] {
        let row = Row::default();
        // The first source has spent twice, so its time is later than that of the others.
        assert_eq!((0..2).map(|_| spend(&row, 0, now)).collect::<Vec<_>>(), [Spent::Granted; 2]);
        let later = now + 2 * limit.interval;
        let take_over = |row: &Row| {
            for who in 1..=SEATS as u64 {
                spend(row, who, later);
            }
        };
        let steps = Cell::new(0);
        let spent = row.spend(tag(0), &limit, now, |word, n| {
            let is_first = steps.replace(steps.get() + 1) == 0;
            if is_first && before {
                take_over(&row);
            }
            add(word, n);
            if is_first && !before {
                take_over(&row);
            }
        });
        assert_eq!((spent, row.find(tag(0)).is_none()), (Spent::Granted, true), "{before}");
        let alone = Row::default();
        take_over(&alone);
        for who in 1..=SEATS as u64 {
            let left = |row: &Row| (0..9).filter(|_| spend(row, who, later) == Spent::Granted).count();
            assert!(left(&row) >= left(&alone), "{before}: source {who}");
        }
    }
}

/// The least burst grants the whole rate to a source that always asks, and to one that asks evenly. One less does not.
#[test]
fn the_least_burst_grants_the_whole_rate() {
    const PERIODS: u64 = 20;
    for (count, jiffies) in (1..=24).flat_map(|count| (1..=24).map(move |jiffies| (count, jiffies))) {
        let least = Limit::least_burst(count, jiffies);
        let all = PERIODS * count;
        let always = |burst| granted(&Limit::new(count, jiffies, burst), PERIODS * jiffies, |_| 2 * count);
        let evenly = |burst| {
            let asked = |jiffy| jiffy * count / jiffies - (jiffy - 1) * count / jiffies;
            granted(&Limit::new(count, jiffies, burst), PERIODS * jiffies, asked)
        };
        assert!(always(least) >= all && evenly(least) == all, "{count} in {jiffies}, burst {least}");
        if least > 1 {
            let fewer = (always(least - 1), evenly(least - 1));
            assert!(fewer.0 < all && fewer.1 < all, "{count} in {jiffies}, burst {}: {fewer:?}", least - 1);
        }
        assert!((count.div_ceil(jiffies)..=count).contains(&least), "{count} in {jiffies}, burst {least}");
    }
    // The rate is a thousand per second, at the usual rates of the clock.
    assert_eq!([100, 250, 300, 1000].map(|hz| Limit::least_burst(1000, hz)), [10, 4, 4, 1]);
    // The smallest rate, and the largest.
    assert_eq!((Limit::least_burst(1, u64::MAX), Limit::least_burst(u64::MAX, 1)), (1, u64::MAX));
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_limit_is_as_asked_for((count, jiffies, burst) in any_limit()) {
        let limit = Limit::new(count, jiffies, burst);
        // The rate is exact up to the rounding of the interval.
        prop_assert!(limit.interval * count <= jiffies * TICKS && jiffies * TICKS < (limit.interval + 1) * count
            || limit.interval == 1 && count > jiffies * TICKS);
        prop_assert_eq!(limit.tolerance, limit.interval * (burst - 1));
    }

    /// Grants never exceed what burst and rate allow, in any period, and are never denied below that.
    #[test]
    fn a_limit_holds(
        (limit, gaps) in any_limit().prop_flat_map(|(count, jiffies, burst)| {
            (Just(Limit::new(count, jiffies, burst)), gaps(jiffies / count + 1))
        }),
    ) {
        let mut now = FIRST_JIFFY * TICKS;
        let mut bucket = Bucket::full(&limit, now);
        let last = Cell::new(0);
        let mut granted = Vec::new();
        for gap in gaps {
            now += gap * TICKS;
            let is_granted = limit.spend(&last, now, add);
            prop_assert_eq!(is_granted, bucket.take(now));
            if is_granted {
                granted.push(now);
            }
        }
        let burst = limit.tolerance / limit.interval + 1;
        for (first, from) in granted.iter().enumerate() {
            for (last, to) in granted.iter().enumerate().skip(first) {
                prop_assert!((last - first + 1) as u64 <= burst + (to - from) / limit.interval);
            }
        }
    }

    /// Sources have limits of their own while there are no more of them than seats. The evicted entry is the one whose
    /// limit is restored first. An eviction is reported exactly if it lost something.
    #[test]
    fn a_row_remembers(
        (limit, gaps) in any_limit().prop_flat_map(|(count, jiffies, burst)| {
            (Just(Limit::new(count, jiffies, burst)), gaps(jiffies / count + 1))
        }),
        who in vec(0..4_u64, 300),
        crowd in 1..=4_u64,
    ) {
        let seed = Seed::new(77);
        let tag_of = |who| Tag::of(|at| seed.word(at), [who]);
        let row = Row::default();
        let mut now = FIRST_JIFFY * TICKS;
        let mut seats: [Option<(u64, Bucket)>; SEATS] = [None; SEATS];
        // Time at which the bucket of the seat is full again.
        let until = |seat: &Option<(u64, Bucket)>| seat.map_or(0, |(_, bucket)| bucket.at + bucket.room - bucket.level);
        let mut alone: HashMap<u64, Bucket> = HashMap::new();
        for (gap, who) in gaps.into_iter().zip(who) {
            now += gap * TICKS;
            let who = who % crowd;
            let tag = tag_of(who);
            let known = seats.iter_mut().flatten().find(|(tenant, _)| *tenant == who);
            prop_assert_eq!(row.find(tag).is_some(), known.is_some());
            let spent = row.spend(tag, &limit, now, add);
            let by_himself = alone.entry(who).or_insert_with(|| Bucket::full(&limit, now)).take(now);
            if crowd <= SEATS as u64 {
                prop_assert_eq!(spent, if by_himself { Spent::Granted } else { Spent::Denied });
            }
            let expected = match known {
                Some((_, bucket)) => {
                    if bucket.take(now) { Spent::Granted } else { Spent::Denied }
                }
                None => {
                    let mut bucket = Bucket::full(&limit, now);
                    bucket.take(now);
                    let least = seats.iter_mut().min_by_key(|seat| until(seat)).expect("there are seats");
                    let forgets = until(least) > now;
                    *least = Some((who, bucket));
                    if forgets { Spent::GrantedEvicting } else { Spent::Granted }
                }
            };
            prop_assert_eq!(spent, expected);
            let has_all = seats.iter().flatten().all(|(who, _)| row.find(tag_of(*who)).is_some());
            prop_assert!(has_all, "who has a seat is found");
        }
    }

    /// Addresses with the same prefix are one source, whatever the destination. Other services have other sources.
    #[test]
    fn sources_are_told_apart(
        (one, other) in (any::<u128>(), any::<u128>()),
        same in 0..=128_u32,
        to in any::<[u128; 2]>(),
        (v4, v6) in (0..=32_u8, 0..=128_u8),
        seed: u64,
    ) {
        let (seed, other_seed) = (Seed::new(seed), Seed::new(!seed));
        let first = |address: u128, len: u32| if len == 0 { 0 } else { address >> (128 - len) };
        // The two addresses share a prefix of random length.
        let keep = if same == 0 { 0 } else { u128::MAX << (128 - same) };
        let other = one & keep | other & !keep;
        let mask = SourceMask::new(v4, v6);

        let tags = [one, other].map(|source| {
            to.map(|to| mask.tag(&of_v6(source.into(), to.into()), 5, |at| seed.word(at)))
        });
        prop_assert_eq!(tags[0][0], tags[0][1], "the destination does not matter");
        let is_same = first(one, v6.into()) == first(other, v6.into());
        prop_assert_eq!(tags[0][0] == tags[1][0], is_same, "/{}", v6);
        prop_assert_ne!(tags[0][0], mask.tag(&of_v6(one.into(), to[0].into()), 6, |at| seed.word(at)));
        prop_assert_ne!(tags[0][0], mask.tag(&of_v6(one.into(), to[0].into()), 5, |at| other_seed.word(at)));

        let [one4, other4] = [one, other].map(|address| Ipv4Addr::from((address >> 96) as u32));
        let tags = [one4, other4].map(|source| {
            to.map(|to| mask.tag(&of_v4(source, (to as u32).into()), 5, |at| seed.word(at)))
        });
        prop_assert_eq!(tags[0][0], tags[0][1], "the destination does not matter");
        let is_same = first(one, v4.into()) == first(other, v4.into());
        prop_assert_eq!(tags[0][0] == tags[1][0], is_same, "/{}", v4);
        prop_assert_ne!(tags[0][0], mask.tag(&of_v4(one4, (to[0] as u32).into()), 6, |at| seed.word(at)));
    }

    /// A changed port, sequence number or address changes the tag of a SYN.
    #[test]
    fn syns_are_told_apart(addresses: [u8; 32], tcp: [u8; 8], seed: u64, byte in 0..40_usize, bit in 0..8_u32) {
        let seed = Seed::new(seed);
        let change = |bytes: &mut [u8]| {
            if let Some(byte) = bytes.get_mut(byte) {
                *byte ^= 1 << bit;
            }
        };
        let tag = |changed: bool| {
            let mut bytes = [&addresses[..], &tcp].concat();
            if changed {
                change(&mut bytes);
            }
            let (addresses, rest) = bytes.split_first_chunk::<32>().expect("there are 40");
            let tcp = rest.try_into().expect("there are eight");
            let (v4, _) = addresses.split_first_chunk::<8>().expect("there are 32");
            [Addresses::from_ipv4(*v4), Addresses::from_ipv6(*addresses)].map(|addresses| syn_tag(&addresses, tcp, |at| seed.word(at)))
        };
        let (was, is) = (tag(false), tag(true));
        // IPv4 does not use the last bytes of the addresses.
        prop_assert_eq!(was[0] == is[0], (8..32).contains(&byte));
        prop_assert_ne!(was[1], is[1]);
        prop_assert_ne!(was[0], was[1]);
    }

    /// No difference between two inputs gives them the same tag whatever the seed.
    #[test]
    fn differences_cannot_be_chosen(seed: u64, words: [u64; 3]) {
        let seed = Seed::new(seed);
        let top = 1_u64 << 63;
        for change in [
            // Flips the highest bit of a product, which a shift by half a word takes to the middle.
            [top, top | top >> 32, 0],
            [top, top, 0],
            [top, top >> 32, 0],
            [top | top >> 32, top | top >> 32, 0],
            [0, top, top | top >> 32],
            [top >> 32, top, top],
            [1, 1, 0],
            [u64::MAX, u64::MAX, u64::MAX],
        ] {
            let other: [u64; 3] = std::array::from_fn(|at| words[at] ^ change[at]);
            let [tag, changed] = [words, other].map(|words| Tag::of(|at| seed.word(at), words));
            prop_assert_ne!(tag, changed, "{:x?}", change);
        }
        let [one, two, three] = words;
        if one != two {
            let [tag, swapped] = [words, [two, one, three]].map(|words| Tag::of(|at| seed.word(at), words));
            prop_assert_ne!(tag, swapped);
        }
    }

    /// A replay is the SYN of a connection that is over, for as long as the connection is remembered.
    #[test]
    fn replays(then in 0..1_u64 << 40, later in prop_oneof![0..10_u64, 0..1_u64 << 20], kept in prop_oneof![0..10_u64, 0..1_u64 << 20]) {
        let remembered = Remembered::new(then);
        prop_assert_eq!(Remembered::from_word(remembered.word()), remembered);
        prop_assert_eq!(remembered.is_replay(then + later, kept), later < kept);
        // A free seat, and a connection that had not ended under tfo 0.1.
        for word in [0, then << 1] {
            prop_assert!(!Remembered::from_word(word).is_replay(then + later, kept));
        }
    }
}

fn of_v4(source: Ipv4Addr, destination: Ipv4Addr) -> Addresses {
    Addresses::from_ipv4([source.octets(), destination.octets()].concat().try_into().expect("eight bytes"))
}

fn of_v6(source: Ipv6Addr, destination: Ipv6Addr) -> Addresses {
    Addresses::from_ipv6([source.octets(), destination.octets()].concat().try_into().expect("32 bytes"))
}

/// Neighbouring sources, as those of one provider, are spread over all rows.
#[test]
fn rows_are_used_evenly() {
    const ROWS: u32 = 1 << 10;
    let mask = SourceMask::new(32, 64);
    for (family, seed) in
        Family::ALL.iter().flat_map(|family| (0..20).map(move |seed| (family, Seed::new(seed))))
    {
        let mut used = vec![0; ROWS as usize];
        for n in 0..ROWS * 32 {
            let addresses = match family {
                Family::Ipv4 => of_v4((0x0a00_0000 + n).into(), [192, 0, 2, 1].into()),
                Family::Ipv6 => of_v6((u128::from(n) << 64 | 0x2001_0db8 << 96).into(), 1.into()),
            };
            used[mask.tag(&addresses, 1, |at| seed.word(at)).row(ROWS - 1) as usize] += 1;
        }
        // With random places, one in a billion rows would have more, or less.
        assert!(
            used.iter().all(|used| (5..80).contains(used)),
            "{family}: {:?}",
            (used.iter().min(), used.iter().max())
        );
    }
}

/// Without a key of the kernel there is no translation, and no guard for good cookies is asked.
#[test]
fn a_cookie_that_stays_refused_costs_nobody_his_share() {
    assert!(KeyRing::EMPTY.translation().is_none());
    let mut guards = [Setting::Acts; Guard::COUNT];
    guards[Guard::Hide.index()] = Setting::Off;
    let wanted = ServiceSettings { translates: true, drops: true, ..ServiceSettings::of(guards) };
    let (_, got) = decided(&wanted.policy(), Class::CookieRetired, Open::No, false, u8::MAX);
    assert_eq!((got.verdict, got.asked), (Verdict::Pass, 0));
}
