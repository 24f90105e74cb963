//! A random walk: an operator does one thing after the other, in any order, while clients connect. After each step, what is in the
//! kernel is what is desired, protections act as configured, no connection is lost, and every SYN is counted once.
//!
//! The model is in `tfo_tests::walk`. `PROPTEST_RNG_SEED` repeats a walk, as far as timing lets it.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use nix::{mount::umount, sys::signal::Signal};
use serde_json::Value;
use tfo_common::{
    class::Class,
    cookie,
    counters::{Counters, Guarded},
    policy::Guard,
    segment::Family,
    verdict::Verdict,
};
use tfo_tests::{
    config::Config,
    guards::Setting,
    netns::{
        BPFFS, IFACE, Running, StopOnDrop, assert_clean, binary, eventually, failure, ip, is_idle, key,
        linked, mount_on, server_and_client, status, tfo, xdp_on,
    },
    packet::{Carry as _, Ip, Tcp, eth_between},
    random::{is_long, seed},
    server::Server,
    walk::{BURST, Bad, Desired, Link, Model, PORTS, Step},
    wire::Wire,
};
use tfo_userspace::{
    dataplane::{Pinned, pins::Bpffs},
    kernel::{clock::jiffies_per_second, sysctl::KeySysctl, tcp_ext::TcpExt},
    lab::{
        client::fast_open,
        net::{Namespace, server, source},
        server::listen,
    },
    model::{
        guards::Hidden,
        keys::{addresses, fingerprint},
        services::{OTHER_NAME, REMOVED_NAME},
    },
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// The client's end of the first veth pair.
const CLIENT: &str = "tfo-client";
/// The second interface, which comes and goes, its name at other times, and its other end.
const SECOND: &str = "second";
const RENAMED: &str = "renamed";
const FAR: &str = "far";
const INTERFACES: [&str; 2] = [IFACE, SECOND];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

#[test]
fn a_random_walk() {
    let steps = if is_long() { 500 } else { 24 };
    let seed = seed(&format!("{steps} random steps"));
    let mut rng = Rng::with_seed(seed);
    server_and_client(|client| {
        let off = || Ok(Command::new("ethtool").args(["-K", CLIENT, "tx", "off"]).output()?.status.success());
        assert!(client.run(off).unwrap(), "checksums as on a wire");
        make_second();
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let _servers: Vec<_> = Family::ALL
            .iter()
            .flat_map(|family| PORTS.map(|port| SocketAddr::new(server(*family).ip(), port)))
            .map(|address| Server::echo(listen(address).unwrap()))
            .collect();
        let traffic = Traffic::default();
        thread::scope(|scope| {
            scope.spawn(|| traffic.go(&client));
            let _stop = StopOnDrop(&traffic.stop);
            let mut walk = Walk::new(&client, &traffic, &mut rng);
            let start = Instant::now();
            for number in 1..=steps {
                walk.make_step(number, seed);
            }
            println!(
                "walk: {steps} steps in {:.1?}; {} connections, {} SYNs of probes, {} reloads refused; {:?}",
                start.elapsed(),
                traffic.done.load(Ordering::Relaxed),
                walk.probed[0] + walk.probed[1],
                walk.refused,
                walk.kinds
            );
            walk.is_over = true;
        });
    });
}

fn make_second() {
    ip(&format!("link add {SECOND} address 02:00:00:00:00:01 type veth peer name {FAR}"));
    ip(&format!("link set {SECOND} up"));
    ip(&format!("link set {FAR} up"));
}

/// Whether `interface` carries packets.
fn is_up(interface: &str) -> bool {
    let output = Command::new("ip").args(["-o", "link", "show", "dev", interface]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains(" state UP ")
}

/// Clients that connect all the time, but while it is held up.
#[derive(Default)]
struct Traffic {
    stop: AtomicBool,
    held_up: RwLock<()>,
    done: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Traffic {
    fn go(&self, client: &Namespace) {
        let ends: Vec<(IpAddr, SocketAddr)> = PORTS
            .iter()
            .flat_map(|port| Family::ALL.iter().map(move |family| (*family, *port)))
            .flat_map(|(family, port)| {
                [1, 40_000].map(|from| (source(family, from), SocketAddr::new(server(family).ip(), port)))
            })
            .collect();
        let connect = || {
            for (from, to) in ends.iter().cycle().take_while(|_| !self.stop.load(Ordering::Relaxed)) {
                let going = self.held_up.read().unwrap_or_else(PoisonError::into_inner);
                fast_open(*from, *to, DATA)?;
                self.done.fetch_add(1, Ordering::Relaxed);
                drop(going);
                // The test is about what an operator does, and has to get its turn.
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        };
        if let Err(error) = client.run(connect) {
            *self.failure.lock().unwrap() = Some(format!("{error:#}"));
        }
    }
}

/// A source that has sent SYNs, and what must be remembered of it.
#[derive(Clone)]
struct Visitor {
    /// To which service, and port.
    to: (String, u16),
    family: Family,
    from: IpAddr,
    /// Next source port.
    port: u16,
    /// Number of good cookies under `fair`, and of forged ones under `shed`.
    spent: [u32; 2],
    /// The key of its first cookie, the SYN that had it, and whether that must be known to `once`.
    first: Option<(u32, Vec<u8>)>,
    is_remembered: bool,
}

struct Walk<'a> {
    client: &'a Namespace,
    traffic: &'a Traffic,
    rng: &'a mut Rng,
    model: Model,
    file: Config,
    running: Option<Running>,
    history: Vec<String>,
    kinds: BTreeMap<String, u32>,
    seed: u64,
    is_over: bool,
    client_wire: Wire,
    /// SYNs of probes that either program has seen.
    probed: [u64; 2],
    /// SYNs that were sent and not counted, and connections accepted and not counted: while there was no program.
    missed: Option<[i128; 2]>,
    /// How the second program's count and that of the frames to it differ.
    second_base: Option<i128>,
    last: [Vec<u64>; 2],
    visitors: Vec<Visitor>,
    /// Reloads that were refused since an interface came or went.
    refused: u32,
    /// The kernel's ids of the links.
    links: [Option<u32>; 2],
    hz: u64,
}

impl<'a> Walk<'a> {
    fn new(client: &'a Namespace, traffic: &'a Traffic, rng: &'a mut Rng) -> Self {
        let model = Model::new(rng);
        Self {
            client,
            traffic,
            rng,
            model,
            file: Config::of_several(&INTERFACES, ""),
            running: None,
            history: Vec::new(),
            kinds: BTreeMap::new(),
            seed: 0,
            is_over: false,
            client_wire: client.run(|| Ok(Wire::blind(CLIENT))).unwrap(),
            probed: [0; 2],
            missed: None,
            second_base: None,
            last: Default::default(),
            visitors: Vec::new(),
            refused: 0,
            links: [None; 2],
            hz: jiffies_per_second().unwrap(),
        }
    }

    fn make_step(&mut self, number: usize, seed: u64) {
        self.seed = seed;
        let step = self.model.draw(self.rng);
        let text = format!("{step:?}");
        let kind: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
        *self.kinds.entry(kind).or_default() += 1;
        self.history.push(format!("{number}: {text}"));
        let is_done = self.carry_out(&step);
        self.model.made(&step, is_done);
        if self.model.in_force[0].is_none() {
            self.visitors.clear();
            (self.missed, self.second_base, self.last) = (None, None, Default::default());
            self.links = [None; 2];
        }
        if let Step::KillInReload { desired, .. } | Step::KillInStart { desired, .. } = &step {
            // Where a service may have come and gone, what was remembered for it may have, too.
            self.visitors.retain(|visitor| visitor.is_to(desired));
        }
        if self.model.link == Link::Gone || step.makes_anew() {
            self.links[1] = None;
        }
        self.check();
        if let Some(failure) = &*self.traffic.failure.lock().unwrap() {
            panic!("a connection was lost: {failure}");
        }
    }

    fn write(&self, desired: &Desired) {
        self.file.write(&desired.text());
    }

    /// Makes a step; whether a reload or a start in it succeeded.
    fn carry_out(&mut self, step: &Step) -> bool {
        let running = || self.running.as_ref().unwrap();
        match step {
            Step::Reload { by_signal, desired } => {
                self.write(desired);
                if *by_signal {
                    running().signal(Signal::SIGHUP);
                } else {
                    must(&["reload"], 0);
                }
            }
            Step::BadReload(bad) => {
                let good = self.model.desired.text();
                match bad {
                    Bad::Form => self.file.write("[[service]"),
                    Bad::Value => {
                        self.file.write(&format!("{good}\n[[service]]\nname = \"bad\"\nports = [0]\n"))
                    }
                    Bad::Fixed => self.file.write(&format!("attach = \"generic\"\n{good}")),
                    Bad::Missing => fs::remove_file(self.file.path()).unwrap(),
                }
                must(&["reload"], 1);
                self.file.write(&good);
            }
            Step::Stop => drop(self.running.take().unwrap().end(Signal::SIGTERM)),
            Step::Interrupt => drop(self.running.take().unwrap().end(Signal::SIGINT)),
            Step::Unload => {
                must(&["unload"], 0);
                // It sees that nothing is left to it.
                if let Some(mut running) = self.running.take() {
                    running.wait();
                }
            }
            Step::Kill => self.running.take().unwrap().kill(),
            Step::Reboot => {
                if let Some(running) = self.running.take() {
                    running.kill();
                }
                umount(BPFFS).unwrap();
                mount_on("bpf", BPFFS);
                let there = [Some(IFACE), (self.model.link != Link::Gone).then_some(self.second())];
                eventually("programs are gone with their links", || {
                    there.into_iter().flatten().all(|interface| xdp_on(interface).is_none())
                });
            }
            Step::KillInReload { desired, by, after_ms } => {
                self.write(desired);
                running().signal(Signal::SIGHUP);
                // Anywhere in it, or behind it.
                thread::sleep(Duration::from_millis(*after_ms));
                let is_orderly = self.running.take().unwrap().end_anyhow(*by);
                assert_eq!(is_orderly, *by != Signal::SIGKILL);
            }
            Step::InReload { desired, after_ms, then } => {
                self.write(desired);
                let mut reload = Command::new(binary());
                let reload =
                    reload.args(["reload", "-i", IFACE]).stderr(Stdio::piped()).stdout(Stdio::null());
                let reload = reload.spawn().unwrap();
                thread::sleep(Duration::from_millis(*after_ms));
                self.carry_out(then);
                let output = reload.wait_with_output().unwrap();
                let is_reloaded = output.status.success();
                if !is_reloaded {
                    // An interface that comes or goes may keep it from all.
                    let may_fail = matches!(**then, Step::Delete | Step::Make | Step::Remake);
                    assert!(may_fail, "{then:?}: {:?}", failure(&output));
                    self.refused += 1;
                    self.history.push(format!("   refused: {:?}", failure(&output)));
                    self.write(&self.model.desired);
                }
                return is_reloaded;
            }
            Step::KillInStart { desired, by, after_ms } => {
                self.write(desired);
                let running = Running::spawn(&["--config", &self.file.path()]);
                thread::sleep(Duration::from_millis(*after_ms));
                return running.end_anyhow(*by);
            }
            Step::Start(desired) => {
                self.write(desired);
                self.running = Some(self.file.run());
            }
            Step::StartWithout | Step::SecondController => {
                must(&["run", "--config", &self.file.path()], 1);
            }
            Step::Order { on, what, only } => {
                let verb = if *on { "hide" } else { "show" };
                let mut args = match what {
                    Hidden::All => vec![verb.to_owned(), "--all".to_owned()],
                    Hidden::Service(name) => vec![verb.to_owned(), "--service".to_owned(), name.clone()],
                    Hidden::Source(net) => vec![verb.to_owned(), "--source".to_owned(), net.to_string()],
                };
                if let Some(only) = only {
                    args.extend(["-i".to_owned(), INTERFACES[*only].to_owned()]);
                }
                let mut concerned = (0..2).filter(|interface| only.is_none_or(|only| only == *interface));
                let code = i32::from(!concerned.all(|interface| self.model.obeys(interface, *on, what)));
                must(&args.iter().map(String::as_str).collect::<Vec<_>>(), code);
            }
            Step::Rotate { .. } => {
                let (current, backup) = self.model.rotated(step);
                KeySysctl::open().unwrap().write(key(current), backup.map(key)).unwrap();
            }
            Step::Down => ip(&format!("link set {SECOND} down")),
            Step::Up if self.model.link == Link::Renamed => ip(&format!("link set {RENAMED} name {SECOND}")),
            Step::Up => ip(&format!("link set {SECOND} up")),
            Step::Rename => ip(&format!("link set {SECOND} name {RENAMED}")),
            Step::Delete => ip(&format!("link del {}", self.second())),
            Step::Make => make_second(),
            Step::Remake => {
                ip(&format!("link del {SECOND}"));
                make_second();
            }
        }
        true
    }

    /// The second interface's name at the moment.
    fn second(&self) -> &'static str {
        if self.model.link == Link::Renamed { RENAMED } else { SECOND }
    }

    fn check(&mut self) {
        if self.model.in_force[0].is_none() {
            assert_clean(IFACE);
            if self.model.link != Link::Gone {
                assert_eq!(xdp_on(self.second()), None);
            }
            return;
        }
        (0..2).for_each(|interface| self.check_state(interface));
        let traffic = self.traffic;
        let _held_up = traffic.held_up.write().unwrap_or_else(PoisonError::into_inner);
        eventually("all connections are over", is_idle);
        self.check_counts();
        if self.model.is_known[0] {
            self.probe();
            self.check_counts();
        }
    }

    /// What is there is what is desired, by reading it back.
    fn check_state(&mut self, interface: usize) {
        let (model, name) = (&self.model, INTERFACES[interface]);
        let Some(is_attached) = model.is_second_attached.map(|is_attached| interface == 0 || is_attached)
        else {
            return;
        };
        let now = if interface == 0 { IFACE } else { self.second() };
        settle(&format!("{name}: attached, with a controller"), (is_attached, model.controller), || {
            let status = status(name);
            (status["attached"] == true, status["controller"] == true)
        });
        if is_attached {
            settle(&format!("{name}: what its pinned link attaches"), Some(linked(name).program), || {
                xdp_on(now)
            });
            let link = *self.links[interface].get_or_insert(linked(name).link);
            assert_eq!(linked(name).link, link, "{name}: it was detached for a while");
        } else if interface == 0 || model.link != Link::Gone {
            assert_eq!(xdp_on(now), None, "{name}");
        }
        if !model.is_known[interface] {
            return;
        }
        if let Some((current, backup)) = model.ring.held {
            let expected = (Some(fingerprint(key(current))), backup.map(key).map(fingerprint));
            settle(&format!("{name}: the keys"), expected, || {
                let keys = &status(name)["keys"];
                let text = |name: &str| keys[name].as_str().map(str::to_owned);
                (text("current"), text("backup"))
            });
        }
        settle(&format!("{name}: policies"), model.policies(interface, self.hz), || {
            let mut policies = pinned(name).policies().unwrap();
            policies.retain(|(service, _)| service != REMOVED_NAME);
            policies.sort_by(|(a, _), (b, _)| a.cmp(b));
            policies
        });
        let mode = model.in_force[interface].as_ref().unwrap().mode();
        let hidden: BTreeSet<String> = model.hidden(interface).iter().map(Hidden::to_string).collect();
        settle(&format!("{name}: mode, hidden"), (mode.name().to_owned(), hidden), || {
            let status = status(name);
            let hidden: Vec<Hidden> = serde_json::from_value(status["hidden"].clone()).unwrap();
            (status["mode"].as_str().unwrap().to_owned(), hidden.iter().map(Hidden::to_string).collect())
        });
        if model.controller {
            let output = tfo(&["hide", "--list", "--json", "-i", name]);
            let list: Value = serde_json::from_slice(&output.stdout).unwrap();
            let list: BTreeSet<Hidden> = serde_json::from_value(list["hidden"].clone()).unwrap();
            assert_eq!(list, model.orders[interface], "{name}: orders");
        }
    }

    /// Every SYN is counted once, whatever happened; no counter has fallen. Traffic must be held up.
    fn check_counts(&mut self) {
        let sent = self.traffic.done.load(Ordering::Relaxed)
            + self.client.run(retransmissions).unwrap()
            + self.probed[0];
        let [syns, accepted] = self.counted_of_first();
        let passive = TcpExt::read().unwrap().passive;
        let missed = [i128::from(sent) - i128::from(syns), i128::from(passive) - i128::from(accepted)];
        match self.missed {
            // The program was put there while clients connected.
            None => self.missed = Some(missed),
            Some([syns, accepted]) => {
                let expected = [i128::from(sent) - syns, i128::from(passive) - accepted];
                settle("SYNs and accepted connections, of which each is counted once", expected, || {
                    self.counted_of_first().map(i128::from)
                });
            }
        }
        let second = i128::from(total(&pinned(SECOND).counters().unwrap()));
        let base = *self.second_base.get_or_insert(second - i128::from(self.probed[1]));
        settle("SYNs to the second interface", base + i128::from(self.probed[1]), || {
            i128::from(total(&pinned(SECOND).counters().unwrap()))
        });
        for (name, last) in INTERFACES.iter().zip(&mut self.last) {
            let now = flat(&pinned(name).counters().unwrap());
            let fell = last.iter().zip(&now).position(|(last, now)| now < last);
            assert_eq!(fell, None, "{name}: a counter has fallen");
            *last = now;
        }
    }

    fn counted_of_first(&self) -> [u64; 2] {
        let pinned = pinned(IFACE);
        let accepted = pinned.by_service().unwrap().iter().map(|service| service.outcomes.accepted).sum();
        [total(&pinned.counters().unwrap()), accepted]
    }

    /// Sends what protections are for. Traffic must be held up.
    fn probe(&mut self) {
        // Those that came before: what is remembered of them must still be.
        for visitor in std::mem::take(&mut self.visitors) {
            if visitor.is_to(self.model.in_force[0].as_ref().unwrap()) {
                self.probe_by(0, visitor);
            }
        }
        for port in PORTS {
            let visitor = self.visitor(0, port);
            let visitor = self.probe_by(0, visitor);
            self.visitors.push(visitor);
        }
        if self.model.is_second_attached == Some(true) && matches!(self.model.link, Link::Up | Link::Renamed)
        {
            eventually("the second interface is up", || is_up(self.second()) && is_up(FAR));
            let port = PORTS[self.rng.usize(..PORTS.len())];
            let visitor = self.visitor(1, port);
            self.probe_by(1, visitor);
        }
    }

    fn visitor(&mut self, interface: usize, port: u16) -> Visitor {
        let family = Family::ALL[self.rng.usize(..2)];
        let service = self.model.in_force[interface].as_ref().unwrap().on(port);
        Visitor {
            to: (service.map_or(OTHER_NAME, |service| service.name).to_owned(), port),
            family,
            from: source(family, self.rng.u16(1024..)),
            port: self.rng.u16(1024..60_000),
            spent: [0; 2],
            first: None,
            is_remembered: false,
        }
    }

    /// A visit: what became of it by the counters, and what the kernel saw of it, must be as expected.
    fn probe_by(&mut self, interface: usize, visitor: Visitor) -> Visitor {
        let name = INTERFACES[interface];
        let before = (counts_by_service(name), TcpExt::read().unwrap());
        let far = (interface == 1).then(|| Wire::blind(FAR));
        let wire = far.as_ref().unwrap_or(&self.client_wire);
        let mut visit =
            Visit { model: &self.model, interface, wire, visitor, expected: Expected::default(), sent: 0 };
        visit.make();
        let Visit { visitor, expected, sent, .. } = visit;
        self.probed[interface] += sent;
        let what = format!("{name}, port {}, from {}: what becomes of SYNs", visitor.to.1, visitor.from);
        settle(&what, expected.counts, || {
            let mut now = counts_by_service(name);
            for (what, before) in &before.0 {
                *now.entry(what.clone()).or_default() -= before;
            }
            now.retain(|_, count| *count != 0);
            now
        });
        if interface == 0 {
            eventually("its connections are over", is_idle);
            assert_eq!(TcpExt::read().unwrap() - before.1, expected.kernel, "{what}, by the kernel (left)");
        }
        visitor
    }
}

/// SYNs of a visitor, one after the other.
struct Visit<'a> {
    model: &'a Model,
    interface: usize,
    wire: &'a Wire,
    visitor: Visitor,
    expected: Expected,
    sent: u64,
}

impl Visit<'_> {
    fn make(&mut self) {
        let Some((current, backup)) = self.model.ring.held else { unreachable!("there was a controller") };
        let earlier = self.visitor.first.clone();
        if let Some((key, frame)) = &earlier {
            self.send(self.class(*key), Some(*key), true, frame);
        }
        let request = self.visitor.syn().request().build();
        self.send(Class::CookieRequest, None, false, &request);
        let plain = self.visitor.syn().build();
        self.send(Class::PlainSyn, None, false, &plain);
        for number in 0..=BURST {
            let frame = self.visitor.with_cookie_of(current);
            let is_first = earlier.is_none() && number == 0;
            self.send(self.class(current), Some(current), is_first, &frame);
            if is_first {
                self.visitor.first = Some((current, frame));
            }
        }
        // What a controller has to confirm is not certain without one.
        if self.model.controller {
            let retired = self.model.ring.retired.first().copied();
            let others = backup.into_iter().chain(retired).chain([FORGED; BURST as usize + 1]);
            for key in others {
                let frame = self.visitor.with_cookie_of(key);
                self.send(self.class(key), Some(key), false, &frame);
            }
        }
        if let Some((key, frame)) = self.visitor.first.clone().filter(|_| self.interface == 0) {
            eventually("its connections are over", is_idle);
            self.send(self.class(key), Some(key), true, &frame);
        }
    }

    fn class(&self, key: u32) -> Class {
        self.model.ring.class(key)
    }

    /// Sends a SYN of `class`, with a cookie of `key` if it has one, and notes what must come of it. `is_first` for the one that
    /// comes again.
    fn send(&mut self, class: Class, key: Option<u32>, is_first: bool, frame: &[u8]) {
        let Self { model, interface, visitor, expected, .. } = self;
        let interface = *interface;
        let service = model.in_force[interface].as_ref().and_then(|desired| desired.on(visitor.to.1));
        let wanted = model.wanted(interface, service);
        let decided = wanted.expected(class, model.controller, |guard| match guard {
            Guard::Hide => model.is_hidden(interface, visitor.from),
            Guard::Once => is_first && visitor.is_remembered,
            Guard::Fair => visitor.spent[0] >= BURST,
            Guard::Clamp => true,
            Guard::Shed => visitor.spent[1] >= BURST,
        });
        for (guard, spent) in [Guard::Fair, Guard::Shed].into_iter().zip(&mut visitor.spent) {
            if decided.asked & 1 << guard.index() != 0 {
                *spent += 1;
            }
        }
        let mut count = |what: String| *expected.counts.entry((visitor.to.0.clone(), what)).or_default() += 1;
        count(format!("{} {} {}", visitor.family.name(), class.name(), decided.verdict.name()));
        if let Some(guard) = decided.guard {
            count(format!("{} acted", guard.name()));
        }
        for guard in Guard::ALL.iter().filter(|guard| decided.would & 1 << guard.index() != 0) {
            count(format!("{} would", guard.name()));
        }
        let arrives = interface == 0 && matches!(decided.verdict, Verdict::Pass | Verdict::Rewrite);
        let seen = if decided.verdict == Verdict::Rewrite { model.ring.translation() } else { key };
        let kernel = &mut expected.kernel;
        match seen {
            _ if !arrives => {}
            Some(key) if key == model.kernel.0 || Some(key) == model.kernel.1 => {
                kernel.passive += 1;
                kernel.passive_alt_key += u64::from(key != model.kernel.0);
                let is_set = service.is_some_and(|service| service.setting(Guard::Once) != Setting::Off);
                visitor.is_remembered |= is_first && is_set;
            }
            Some(_) => kernel.passive_fail += 1,
            None => kernel.cookie_reqd += u64::from(class == Class::CookieRequest),
        }
        self.wire.send(frame);
        self.sent += 1;
    }
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let log = self.running.take().map(Running::last_words).unwrap_or_default();
        eprintln!("PROPTEST_RNG_SEED={}; in step {}:", self.seed, self.history.len());
        self.history.iter().for_each(|step| eprintln!("  {step}"));
        eprintln!("what the controller logged:\n{log}\n{:#?}", self.model);
    }
}

