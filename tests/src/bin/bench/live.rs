//! `cargo xtask bench --live`: floods of SYNs that an interface receives.
//!
//! On one CPU, the yardstick `flood` makes SYNs (BPF_PROG_TEST_RUN with live frames), each of a new connection, and
//! redirects them into one end of a veth pair. The other end receives them on another CPU, in a kernel thread (threaded
//! NAPI) that does nothing else. The CPU time of that thread is measured. It includes the work of the stack, its
//! answers and the interrupts on that CPU. The answers are dropped on the first CPU.
//!
//! All SYNs are accounted for: each was either received or found the queue of the veth pair full, `tfo` has counted
//! each received SYN in its class, and the counters of the stack behind a listener add up.

mod interface;
mod report;

use std::{
    fs,
    net::TcpListener,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRunAttrs,
    maps::Array,
    programs::{TestRun as _, TestRunOptions, Xdp, XdpMode, xdp::XdpLink},
};
use nix::unistd::Pid;
use tfo_common::{
    class::Class,
    counters::Counters,
    limit::Limit,
    policy::{Guard, Policy},
    verdict::{Mode, Verdict},
};
use tfo_tests::{
    cases::SERVER_V4,
    kernel::Kernel,
    keys::{BACKUP, CURRENT, RETIRED, STRANGER, TestKey},
    netns::{PATIENCE, ip, mount_on, sandbox},
    packet::{Carry as _, eth_between},
    tap::Tap,
};
use tfo_userspace::{
    kernel::sysctl::{KeySysctl, SERVER, write_mode},
    lab::server::listen,
};

use self::interface::Interface;
pub(crate) use self::report::Report;
use crate::{
    measure::{Plan, allowed_cpus, attach, load, pin, program},
    scenarios::{ALL_KEYS, DATA, Setup},
};

/// Kind of SYNs that are sent.
struct Flood {
    name: &'static str,
    /// Index in [`FLOODS`].
    number: u8,
    /// Keys that make the cookies, in turn, each with the class of its cookies.
    keys: &'static [(TestKey, Class)],
}

const FLOODS: [Flood; 4] = [
    Flood { name: "valid", number: 0, keys: &[(CURRENT, Class::CookieCurrent)] },
    Flood { name: "forged", number: 1, keys: &[(STRANGER, Class::CookieUnknown)] },
    Flood {
        name: "mixed",
        number: 2,
        keys: &[(CURRENT, Class::CookieCurrent), (STRANGER, Class::CookieUnknown)],
    },
    Flood { name: "retired", number: 3, keys: &[(RETIRED[0], Class::CookieRetired)] },
];

/// Path of a received SYN.
struct Route {
    name: &'static str,
    program: Program,
    behind: Behind,
}

/// Receiver of the SYNs that the program passes.
#[derive(Clone, Copy, PartialEq)]
enum Behind {
    /// `ip_rcv`, which drops them, since they are for another host.
    Nothing,
    /// A listener with Fast Open whose queues hold all SYNs.
    Listener,
    /// A listener that answers with SYN cookies, as it does once its queue is full (tcp_syn_flood_action).
    SynCookies,
}

