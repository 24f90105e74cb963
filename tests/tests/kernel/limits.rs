//! Rate limits under a flood that arrives on two CPUs at once: the real program, run by BPF_PROG_TEST_RUN on both. Needs
//! root and two CPUs.

use std::{sync::Barrier, thread, time::Duration};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use tfo_common::{
    limit::Limit,
    parse::LinkLayer,
    policy::{Guard, Policy},
    segment::Family,
    service::OTHER,
    table::SourceMask,
    verdict::Mode,
};
use tfo_tests::{
    cases::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6},
    kernel::Kernel,
    keys::{self, CURRENT, STRANGER, TestKey},
    netns::{BPFFS, sandbox},
    packet::{Carry as _, Ip, eth},
};
use tfo_userspace::dataplane::{
    LoadOptions, SharedMaps,
    pins::{Bpffs, MAPS},
};

/// Number of runs on one frame, on each CPU.
const RUNS: u32 = 2_000_000;
/// Number of SYNs that the limit grants at once. There are enough for both CPUs to spend for half the time.
const BURST: u64 = 2_000_000;

/// Returns two CPUs that this process may use.
fn two_cpus() -> [usize; 2] {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("a set of CPUs");
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true));
    [(); 2].map(|()| cpus.next().expect("this test needs two CPUs"))
}

/// Sends `frame` on `cpu` as fast as possible, once the other CPU is at it, too.
fn flood(kernel: &mut Kernel, cpu: usize, frame: &[u8], begin: &Barrier) {
    let mut one = CpuSet::new();
    one.set(cpu).expect("a valid CPU");
    sched_setaffinity(Pid::from_raw(0), &one).expect("an allowed CPU");
    begin.wait();
    assert_eq!(kernel.run("a flood", frame, RUNS), frame, "a dry run changes nothing");
}

/// Floods from two CPUs under `policy`, whose limits all grant [`BURST`] SYNs and no more for years, with a cookie of `key`.
/// Panics if more or fewer are granted. Without an atomic addition it was up to 1.5 % more.
///
/// The guard is a dry run. Otherwise the frames of a run would not be the same: an option stays hidden.
fn assert_within(name: &str, guard: Guard, flags: u64, key: TestKey, families: &[Family]) {
    sandbox(|| {
        let pins = Bpffs::new(BPFFS.as_ref()).pins("limits");
        let lock = pins.lock(Duration::ZERO).expect("nobody else is here");
        let generation = lock.next_generation().expect("a folder");
        let shared = SharedMaps { generation: &generation, maps: &MAPS };
        let (none, limit) = (Policy::of_mode(Mode::Shield), Limit::new(1, 1 << 20, BURST));
        let policy = Policy {
            fair: limit,
            fair_source: SourceMask::new(32, 64),
            shed: limit,
            shed_per_source: limit,
            shed_source: SourceMask::new(32, 64),
            flags: none.flags | Policy::SHEDS_OTHERS | flags,
            ..none
        };
        let options = LoadOptions::new(LinkLayer::Ethernet, Mode::Shield);
        let mut kernels = [(); 2].map(|()| {
            let mut kernel = Kernel::with(&options, Some(shared));
            kernel.publish(&keys::ring());
            kernel.set_policy(OTHER, &policy.with(guard, false));
            kernel
        });
        let ips: [Ip; 2] = [eth().ipv4(CLIENT_V4, SERVER_V4).into(), eth().ipv6(CLIENT_V6, SERVER_V6).into()];
        for (family, ip) in families.iter().zip(ips) {
            // Each CPU has another port, as a queue of its own would have.
            let frames = [1, 2].map(|port| {
                let syn = ip.clone().syn().ports(port, 80).linux_options().cookie_of(key).nops(2);
                syn.data(b"GET / HTTP/1.1\r\n\r\n").build()
            });
            let denied = |kernel: &Kernel| kernel.counters().guards[guard.index()].would;
            let (before, begin) = (denied(&kernels[0]), &Barrier::new(2));
            thread::scope(|scope| {
                for ((kernel, cpu), frame) in kernels.iter_mut().zip(two_cpus()).zip(&frames) {
                    scope.spawn(move || flood(kernel, cpu, frame, begin));
                }
            });
            let granted = 2 * u64::from(RUNS) - (denied(&kernels[0]) - before);
            let excess = 100.0 * (granted as f64 / BURST as f64 - 1.0);
            println!("{name}, {family}: {granted} of {BURST} granted, {excess:+.4} %");
            // At the very beginning, both may take the share for an unused one.
            assert!((BURST..=BURST + 2).contains(&granted), "{name}: {granted} of {BURST} granted");
        }
    });
}

/// The limits of `fair` and `shed` hold over two CPUs that spend at once.
#[test]
fn limits_hold_over_two_cpus() {
    assert_within("fair", Guard::Fair, 0, CURRENT, Family::ALL);
    assert_within("shed, per source", Guard::Shed, Policy::SHEDS_SOURCES, STRANGER, Family::ALL);
    // All sources share this limit, and one flood uses it up.
    assert_within("shed", Guard::Shed, Policy::SHEDS_ALL, STRANGER, &[Family::Ipv4]);
}