/// A key that the kernel never has.
const FORGED: u32 = u32::MAX;

impl Visitor {
    /// A SYN from its next port.
    fn syn(&mut self) -> Tcp {
        self.port += 1;
        let link = eth_between(CLIENT_MAC, SERVER_MAC);
        let ip: Ip = match (self.from, server(self.family).ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from, to).into(),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from, to).into(),
            _ => unreachable!("both are of one family"),
        };
        ip.syn().ports(self.port, self.to.1).mss(1460)
    }

    /// Whether it visits a service of `desired`, which has had its port all the time.
    fn is_to(&self, desired: &Desired) -> bool {
        desired.on(self.to.1).map_or(OTHER_NAME, |service| service.name) == self.to.0
    }

    fn with_cookie_of(&mut self, number: u32) -> Vec<u8> {
        let addresses = addresses(self.from, server(self.family).ip()).unwrap();
        let cookie = cookie::make(&key(number), &addresses).to_le_bytes();
        self.syn().fast_open(&cookie).data(b"data").build()
    }
}

/// What is to come of a visit: by service, and class and verdict, or guard.
#[derive(Default)]
struct Expected {
    counts: ByService,
    kernel: TcpExt,
}

type ByService = BTreeMap<(String, String), u64>;

fn counts_by_service(interface: &str) -> ByService {
    let mut all = ByService::new();
    for service in pinned(interface).by_service().unwrap() {
        let mut add =
            |what: String, count: u64| *all.entry((service.name.clone(), what)).or_default() += count;
        for family in Family::ALL {
            for class in Class::ALL {
                for verdict in Verdict::ALL {
                    let tally = service.counters.syn[family.index()][class.index()][verdict.index()];
                    add(format!("{} {} {}", family.name(), class.name(), verdict.name()), tally.packets);
                }
            }
        }
        for guard in Guard::ALL {
            let Guarded { acted, would } = service.counters.guards[guard.index()];
            add(format!("{} acted", guard.name()), acted);
            add(format!("{} would", guard.name()), would);
        }
    }
    all
}

