//! The table of cases inside the kernel: the real program, run by BPF_PROG_TEST_RUN. Needs root.

use std::cell::RefCell;

use aya::programs::{ProgramError, TestRun, TestRunOptions, TestRunResult};
use proptest::{
    prop_assert_eq,
    strategy::Strategy,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};
use tfo_common::{
    class::Class::*,
    counters::Counters,
    keyring::{Key, KeyRing},
    parse::LinkLayer,
    segment::Family,
};
use tfo_tests::{
    cases::{CLIENT_V4, Case, Expected, Keys, SERVER_V4, all, rows, uncovered},
    host,
    keys::{CURRENT, STRANGER, ring},
    packet::{Carry, ETHERNET, eth},
    random::{frame, spoilt_frame},
};
use tfo_userspace::datapath::Object;

const XDP_PASS: u32 = 2;

/// Whether the kernel takes `frame` for a test run: an Ethernet header at least, whatever the program expects, and no
/// more than a page less what it needs for itself (`bpf_prog_test_run_xdp`, net/bpf/test_run.c).
fn fits(frame: &[u8]) -> bool {
    (ETHERNET..=3500).contains(&frame.len())
}

/// The cases that can be run.
fn runnable() -> Vec<Case> {
    let cases = all();
    let (runnable, refused): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| fits(&case.frame));
    println!("{} cases run in the kernel, {} are too short for it", runnable.len(), refused.len());
    assert!(refused.iter().all(|case| case.frame.len() < ETHERNET), "a case is too long for a test run");
    runnable
}

/// The loaded program.
struct Kernel(Object);

impl Kernel {
    fn load(link: LinkLayer, keys: &KeyRing) -> Self {
        let mut object = Object::load(link, 0, None).expect("the program loads (is this root?)");
        object.publish(keys).expect("keys are published");
        Self(object)
    }

    fn test_run(&mut self, options: TestRunOptions<'_>) -> Result<TestRunResult, ProgramError> {
        self.0.program().expect("the object has its program").test_run(options)
    }

    fn counters(&self) -> Counters {
        self.0.counters().expect("the counters can be read")
    }

    /// Sends `frame` through the program `repeat` times, asserts that it was passed on as it came, and returns what is
    /// counted by then.
    fn pass(&mut self, name: &str, frame: &[u8], repeat: u32) -> Counters {
        let mut out = vec![0x55; frame.len() + 64];
        let (data_in, data_out) = (Some(frame), Some(out.as_mut_slice()));
        let result = self.test_run(TestRunOptions { data_in, data_out, repeat, ..TestRunOptions::new() });
        let result = result.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(result.return_value, XDP_PASS, "{name}");
        assert_eq!(&out[..result.data_size_out as usize], frame, "{name}: the packet was changed");
        self.counters()
    }
}

/// What stands in the counters after `before` when `more` was counted, and nothing else.
fn sum(before: &Counters, more: &Counters) -> Counters {
    let mut sum = *before;
    sum.add(more);
    sum
}

fn check_cases(link: LinkLayer) {
    let mut kernel = Kernel::load(link, &Keys::Known.ring());
    let mut keys = Keys::Known;
    let mut wrong = Vec::new();
    let mut before = Counters::default();
    for case in runnable().into_iter().filter(|case| case.link == link) {
        if case.keys != keys {
            keys = case.keys;
            kernel.0.publish(&keys.ring()).expect("keys are published");
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

/// Why cases are left out: the day that the kernel takes them, [`fits`] is to let them in.
#[test]
fn the_kernel_refuses_what_does_not_fit() {
    let mut kernel = Kernel::load(LinkLayer::Ethernet, &KeyRing::EMPTY);
    let short = [0; ETHERNET - 1];
    assert!(!fits(&short));
    let result = kernel.test_run(TestRunOptions { data_in: Some(&short), ..TestRunOptions::new() });
    assert!(result.is_err(), "{result:?}");
}

#[test]
fn a_storm_is_counted_to_the_last_packet() {
    const STORM: u32 = 10_000;
    let mut kernel = Kernel::load(LinkLayer::Ethernet, &ring());
    let syn =
        eth().ipv4(CLIENT_V4, SERVER_V4).syn().linux_options().cookie_of(CURRENT).data(b"hello").build();
    let counted = kernel.pass("storm", &syn, STORM);
    let one = Expected::Syn { family: Family::Ipv4, class: CookieCurrent, data_len: 5 }.counters();
    let expected = (0..STORM).fold(Counters::default(), |counters, _| sum(&counters, &one));
    assert!(counted == expected, "{:#?}", rows(&counted));
    // Data is counted for each, too.
    let tally = counted.class(CookieCurrent);
    assert_eq!(
        [tally.packets, tally.with_data, tally.data_bytes].map(|count| count / u64::from(STORM)),
        [1, 1, 5]
    );
}

#[test]
fn a_published_ring_is_in_force_at_once() {
    let mut kernel = Kernel::load(LinkLayer::Ethernet, &KeyRing::EMPTY);
    let syn = eth().ipv4(CLIENT_V4, SERVER_V4).syn().cookie_of(CURRENT).build();
    let (current, stranger): (Key, Key) = (CURRENT.key(), STRANGER.key());
    let mut ring = KeyRing::EMPTY;
    let mut expected = Counters::default();
    for (step, (keys, class)) in [
        ((None, None), CookieUnknown),
        ((Some(current), None), CookieCurrent),
        ((Some(stranger), Some(current)), CookieBackup),
        ((Some(stranger), None), CookieRetired),
        ((Some(current), Some(stranger)), CookieCurrent),
    ]
    .into_iter()
    .enumerate()
    {
        ring = ring.follow(keys.0, keys.1);
        kernel.0.publish(&ring).expect("keys are published");
        assert!(kernel.0.key_ring().expect("the keys can be read") == ring, "step {step}");
        let counted = kernel.pass("rotation", &syn, 1);
        expected.add(&Expected::Syn { family: Family::Ipv4, class, data_len: 0 }.counters());
        assert!(counted == expected, "step {step}: {:#?}, expected {:#?}", rows(&counted), rows(&expected));
    }
}

/// Whatever its own log level, the program passes the kernel's verifier and counts the same.
#[test]
fn every_log_level_loads() {
    let frame = eth().ipv4(CLIENT_V4, SERVER_V4).ihl(4).syn().build();
    for link in LinkLayer::ALL {
        for level in 1..=5 {
            let object = Object::load(*link, level, None).expect("the program loads");
            let counted = Kernel(object).pass("log", &frame, 1);
            assert!(counted == host::count(&frame, *link, &KeyRing::EMPTY), "{link}, level {level}");
        }
    }
}

/// The very code that the host tests prove is what runs in the kernel, compiled for another machine.
fn check_random(frames: impl Strategy<Value = Vec<u8>>) {
    let kernel = RefCell::new(Kernel::load(LinkLayer::Ethernet, &ring()));
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
        let expected = sum(&before, &host::count(&frame, LinkLayer::Ethernet, &ring()));
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