#[derive(Clone, Copy, PartialEq)]
enum Program {
    Yardstick(&'static str),
    Observe,
    Accelerate,
    /// Mode `shield` with `shed`, which drops all unknown cookies but the first.
    Shed,
}

const DROP: Program = Program::Yardstick("drop");
const PARSE_DROP: Program = Program::Yardstick("parse_drop");
const HASH_DROP: Program = Program::Yardstick("parse_hash_drop");
const PASS: Program = Program::Yardstick("pass");
const OBSERVE: Program = Program::Observe;
const ACCELERATE: Program = Program::Accelerate;
const SHED: Program = Program::Shed;

/// Routes that are measured. Those without tfo have a program, too: without one, a veth interface takes no redirected
/// frames.
const ROUTES: [Route; 11] = [
    Route { name: "XDP_DROP", program: DROP, behind: Behind::Nothing },
    Route { name: "parsed, XDP_DROP", program: PARSE_DROP, behind: Behind::Nothing },
    Route { name: "parsed, two hashes, XDP_DROP", program: HASH_DROP, behind: Behind::Nothing },
    Route { name: "XDP_PASS, then dropped", program: PASS, behind: Behind::Nothing },
    Route { name: "tfo observe, then dropped", program: OBSERVE, behind: Behind::Nothing },
    Route { name: "tfo accelerate, then dropped", program: ACCELERATE, behind: Behind::Nothing },
    Route { name: "XDP_PASS, then the stack", program: PASS, behind: Behind::Listener },
    Route { name: "tfo observe, then the stack", program: OBSERVE, behind: Behind::Listener },
    Route { name: "tfo accelerate, then the stack", program: ACCELERATE, behind: Behind::Listener },
    Route { name: "tfo shedding, then the stack", program: SHED, behind: Behind::Listener },
    Route { name: "XDP_PASS, then SYN cookies", program: PASS, behind: Behind::SynCookies },
];

/// Counters of TcpExt with their meaning. Each SYN that reaches a listener moves one of them (`tcp_conn_request`,
/// `tcp_try_fastopen`).
const STACK: [(&str, &str); 5] = [
    ("TCPFastOpenPassive", "accepted"),
    ("TCPFastOpenPassiveFail", "refused"),
    ("TCPFastOpenListenOverflow", "queue full"),
    ("TCPReqQFullDoCookies", "SYN cookie"),
    ("ListenOverflows", "dropped"),
];

/// Flood on a route, with its samples.
struct Measured {
    flood: &'static Flood,
    route: &'static Route,
    samples: Vec<Sample>,
}

struct Sample {
    sent: u64,
    /// Time until all SYNs were sent, and until all were received.
    sending: Duration,
    receiving: Duration,
    /// Number of SYNs that were received.
    received: u64,
    /// CPU time of the receiving thread.
    cpu: Duration,
    /// Increase of the counters of [`STACK`].
    stack: [u64; STACK.len()],
}

impl Route {
    /// Whether the difference to `other` is tfo's own work alone. In front of the stack, tfo may change the stack's
    /// work.
    fn is_beyond(&self, other: &Self) -> bool {
        matches!(self.program, Program::Observe | Program::Accelerate | Program::Shed)
            && other.program == PASS
            && [self, other].iter().all(|it| it.behind == Behind::Nothing)
    }
}

impl Sample {
    /// Returns the CPU time for each received SYN, in nanoseconds.
    fn cpu_ns(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.received as f64
    }
}

/// Measures the floods and routes whose names contain `filter`.
pub(crate) fn run(yardsticks: &Path, filter: &str, plan: &Plan) -> Result<Report> {
    let object = fs::read(yardsticks).with_context(|| format!("cannot read {}", yardsticks.display()))?;
    let mut measured = Vec::new();
    for flood in &FLOODS {
        measured.extend(ROUTES.iter().map(|route| Measured { flood, route, samples: Vec::new() }));
    }
    measured.retain(|row| row.name().contains(filter));
    ensure!(!measured.is_empty(), "no flood has {filter:?} in its name");
    let mut done = Ok(());
    sandbox(|| done = Wire::new(&object).and_then(|mut wire| wire.run(plan, &mut measured)));
    done?;
    Report::new(plan, &measured)
}

impl Measured {
    fn name(&self) -> String {
        format!("{}: {}", self.flood.name, self.route.name)
    }
}

/// The veth pair with all programs.
struct Wire {
    yardsticks: Ebpf,
    observe: Kernel,
    accelerate: Kernel,
    shed: Kernel,
    /// Programs that send, by the index in [`FLOODS`].
    floods: Vec<Ebpf>,
    receiver: Interface,
    /// Link of the program on the receiving end.
    link: Option<XdpLink>,
    _interfaces: Vec<Tap>,
}

/// MAC addresses of the receiving end, of the sending end, and of another host on the same wire.
const RECEIVER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ANOTHER: [u8; 6] = [2, 0, 0, 0, 0, 3];
const PORT: u16 = 80;
/// Number of frames that are made at a time: half of the veth pair's queue (VETH_RING_SIZE).
const BATCH: u32 = 128;

impl Wire {
    /// Makes the pair in the calling thread's namespaces, which must be empty.
    fn new(object: &[u8]) -> Result<Self> {
        let cpus = allowed_cpus()?;
        let [here, .., there] = cpus[..] else {
            bail!("floods need two CPUs, one that sends and one that receives")
        };
        pin(Pid::from_raw(0), here)?;
        // The sysfs of this namespace has the interfaces that were made here.
        mount_on("sysfs", "/sys");
        // The receiver gets nothing but the flood, and the listener's queues hold all of it.
        sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        sysctl("core/somaxconn", "65535")?;
        // The receiving threads are named after the interfaces and visible from every namespace.
        let id = std::process::id();
        let (sender, receiver) = (format!("send{id}"), format!("recv{id}"));
        ip(&format!("link add {sender} type veth peer name {receiver}"));
        for (name, [.., last]) in [(&sender, SENDER), (&receiver, RECEIVER)] {
            ip(&format!("link set {name} address 02:00:00:00:00:{last:02x} up"));
        }
        let gateway = "192.168.0.2";
        ip(&format!("addr add {SERVER_V4}/24 dev {receiver}"));
        ip(&format!("neigh add {gateway} lladdr 02:00:00:00:00:01 dev {receiver}"));
        ip(&format!("route add default via {gateway} dev {receiver}"));
        write_mode(SERVER)?;
        KeySysctl::open()?.write(CURRENT.key(), Some(BACKUP.key()))?;

        let mut yardsticks = Ebpf::load(object)?;
        for name in ["drop", "parse_drop", "parse_hash_drop", "pass"] {
            load(&mut yardsticks, name)?;
        }
        let drop = program(&mut yardsticks, "drop")?;
        drop.attach(&sender, XdpMode::Driver).with_context(|| format!("cannot attach to {sender}"))?;
        let link = drop.attach(&receiver, XdpMode::Driver);
        let link = link.with_context(|| format!("cannot attach to {receiver}"))?;
        let link = Some(drop.take_link(link)?);
        // The answers cost CPU time on the sender's CPU, which is not measured.
        Interface::new(&sender, here)?;
        let receiver = Interface::new(&receiver, there)?;

        let index = fs::read_to_string(format!("/sys/class/net/{sender}/ifindex"))?.trim().parse()?;
        let mut interfaces = Vec::new();
        let floods = FLOODS.iter().map(|flood| {
            let mut object = flood.load(object, index)?;
            attach(program(&mut object, "flood")?, &mut interfaces)?;
            Ok(object)
        });
        let floods = floods.collect::<Result<_>>()?;
        let tfo = |mode| Setup { mode, ..ALL_KEYS }.load();
        let (observe, accelerate) = (tfo(Mode::Observe), tfo(Mode::Accelerate));
        let flags = Policy::DROPS | Policy::SHEDS_ALL;
        let none = Policy { flags, shed: Limit::new(1, 1 << 40, 1), ..Policy::of_mode(Mode::Observe) };
        let shed = Setup { mode: Mode::Shield, policy: none.with(Guard::Shed, true), ..ALL_KEYS }.load();
        Ok(Self { yardsticks, observe, accelerate, shed, floods, receiver, link, _interfaces: interfaces })
    }

