//! Case table in the kernel: the real program, run by BPF_PROG_TEST_RUN. Needs root.

use std::{cell::RefCell, mem::offset_of, time::Duration};

use aya::{
    maps::{Array, Map, MapData},
    programs::TestRunOptions,
};
use proptest::{
    prop_assert_eq,
    strategy::Strategy,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};
use tfo_common::{
    carried::Carried,
    class::Class::*,
    counters::{Cell, Counters},
    keyring::{Held, Key, KeyRing, Moment},
    names,
    observed::{Outcomes, Watch},
    parse::LinkLayer,
    policy::Policy,
    segment::Family,
    verdict::{Mode, Verdict},
};
use tfo_tests::{
    cases::{CLIENT_V4, Case, Expected, Keys, SERVER_V4, all, rows, uncovered},
    host,
    kernel::{Kernel, fits, sum},
    keys::{CURRENT, STRANGER, ring},
    netns::{BPFFS, sandbox},
    packet::{Carry, ETHERNET, eth},
    random::{frame, spoilt_frame},
};
use tfo_userspace::{
    dataplane::{
        LoadOptions, ServiceCounters, SharedMaps,
        pins::{Bpffs, MAPS},
    },
    model::services::{OTHER_NAME, Services},
};

/// Returns the cases that can be run.
fn runnable() -> Vec<Case> {
    let cases = all();
    let (runnable, refused): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| fits(&case.frame));
    println!("{} cases run in the kernel, {} are too short for it", runnable.len(), refused.len());
    assert!(refused.iter().all(|case| case.frame.len() < ETHERNET + 40), "a case is too long for a test run");
    runnable
}

