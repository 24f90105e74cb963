//! The real program, run on one frame by BPF_PROG_TEST_RUN (tier 2), or attached. Needs root.

use std::time::Duration;

use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp, XdpMode};
use nix::time::{ClockId, clock_gettime};
use tfo_common::{
    answer::Host, counters::Counters, keyring::KeyRing, observed::Watch, parse::LinkLayer, policy::Policy,
    service::OTHER, verdict::Mode,
};
use tfo_userspace::{
    dataplane::{LoadOptions, Object, ServiceCounters, SharedMaps},
    model::{
        guards::{Hidden, Orders, SpecialPorts},
        keys::PortKeys,
        services::Services,
    },
};

use crate::packet::ETHERNET;

/// Return value of the program for a frame that it drops, and for any other.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// Return value of the program on packets that leave.
const TCX_NEXT: u32 = u32::MAX;

/// Returns whether the kernel accepts `frame` for a test run. The frame must hold an Ethernet header, whatever the
/// program expects, and fit into a page less the kernel's own needs (`bpf_prog_test_run_xdp`, net/bpf/test_run.c).
pub fn fits(frame: &[u8]) -> bool {
    // For a program at tcx, the IP header must be whole (`bpf_prog_test_run_skb`).
    let least = match frame.get(12..14) {
        _ if std::env::var_os(AT_TCX).is_none() => ETHERNET,
        Some([0x08, 0x00]) => ETHERNET + 20,
        Some([0x86, 0xdd]) => ETHERNET + 40,
        _ => ETHERNET + 1,
    };
    (least..=3500).contains(&frame.len())
}

/// Return value of the program at tcx for a packet that it drops.
const TC_ACT_SHOT: u32 = 2;

/// Environment variable that has every [`Kernel`] load the program at tcx instead of that of XDP.
pub const AT_TCX: &str = "TFO_TESTS_AT_TCX";

/// Loaded program.
pub struct Kernel(Object, LoadOptions);

impl Kernel {
    /// Loads a program with maps of its own, and publishes `ring`, confirmed for good. All keys are tried for every
    /// cookie.
    pub fn load(link: LinkLayer, mode: Mode, ring: &KeyRing) -> Self {
        let options = LoadOptions { searches: u32::MAX, ..LoadOptions::new(link, mode) };
        let mut kernel = Self::with(&options, None);
        kernel.publish(ring);
        kernel
    }

    /// Loads a program with these options, on the maps of a generation, if given. In mode `shield` it has no guards
    /// yet.
    pub fn with(options: &LoadOptions, shared: Option<SharedMaps<'_>>) -> Self {
        let tcx = options.tcx || std::env::var_os(AT_TCX).is_some();
        let options = &LoadOptions { tcx, ..*options };
        let object = Object::load(options, shared).expect("the program loads (is this root?)");
        let mut kernel = Self(object, *options);
        // Most tests have no controller, which would confirm the keys every second.
        kernel.confirm_at(u64::MAX);
        // Without a configured policy, the map's entry does not have the mode.
        if options.mode == Mode::Shield {
            kernel.set_policy(OTHER, &Policy::of_mode(options.mode));
        }
        kernel
    }

    /// Returns the program of XDP.
    pub fn program(&mut self) -> &mut Xdp {
        self.0.program().expect("the object has its program")
    }

    /// Attaches the program to `interface`, whose frames begin with `link`, until this is dropped. The mode is native,
    /// except on tun, whose driver can't.
    pub fn attach(&mut self, interface: &str, link: LinkLayer) {
        let mode = match link {
            LinkLayer::Ethernet => XdpMode::Driver,
            LinkLayer::Ip => XdpMode::Skb,
        };
        self.program()
            .attach(interface, mode)
            .unwrap_or_else(|error| panic!("{interface}, {mode:?}: {error}"));
    }

    /// Loads the program on packets that leave, which [`send`](Self::send) runs.
    pub fn egress_load(&mut self) {
        self.egress().load().expect("the program loads");
    }

    /// Returns the program on packets that leave.
    pub fn egress(&mut self) -> &mut SchedClassifier {
        self.0.egress_program().expect("the object has its program")
    }

    /// Sends `frame` through the program on packets that leave `repeat` times. Returns the final bytes.
    pub fn send(&mut self, name: &str, frame: &[u8], repeat: u32) -> Vec<u8> {
        let mut out = vec![0x55; frame.len() + 64];
        let (data_in, data_out) = (Some(frame), Some(out.as_mut_slice()));
        let options = TestRunOptions { data_in, data_out, repeat, ..TestRunOptions::new() };
        let result = self.egress().test_run(options).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(result.return_value, TCX_NEXT, "{name}");
        out.truncate(result.data_size_out as usize);
        out
    }