    /// Measures each once per round.
    fn run(&mut self, plan: &Plan, measured: &mut [Measured]) -> Result<()> {
        for round in 1..=plan.rounds {
            eprint!("\rround {round} of {} ", plan.rounds);
            for row in &mut *measured {
                let sample = self.sample(row.flood, row.route, plan.repeat);
                row.samples.push(sample.with_context(|| row.name())?);
            }
        }
        eprintln!();
        Ok(())
    }

    fn sample(&mut self, flood: &Flood, route: &Route, repeat: u32) -> Result<Sample> {
        self.receive_by(route.program)?;
        // The listener is new each time, since earlier floods have left connections in its queues.
        let listener = match route.behind {
            Behind::Nothing => None,
            Behind::Listener => Some(listener("1")?),
            Behind::SynCookies => Some(listener("2")?),
        };
        let frame = flood.frame(0, if listener.is_some() { RECEIVER } else { ANOTHER });

        let (count, stack) = (self.counters(route.program), stack()?);
        let (arrived, lost) = self.receiver.packets()?;
        let cpu = self.receiver.cpu_time()?;

        let sent = u64::from(repeat);
        let start = Instant::now();
        let sender = program(&mut self.floods[usize::from(flood.number)], "flood")?;
        let attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        sender
            .test_run(TestRunOptions { data_in: Some(&frame), repeat, attrs, ..TestRunOptions::new() })
            .context("cannot send: BPF_PROG_TEST_RUN has live frames since Linux 5.18")?;
        let sending = start.elapsed();
        let mut received = 0;
        eventually("not every SYN is received or lost", || {
            let now = self.receiver.packets()?;
            received = now.0 - arrived;
            Ok(received + (now.1 - lost) == sent)
        })?;
        let receiving = start.elapsed();
        // All received SYNs have been processed when the thread sleeps.
        eventually("the receiving thread does not come to rest", || self.receiver.is_asleep())?;
        let cpu = self.receiver.cpu_time()? - cpu;

        ensure!(received > 0, "none of {sent} SYNs was received");
        let mut dropped = 0;
        if let (Some(before), Some(after)) = (count, self.counters(route.program)) {
            flood.check(&before, &after, received, route.program)?;
            let drops = |counters: &Counters| counters.verdict(Class::CookieUnknown, Verdict::Drop);
            dropped = drops(&after) - drops(&before);
        }
        let mut sample = Sample { sent, sending, receiving, received, cpu, stack: self::stack()? };
        for (count, before) in sample.stack.iter_mut().zip(stack) {
            *count -= before;
        }
        let expected = if listener.is_some() { received - dropped } else { 0 };
        ensure!(
            sample.stack.iter().sum::<u64>() == expected,
            "of {received} SYNs, the stack was to see {expected}, but accounts for {:?}",
            sample.stack
        );
        drop(listener);
        Ok(sample)
    }