fn check_cases(link: LinkLayer) {
    let mut kernel = Kernel::load(link, Mode::Observe, &Keys::Known.ring());
    let mut keys = Keys::Known;
    let mut wrong = Vec::new();
    let mut before = Counters::default();
    for case in runnable().into_iter().filter(|case| case.link == link) {
        if case.keys != keys {
            keys = case.keys;
            kernel.publish(&keys.ring());
        }
        let after = kernel.pass(&case.name, &case.frame, 1);
        let expected = sum(&before, &case.expected.counters());
        if after != expected {
            wrong.push(format!("{}: {:#?}, expected {:#?}", case.name, rows(&after), rows(&expected)));
        }
        before = after;
    }
    assert!(wrong.is_empty(), "{} cases are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_case_is_counted_as_expected() {
    check_cases(LinkLayer::Ethernet);
}

#[test]
fn every_case_without_ethernet_is_counted_as_expected() {
    check_cases(LinkLayer::Ip);
}

#[test]
fn the_runnable_cases_cover_every_outcome() {
    let missing = uncovered(&runnable());
    assert!(missing.is_empty(), "no case for {missing:#?}");
}

/// The kernel refuses the cases that are left out. If it ever accepts them, [`fits`] must change.
#[test]
fn the_kernel_refuses_what_does_not_fit() {
    let mut kernel = Kernel::load(LinkLayer::Ethernet, Mode::Observe, &KeyRing::EMPTY);
    let short = [0; ETHERNET - 1];
    assert!(!fits(&short));
    let result = kernel.test_run(TestRunOptions { data_in: Some(&short), ..TestRunOptions::new() });
    assert!(result.is_err(), "{result:?}");
}

#[test]
fn a_storm_is_counted_to_the_last_packet() {
    const STORM: u32 = 10_000;
    let mut kernel = Kernel::load(LinkLayer::Ethernet, Mode::Observe, &ring());
    let syn =
        eth().ipv4(CLIENT_V4, SERVER_V4).syn().linux_options().cookie_of(CURRENT).data(b"hello").build();
    let counted = kernel.pass("storm", &syn, STORM);
    let one = Expected::of_class(Family::Ipv4, CookieCurrent, 5).counters();
    let expected = (0..STORM).fold(Counters::default(), |counters, _| sum(&counters, &one));
    assert!(counted == expected, "{:#?}", rows(&counted));
    // The data of each packet is counted.
    let tally = counted.class(CookieCurrent);
    assert_eq!(
        [tally.packets, tally.with_data, tally.data_bytes].map(|count| count / u64::from(STORM)),
        [1, 1, 5]
    );
}

#[test]
fn a_published_ring_is_in_force_at_once() {
    let mut kernel = Kernel::load(LinkLayer::Ethernet, Mode::Observe, &KeyRing::EMPTY);
    let syn = eth().ipv4(CLIENT_V4, SERVER_V4).syn().cookie_of(CURRENT).build();
    let (current, stranger): (Key, Key) = (CURRENT.key(), STRANGER.key());
    let mut ring = KeyRing::EMPTY;
    let mut expected = Counters::default();
    for (step, ((current, backup, next), slot)) in [
        ((None, None, None), None),
        ((Some(current), None, None), Some(0)),
        ((Some(stranger), Some(current), None), Some(1)),
        ((Some(stranger), None, None), Some(3)),
        ((Some(stranger), None, Some(current)), Some(2)),
        ((Some(current), Some(stranger), None), Some(0)),
    ]
    .into_iter()
    .enumerate()
    {
        let hits = kernel.counters().hits;
        ring = ring.follow(Held { current, backup, next }, Moment { seconds: 0, hits: &hits });
        kernel.publish(&ring);
        assert!(kernel.key_ring() == ring, "step {step}");
        let counted = kernel.pass("rotation", &syn, 1);
        let of_key = slot.map(|slot| Expected::of_key(Family::Ipv4, slot, 0));
        let unknown = Expected::of_class(Family::Ipv4, CookieUnknown, 0);
        expected.add(&of_key.unwrap_or(unknown).counted(Verdict::Pass, &ring));
        assert!(counted == expected, "step {step}: {:#?}, expected {:#?}", rows(&counted), rows(&expected));
    }
}

/// Carried counts are part of every sum.
#[test]
fn counts_of_earlier_maps_are_added() {
    const WORDS: usize = size_of::<Carried>() / 8;
    const PLAIN: usize = offset_of!(Carried, cell) + offset_of!(Cell, syn);
    const HITS: usize = offset_of!(Carried, cell) + offset_of!(Cell, hits);
    const OUTCOMES: usize = offset_of!(Carried, outcomes);
    const WATCH: usize = offset_of!(Carried, watch);

    sandbox(|| {
        let pins = Bpffs::new(BPFFS.as_ref()).pins("carried");
        let lock = pins.lock(Duration::ZERO).expect("nobody else is here");
        let generation = lock.next_generation().expect("a folder");
        let options = LoadOptions { services: 1, ..LoadOptions::new(LinkLayer::Ethernet, Mode::Observe) };
        let mut kernel = Kernel::with(&options, Some(SharedMaps { generation: &generation, maps: &MAPS }));
        let web = "web=80".parse().expect("a service");
        kernel.serve(&Services::new(vec![web], Mode::Observe).expect("services"));
        kernel.pass("web", &eth().ipv4(CLIENT_V4, SERVER_V4).syn().ports(1, 80).build(), 3);
        kernel.pass("other", &eth().ipv4(CLIENT_V4, SERVER_V4).syn().ports(1, 81).build(), 5);

        let map = MapData::from_pin(generation.map(names::CARRIED)).expect("the map is pinned");
        let mut map: Array<_, [u64; WORDS]> = Map::Array(map).try_into().expect("an array");
        for (index, factor) in [(0, 1), (1, 100)] {
            let mut words = [0; WORDS];
            for (at, count) in [
                (PLAIN, 10),
                (HITS, 20),
                (OUTCOMES + offset_of!(Outcomes, accepted), 30),
                (OUTCOMES + offset_of!(Outcomes, events_skipped), 40),
                (WATCH + offset_of!(Watch, events), 50),
                (WATCH + offset_of!(Watch, events_skipped), 60),
                (WATCH + offset_of!(Watch, unconfirmed), 70),
            ] {
                words[at / 8] = factor * count;
            }
            map.set(index, words, 0).expect("the map can be written");
        }
        let sums = |kernel: &Kernel| {
            let counters = kernel.counters();
            (counters.class(PlainSyn).packets, counters.hits[0])
        };
        let rows = |kernel: &Kernel| -> Vec<_> {
            let rows = kernel.by_service();
            let row = |it: &ServiceCounters| {
                (it.name.clone(), it.counters.class(PlainSyn).packets, it.outcomes.accepted)
            };
            rows.iter().map(row).collect()
        };
        assert_eq!(sums(&kernel), (8 + 10 + 1000, 20 + 2000));
        let other = (OTHER_NAME.to_owned(), 5 + 10, 30);
        assert_eq!(rows(&kernel), [other, ("web".to_owned(), 3 + 1000, 3000)]);
        let watch = kernel.watch();
        // The counts of observing are in the first entry only. Unreported refusals are in all.
        assert_eq!((watch.events, watch.unconfirmed), (50, 70));
        assert_eq!(watch.events_skipped, 60 + 40 + 4000);
    });
}

/// The program passes the kernel's verifier and counts the same in every mode and at every log level.
#[test]
fn every_log_level_loads() {
    let frame = eth().ipv4(CLIENT_V4, SERVER_V4).ihl(4).syn().build();
    for link in LinkLayer::ALL {
        for (mode, log_level) in Mode::ALL.iter().flat_map(|mode| (0..=5).map(move |level| (*mode, level))) {
            let mut kernel = Kernel::with(&LoadOptions { log_level, ..LoadOptions::new(*link, mode) }, None);
            let counted = kernel.pass("log", &frame, 1);
            let expected = host::count(&frame, *link, &Policy::of_mode(mode), &KeyRing::EMPTY);
            assert!(counted == expected, "{link}, {mode}, level {log_level}");
        }
    }
}

/// Checks that the code under test on the host does the same in the kernel, compiled for another machine.
fn check_random(frames: impl Strategy<Value = Vec<u8>>) {
    let policy = Policy::of_mode(Mode::Observe);
    let kernel = RefCell::new(Kernel::load(LinkLayer::Ethernet, Mode::Observe, &ring()));
    let before = RefCell::new(Counters::default());
    let default = Config::default();
    let mut runner =
        TestRunner::new(Config { cases: default.cases * 16, failure_persistence: None, ..default });
    let result = runner.run(&frames, |frame| {
        if !fits(&frame) {
            return Ok(());
        }
        let after = kernel.borrow_mut().pass("a random frame", &frame, 1);
        let before = before.replace(after);
        let expected = sum(&before, &host::count(&frame, LinkLayer::Ethernet, &policy, &ring()));
        prop_assert_eq!(rows(&after), rows(&expected));
        Ok::<(), TestCaseError>(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, frame)) => panic!("{reason}\n{frame:02x?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

#[test]
fn kernel_and_host_agree_on_random_frames() {
    check_random(frame());
}

#[test]
fn kernel_and_host_agree_on_spoilt_frames() {
    check_random(spoilt_frame());
}
