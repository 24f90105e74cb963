//! Flood of forged cookies in the kernel: the real program tries keys that the kernel does not hold within a budget.
//! Needs root.

use tfo_common::{class::Class, parse::LinkLayer, segment::Family, verdict::Mode};
use tfo_tests::{
    cases::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6},
    kernel::Kernel,
    keys::{self, BACKUP, CURRENT, RETIRED, STRANGER, TestKey},
    netns::eventually,
    packet::{Carry as _, Ip, eth},
};
use tfo_userspace::dataplane::LoadOptions;

/// Number of runs on one frame: far more in a jiffy than the budget allows.
const RUNS: u32 = 200_000;

/// Loads a program that may search for `searches` cookies in vain in each jiffy.
fn load(searches: u32) -> Kernel {
    let mut kernel =
        Kernel::with(&LoadOptions { searches, ..LoadOptions::new(LinkLayer::Ethernet, Mode::Observe) }, None);
    kernel.publish(&keys::ring());
    kernel
}

/// Sends `frame` so many times, and returns how many of them were counted as `class`.
fn send(kernel: &mut Kernel, class: Class, frame: &[u8], runs: u32) -> u64 {
    let before = kernel.counters().class(class).packets;
    kernel.pass(class.name(), frame, runs).class(class).packets - before
}

/// Returns SYNs with a cookie of `key`: a usual frame of each family, and one that needs a walk.
fn syns(key: TestKey) -> [Vec<u8>; 3] {
    let ips: [Ip; 3] = [
        eth().ipv4(CLIENT_V4, SERVER_V4).into(),
        eth().ipv6(CLIENT_V6, SERVER_V6).into(),
        eth().vlan(5).ipv4(CLIENT_V4, SERVER_V4).into(),
    ];
    ips.map(|ip| ip.syn().linux_options().cookie_of(key).nops(2).data(b"GET").build())
}

#[test]
fn without_a_budget_only_the_kernels_keys_are_known() {
    for (searches, retired) in [(0, Class::CookieUnknown), (1, Class::CookieRetired)] {
        let mut kernel = load(searches);
        let mut skipped = 0;
        for (key, class) in [
            (CURRENT, Class::CookieCurrent),
            (BACKUP, Class::CookieBackup),
            (RETIRED[0], retired),
            (RETIRED[7], retired),
        ] {
            for frame in syns(key) {
                let counted = send(&mut kernel, class, &frame, 1);
                assert_eq!(counted, 1, "{class}, {searches} searches");
                skipped += u64::from(class == Class::CookieUnknown);
            }
        }
        assert_eq!(kernel.watch().searches.skipped, skipped);
    }
}

#[test]
fn only_searches_in_vain_spend_the_budget() {
    let mut kernel = load(LoadOptions::new(LinkLayer::Ethernet, Mode::Observe).searches);
    for frame in syns(RETIRED[7]) {
        let counted = send(&mut kernel, Class::CookieRetired, &frame, RUNS);
        assert_eq!(counted, u64::from(RUNS));
    }
    assert_eq!(kernel.watch().searches.skipped, 0);

    for (index, frame) in syns(STRANGER).iter().enumerate() {
        let counted = send(&mut kernel, Class::CookieUnknown, frame, RUNS);
        assert_eq!(counted, u64::from(RUNS));
        let skipped = kernel.watch().searches.skipped;
        assert!(skipped > index as u64 * u64::from(RUNS) / 2, "{skipped} of {RUNS} were not searched for");
    }
    // The flood has spent the budget of its last jiffy, and of no later one.
    let [frame, ..] = syns(RETIRED[0]);
    eventually("a retired cookie is found again", || send(&mut kernel, Class::CookieRetired, &frame, 1) == 1);
    for family in Family::ALL {
        assert!(kernel.counters().syn[family.index()][Class::CookieRetired.index()][0].packets > 0);
    }
}