    /// Replaces the program on the receiving end. The link stays, and with it the receiving thread.
    fn receive_by(&mut self, program: Program) -> Result<()> {
        let link = self.link.take().context("no program receives")?;
        let program = self.program(program)?;
        let id = program.attach_to_link(link).context("cannot change the program that receives")?;
        let link = program.take_link(id)?;
        self.link = Some(link);
        Ok(())
    }

    fn program(&mut self, which: Program) -> Result<&mut Xdp> {
        match which {
            Program::Yardstick(name) => program(&mut self.yardsticks, name),
            Program::Observe => Ok(self.observe.program()),
            Program::Accelerate => Ok(self.accelerate.program()),
            Program::Shed => Ok(self.shed.program()),
        }
    }

    fn counters(&self, program: Program) -> Option<Counters> {
        match program {
            Program::Yardstick(_) => None,
            Program::Observe => Some(self.observe.counters()),
            Program::Accelerate => Some(self.accelerate.counters()),
            Program::Shed => Some(self.shed.counters()),
        }
    }
}

impl Flood {
    /// Loads the program that sends this flood to the interface with `index`.
    fn load(&self, object: &[u8], index: u32) -> Result<Ebpf> {
        let mut loader = EbpfLoader::new();
        loader.override_global("INTERFACE", &index, true);
        loader.override_global("COOKIE_AT", &(COOKIE_AT as u32), true);
        let mut object = loader.load(object)?;
        let map = object.map_mut("VARIANTS").context("the yardsticks have no map VARIANTS")?;
        let mut variants = Array::<_, [u64; 2]>::try_from(map)?;
        for client in 0..=u16::MAX {
            let frame = self.frame(client, RECEIVER);
            // Offsets: the source address, and the checksums of IPv4 and TCP.
            let fields = [&frame[26..30], &frame[24..26], &frame[50..52]].concat();
            let words = [&fields[..], &frame[COOKIE_AT..COOKIE_AT + 8]]
                .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
            variants.set(u32::from(client), words, 0)?;
        }
        load(&mut object, "flood")?;
        Ok(object)
    }