fn pinned(interface: &str) -> Pinned {
    Pinned::open(&Bpffs::new(Path::new(BPFFS)).pins(interface)).unwrap()
}

fn total(counters: &Counters) -> u64 {
    counters.syn.as_flattened().as_flattened().iter().map(|tally| tally.packets).sum()
}

/// All that only grows.
fn flat(counters: &Counters) -> Vec<u64> {
    let syn = counters.syn.as_flattened().as_flattened().iter();
    let syn = syn.flat_map(|tally| [tally.packets, tally.with_data, tally.data_bytes]);
    let guards = counters.guards.iter().flat_map(|guarded| [guarded.acted, guarded.would]);
    syn.chain(counters.hits).chain(guards).collect()
}

/// `tfo ARGS`, which must end with `code`.
fn must(args: &[&str], code: i32) {
    let output = tfo(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {:?}", failure(&output));
}

/// Waits until `now` gives what is expected.
fn settle<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, now: impl Fn() -> T) {
    const PATIENCE: Duration = Duration::from_secs(20);
    let start = Instant::now();
    loop {
        let found = now();
        if found == expected {
            return;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{what}: not after {} s:\nexpected {expected:#?}\nfound {found:#?}",
            PATIENCE.as_secs()
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// How often a segment was sent again in the calling thread's namespace: of those here, only SYNs may be.
fn retransmissions() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut all = names.split(' ').zip(values.split(' '));
    Ok(all.find(|(name, _)| *name == "TCPSynRetrans").unwrap().1.parse()?)
}