    /// Publishes `ring`.
    pub fn publish(&mut self, ring: &KeyRing) {
        self.0.publish(ring).expect("keys are published");
    }

    /// Confirms the keys as of `confirmed_ns`.
    pub fn confirm_at(&mut self, confirmed_ns: u64) {
        self.0.confirm_at(confirmed_ns).expect("the keys are confirmed");
    }

    /// Confirms the keys, as the controller does.
    pub fn confirm(&mut self) {
        self.0.confirm().expect("the keys are confirmed");
    }

    /// Confirms the keys as of `seconds` ago.
    pub fn confirm_ago(&mut self, seconds: u64) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
        let ago = Duration::from(now) - Duration::from_secs(seconds);
        self.confirm_at(ago.as_nanos() as u64);
    }

    /// Writes `services` into the maps.
    pub fn serve(&mut self, services: &Services) {
        self.0.serve(services).expect("the services are carried into the maps");
    }

    /// Writes `policy` as that of the service at `index`.
    pub fn set_policy(&mut self, index: u32, policy: &Policy) {
        self.0.set_policy(index, policy).expect("the policy is written");
    }

    /// Writes `hidden` as everything that is hidden by order.
    pub fn set_hidden(&mut self, hidden: &[Hidden]) {
        let hidden = hidden.iter().cloned().collect();
        self.0.set_orders(&Orders { hidden, ..Orders::default() }).expect("the order is carried out");
    }

    /// Writes `special` as the ports whose listeners are special.
    pub fn set_special(&mut self, special: SpecialPorts) {
        self.0.set_orders(&Orders { special, ..Orders::default() }).expect("the flags are written");
    }

    /// Makes `keys` the keys of the listeners on `port`, confirmed unless these differ. Call [`set_special`](Self::set_special)
    /// then.
    pub fn hold_own_keys(&mut self, keys: &PortKeys) {
        self.0.hold_own_keys("test", std::slice::from_ref(keys)).expect("keys are published");
    }

    /// Writes the facts about the host that decide on answers.
    pub fn set_host(&mut self, host: Host) {
        self.0.set_host(host).expect("the facts are written");
    }

    /// Returns the ring in force.
    pub fn key_ring(&self) -> KeyRing {
        self.0.key_ring().expect("the keys can be read")
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        self.0.counters().expect("the counters can be read")
    }

    /// Returns the state of observing.
    pub fn watch(&self) -> Watch {
        self.0.watch().expect("the state of observing can be read")
    }

    /// Returns the counters of each service.
    pub fn by_service(&self) -> Vec<ServiceCounters> {
        self.0.by_service().expect("the counters can be read")
    }

    /// Runs BPF_PROG_TEST_RUN, and returns any error.
    pub fn test_run(&mut self, options: TestRunOptions<'_>) -> Result<TestRunResult, ProgramError> {
        if self.1.tcx {
            self.0.tcx_program().expect("the object has its program").test_run(options)
        } else {
            self.program().test_run(options)
        }
    }

    /// Sends `frame` through the program `repeat` times, each time with the bytes of the last run. Panics if it is
    /// dropped. Returns the final bytes.
    pub fn run(&mut self, name: &str, frame: &[u8], repeat: u32) -> Vec<u8> {
        self.run_or_drop(name, frame, repeat).unwrap_or_else(|| panic!("{name}: it was dropped"))
    }

    /// Sends `frame` as [`run`](Self::run) does. Returns `None` if it is dropped.
    pub fn run_or_drop(&mut self, name: &str, frame: &[u8], repeat: u32) -> Option<Vec<u8>> {
        let mut out = vec![0x55; frame.len() + 64];
        let (data_in, data_out) = (Some(frame), Some(out.as_mut_slice()));
        let result = self.test_run(TestRunOptions { data_in, data_out, repeat, ..TestRunOptions::new() });
        let result = result.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let (pass, drop) = if self.1.tcx { (TCX_NEXT, TC_ACT_SHOT) } else { (XDP_PASS, XDP_DROP) };
        if result.return_value == drop {
            return None;
        }
        assert_eq!(result.return_value, pass, "{name}");
        out.truncate(result.data_size_out as usize);
        Some(out)
    }

    /// Sends `frame` as [`run`](Self::run) does. Panics if it is changed. Returns the counters afterwards.
    pub fn pass(&mut self, name: &str, frame: &[u8], repeat: u32) -> Counters {
        assert_eq!(self.run(name, frame, repeat), frame, "{name}: the packet was changed");
        self.counters()
    }
}

/// Returns the sum of two sets of counters.
pub fn sum(before: &Counters, more: &Counters) -> Counters {
    let mut sum = *before;
    sum.add(more);
    sum
}