    /// Returns the SYN of a Linux client with a cookie and data, from port 0. No two floods share clients.
    fn frame(&self, client: u16, to: [u8; 6]) -> Vec<u8> {
        let [high, low] = client.to_be_bytes();
        let (key, _) = self.keys[usize::from(client) % self.keys.len()];
        let syn = eth_between(SENDER, to).ipv4([10, self.number, high, low].into(), SERVER_V4).syn();
        syn.ports(0, PORT).linux_options().cookie_of(key).nops(2).data(DATA).build()
    }

    /// Checks that `tfo` has counted each received SYN, and nothing else.
    fn check(&self, before: &Counters, after: &Counters, received: u64, program: Program) -> Result<()> {
        let count = |counters: &Counters| {
            let ours = self.keys.iter().map(|(_, class)| counters.class(*class).packets).sum::<u64>();
            let syns = Class::ALL.iter().map(|class| counters.class(*class).packets).sum::<u64>();
            let rewritten = counters.verdict(Class::CookieRetired, Verdict::Rewrite);
            [ours, syns + counters.malformed_total() + counters.unsupported_total(), rewritten]
        };
        let [before, after] = [before, after].map(count);
        let counted: Vec<_> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        let is_rewritten = program == ACCELERATE && self.keys[0].1 == Class::CookieRetired;
        ensure!(
            counted == [received, received, if is_rewritten { received } else { 0 }],
            "of {received} SYNs, tfo has counted {} in their classes, {} in all and {} as rewritten",
            counted[0],
            counted[1],
            counted[2]
        );
        Ok(())
    }
}

/// Offset of the cookie in the frame.
const COOKIE_AT: usize = 76;

/// Makes a listener with Fast Open, and sets `net.ipv4.tcp_syncookies` to `syn_cookies`: 1 if a queue is full, 2
/// always.
fn listener(syn_cookies: &str) -> Result<TcpListener> {
    sysctl("ipv4/tcp_syncookies", syn_cookies)?;
    listen((SERVER_V4, PORT).into())
}

fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).with_context(|| format!("cannot write {path}"))
}

/// Reads the counters of [`STACK`] in this namespace.
fn stack() -> Result<[u64; STACK.len()]> {
    let path = "/proc/thread-self/net/netstat";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = lines.next().zip(lines.next()).with_context(|| format!("{path} has no TcpExt"))?;
    let mut counters = [0; STACK.len()];
    for ((name, _), counter) in STACK.iter().zip(&mut counters) {
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, value) = pairs.find(|(it, _)| it == name).with_context(|| format!("{path} has no {name}"))?;
        *counter = value.parse()?;
    }
    Ok(counters)
}

/// Waits until `holds`, without sleeping, since the time is measured.
fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        if start.elapsed() > PATIENCE {
            return Err(anyhow!("{what}: {} s have passed", PATIENCE.as_secs()));
        }
        thread::yield_now();
    }
    Ok(())
}
