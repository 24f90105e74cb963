//! Random walk of an operator, with any steps in any order, while clients connect. After each step the kernel's state
//! is the desired one, protections act as configured, no connection is lost, and every SYN is counted once.
//!
//! The model is in `tfo_tests::walk`. `PROPTEST_RNG_SEED` repeats a walk, as far as timing allows.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use nix::{mount::umount, sys::signal::Signal};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tfo_common::{counters::Counters, segment::Family};
use tfo_tests::{
    config::Config,
    layout_0_1::downgrade_pins,
    netns::{
        BPFFS, IFACE, Running, StopOnDrop, binary, eventually, failure, has_no_connections, ip, key, linked,
        mount_on, server_and_client, status, tfo, xdp_on,
    },
    random::{is_long, seed},
    server::Server,
    walk::{
        Deck, Desired, FileFault, INTERFACES, Keys, Link, Model, PORTS, RENAMED, SECOND, Step, Topology,
        Visit, Visitor, counts_by_service,
    },
};
use tfo_userspace::{
    dataplane::{Pinned, pins::Bpffs},
    kernel::{clock::jiffies_per_second, sysctl::KeySysctl, tcp_ext::TcpExt},
    lab::{
        client::fast_open,
        net::{Namespace, server, source},
        server::listen,
    },
    model::{guards::Hidden, keys::fingerprint, services::REMOVED_NAME},
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
#[test]
fn a_random_walk() {
    let steps = if is_long() { 500 } else { 24 };
    let seed = seed(&format!("{steps} random steps"));
    let mut rng = Rng::with_seed(seed);
    server_and_client(|client| {
        let topology = Topology::new(&client);
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let _servers: Vec<_> = Family::ALL
            .iter()
            .flat_map(|family| PORTS.map(|port| SocketAddr::new(server(*family).ip(), port)))
            .map(|address| Server::echo(listen(address).unwrap()))
            .collect();
        let traffic = Traffic::default();
        thread::scope(|scope| {
            scope.spawn(|| traffic.go(&client));
            let mut walk = Walk::new(&client, topology, &traffic, &mut rng);
            // The traffic must stop before `walk` is dropped and lets clients connect again.
            let _stop = StopOnDrop(&traffic.stop);
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

/// Background clients, which can be held up.
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
            for (from, to) in ends.iter().cycle() {
                let going = self.held_up.read().unwrap_or_else(PoisonError::into_inner);
                // The walk may end while clients can't connect.
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
                fast_open(*from, *to, DATA)?;
                self.done.fetch_add(1, Ordering::Relaxed);
                drop(going);
                // The pause leaves CPU time to the test.
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        };
        if let Err(error) = client.run(connect) {
            *self.failure.lock().unwrap() = Some(format!("{error:#}"));
        }
    }
}

struct Walk<'a> {
    client: &'a Namespace,
    topology: Topology<'a>,
    traffic: &'a Traffic,
    rng: &'a mut Rng,
    model: Model,
    deck: Deck,
    file: Config,
    running: Option<Running>,
    history: Vec<String>,
    kinds: BTreeMap<String, u32>,
    seed: u64,
    is_over: bool,
    /// Lock that keeps clients from connecting.
    held_up: Option<RwLockWriteGuard<'a, ()>>,
    keys: Keys,
    /// Number of SYNs of probes that each program has seen.
    probed: [u64; 2],
    /// Numbers of SYNs and of accepted connections that came before the program was attached, so that they are not
    /// counted.
    missed: Option<[i128; 2]>,
    /// Difference between the second program's count and the number of probes to it.
    second_base: Option<i128>,
    last: [Vec<u64>; 2],
    visitors: Vec<Visitor>,
    /// Number of reloads that were refused because an interface came or went.
    refused: u32,
    /// Ids of the links in the kernel.
    links: [Option<u32>; 2],
    hz: u64,
}

impl<'a> Walk<'a> {
    fn new(client: &'a Namespace, topology: Topology<'a>, traffic: &'a Traffic, rng: &'a mut Rng) -> Self {
        let model = Model::new(rng);
        Self {
            client,
            topology,
            traffic,
            rng,
            model,
            deck: Deck::default(),
            file: Config::of_several(&INTERFACES, ""),
            running: None,
            history: Vec::new(),
            kinds: BTreeMap::new(),
            seed: 0,
            is_over: false,
            held_up: None,
            keys: Keys::default(),
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
        let step = self.deck.draw(&self.model, self.rng);
        let text = format!("{step:?}");
        let kind: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
        *self.kinds.entry(kind).or_default() += 1;
        self.history.push(format!("{number}: {text}"));
        let innermost = step.innermost();
        if let Step::Down(0) | Step::Delete(0) | Step::Remake(0) = innermost {
            // Connections are lost with a deleted interface, whatever tfo does.
            self.hold_up();
        }
        let is_done = self.carry_out(&step);
        self.model.apply(&step, is_done);
        self.keys.learn(&self.model);
        match &self.model.in_force[0] {
            Some(desired) => self.visitors.retain(|visitor| visitor.visits_service_of(desired)),
            None => {
                self.visitors.clear();
                (self.missed, self.second_base, self.last) = (None, None, Default::default());
                self.links = [None; 2];
            }
        }
        if let Step::KillInReload(desired, _) | Step::KillInStart(desired, _) = &step {
            // State of a service that may have been removed and added again may be lost.
            self.visitors.retain(|visitor| visitor.visits_service_of(desired));
        }
        for (at, link) in self.links.iter_mut().enumerate() {
            if self.model.links[at] == Link::Gone || matches!(innermost, Step::Remake(made) if *made == at) {
                *link = None;
            }
        }
        self.check();
        if let Some(failure) = &*self.traffic.failure.lock().unwrap() {
            panic!("a connection was lost: {failure}");
        }
    }

    /// Keeps new clients from connecting, and waits for the others.
    fn hold_up(&mut self) {
        let traffic = self.traffic;
        self.held_up.get_or_insert_with(|| traffic.held_up.write().unwrap_or_else(PoisonError::into_inner));
        eventually("all connections are over", has_no_connections);
    }

    /// Lets clients connect again, if that is possible.
    fn resume(&mut self) {
        if self.model.serves() {
            self.wait_until_up(0);
            self.held_up = None;
        }
    }

    fn wait_until_up(&self, interface: usize) {
        self.topology.wait_until_up(interface, self.now(interface));
    }

    fn write(&self, desired: &Desired) {
        self.file.write(&desired.text());
    }

    /// Makes a step. Returns whether a reload or a start in it succeeded.
    fn carry_out(&mut self, step: &Step) -> bool {
        let running = || self.running.as_ref().unwrap();
        match step {
            Step::Reload { by_signal, desired } => {
                self.write(desired);
                if *by_signal {
                    running().signal(Signal::SIGHUP);
                } else {
                    run_tfo(&["reload"], 0);
                }
            }
            Step::BadReload(bad) => {
                let good = self.model.desired.text();
                match bad {
                    FileFault::Form => self.file.write("[[service]"),
                    FileFault::Value => {
                        self.file.write(&format!("{good}\n[[service]]\nname = \"bad\"\nports = [0]\n"))
                    }
                    FileFault::Fixed => self.file.write(&format!("attach = \"generic\"\n{good}")),
                    FileFault::Missing => fs::remove_file(self.file.path()).unwrap(),
                }
                run_tfo(&["reload"], 1);
                self.file.write(&good);
            }
            Step::FailingReload(desired) => {
                // All numbers of generations are used up, so the program can be loaded, but not be put in force.
                let last = bpffs().pins(SECOND).dir().join(u32::MAX.to_string());
                fs::create_dir(&last).unwrap();
                let before = INTERFACES.map(linked);
                self.write(desired);
                let refused = run_tfo(&["reload"], 1);
                assert!(refused.contains("no number is left"), "{refused}");
                fs::remove_dir(&last).unwrap();
                assert_eq!(INTERFACES.map(linked), before, "the first has gone back");
                self.write(&self.model.desired);
            }
            Step::Stop => drop(self.running.take().unwrap().end(Signal::SIGTERM)),
            Step::Interrupt => drop(self.running.take().unwrap().end(Signal::SIGINT)),
            Step::Unload => {
                run_tfo(&["unload"], 0);
                // The controller notices that it has no interface left.
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
                eventually("programs are gone with their links", || self.are_bare());
            }
            Step::KillInReload(desired, death) => {
                self.write(desired);
                running().signal(Signal::SIGHUP);
                // The kill comes during the step, or after it.
                thread::sleep(Duration::from_millis(death.after_ms));
                let is_orderly = self.running.take().unwrap().end_or_die(death.by);
                assert_eq!(is_orderly, death.by != Signal::SIGKILL);
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
                    // An interface that comes or goes may make the whole step fail.
                    let may_fail = matches!(**then, Step::Delete(_) | Step::Make(_) | Step::Remake(_));
                    assert!(may_fail, "{then:?}: {:?}", failure(&output));
                    self.refused += 1;
                    self.history.push(format!("   refused: {:?}", failure(&output)));
                    self.write(&self.model.desired);
                }
                return is_reloaded;
            }
            Step::KillInStart(desired, death) => {
                self.write(desired);
                let running = Running::spawn(&["--config", &self.file.path()]);
                thread::sleep(Duration::from_millis(death.after_ms));
                return running.end_or_die(death.by);
            }
            Step::Start(desired) => {
                self.write(desired);
                self.running = Some(self.file.run());
            }
            Step::StartWithout | Step::SecondController => {
                run_tfo(&["run", "--config", &self.file.path()], 1);
            }
            Step::Upgrade(by, desired) => {
                self.running.take().unwrap().end_or_die(*by);
                self.hold_up();
                INTERFACES.iter().for_each(|name| downgrade_pins(name));
                self.write(desired);
                self.running = Some(self.file.run());
                // Not before: the program that was attached does not count in the maps that are pinned now.
                self.resume();
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
                let code =
                    i32::from(!concerned.all(|interface| self.model.carries_out(interface, *on, what)));
                run_tfo(&args.iter().map(String::as_str).collect::<Vec<_>>(), code);
            }
            Step::SetKeys { .. } => {
                let mut after = self.model.clone();
                after.apply(step, true);
                let (current, backup) = after.kernel;
                let backup = backup.map(|backup| self.keys.get(backup));
                KeySysctl::open().unwrap().write(key(current), backup).unwrap();
            }
            Step::Rotate => self.give_keys_order(&["keys", "rotate"]),
            Step::Emergency => self.give_keys_order(&["keys", "rotate", "--emergency"]),
            Step::Down(at) => ip(&format!("link set {} down", INTERFACES[*at])),
            Step::Up(at) if self.model.links[*at] == Link::Renamed => {
                ip(&format!("link set {} name {}", RENAMED[*at], INTERFACES[*at]));
            }
            Step::Up(at) => self.topology.bring_up(*at),
            Step::Rename(at) => ip(&format!("link set {} name {}", INTERFACES[*at], RENAMED[*at])),
            Step::Delete(at) => ip(&format!("link del {}", self.now(*at))),
            Step::Make(at) => self.topology.make(*at),
            Step::Remake(at) => {
                ip(&format!("link del {}", INTERFACES[*at]));
                self.topology.make(*at);
            }
        }
        true
    }

    /// Requests a change of keys while a connection is open.
    fn give_keys_order(&self, order: &[&str]) {
        let connection = self.connect();
        run_tfo(order, i32::from(!self.model.desired.makes_keys));
        if let Some(connection) = connection {
            finish(connection);
        }
    }

    /// Connects a client with Fast Open, and waits for the answer. Returns `None` if clients are held up.
    fn connect(&self) -> Option<TcpStream> {
        if self.held_up.is_some() {
            return None;
        }
        let (from, to) = (source(Family::Ipv4, 2), server(Family::Ipv4));
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(from, 0).into())?;
            let sent = socket.send_to_with_flags(DATA, &to.into(), libc::MSG_FASTOPEN)?;
            let mut connection = TcpStream::from(socket);
            connection.write_all(&DATA[sent..])?;
            connection.read_exact(&mut [0; DATA.len()])?;
            Ok(connection)
        };
        let connection = self.client.run(connect).unwrap();
        self.traffic.done.fetch_add(1, Ordering::Relaxed);
        Some(connection)
    }

    /// Returns the present name of an interface.
    fn now(&self, interface: usize) -> &'static str {
        let is_renamed = self.model.links[interface] == Link::Renamed;
        if is_renamed { RENAMED[interface] } else { INTERFACES[interface] }
    }

    /// Returns whether no interface has a program.
    fn are_bare(&self) -> bool {
        let there = (0..2).filter(|at| self.model.links[*at] != Link::Gone);
        there.map(|at| xdp_on(self.now(at))).all(|program| program.is_none())
    }

    fn check(&mut self) {
        if !self.model.is_installed() {
            assert!(self.are_bare(), "a program is left");
            assert!(!Path::new(BPFFS).join("tfo").exists(), "pins are left");
        } else {
            (0..2).for_each(|interface| self.check_state(interface));
            self.hold_up();
            self.check_counts();
            self.probe();
            self.check_counts();
        }
        self.resume();
    }

    /// Reads the state of an interface back, and compares it with the desired state.
    fn check_state(&mut self, interface: usize) {
        let (model, name) = (&self.model, INTERFACES[interface]);
        let Some(is_attached) = model.attached[interface] else { return };
        let now = self.now(interface);
        wait_until_equal(
            &format!("{name}: attached, with a controller"),
            (is_attached, model.controller),
            || {
                let status = status(name);
                (status["attached"] == true, status["controller"] == true)
            },
        );
        if is_attached {
            wait_until_equal(
                &format!("{name}: what its pinned link attaches"),
                Some(linked(name).program),
                || xdp_on(now),
            );
            let link = *self.links[interface].get_or_insert(linked(name).link);
            assert_eq!(linked(name).link, link, "{name}: it was detached for a while");
        } else if model.links[interface] != Link::Gone {
            assert_eq!(xdp_on(now), None, "{name}");
        }
        if !model.is_known[interface] {
            return;
        }
        if let Some((current, backup)) = model.ring.held {
            let text = |number: u32| fingerprint(self.keys.get(number));
            let retired: Vec<_> = model.ring.retired.iter().map(|number| text(*number)).collect();
            let expected = json!({"current": text(current), "backup": backup.map(text), "retired": retired});
            wait_until_equal(&format!("{name}: the keys"), expected, || {
                let keys = &status(name)["keys"];
                json!({"current": keys["current"], "backup": keys["backup"], "retired": keys["retired"]})
            });
        }
        wait_until_equal(&format!("{name}: policies"), model.policies(interface, self.hz), || {
            let mut policies = pinned(name).policies().unwrap();
            policies.retain(|(service, _)| service != REMOVED_NAME);
            policies.sort_by(|(a, _), (b, _)| a.cmp(b));
            policies
        });
        let mode = model.in_force[interface].as_ref().unwrap().mode();
        let hidden: BTreeSet<String> = model.hidden(interface).iter().map(Hidden::to_string).collect();
        wait_until_equal(&format!("{name}: mode, hidden"), (mode.name().to_owned(), hidden), || {
            let status = status(name);
            let hidden: Vec<Hidden> = serde_json::from_value(status["hidden"].clone()).unwrap();
            (status["mode"].as_str().unwrap().to_owned(), hidden.iter().map(Hidden::to_string).collect())
        });
        if model.controller {
            let generations = || bpffs().pins(name).generations().unwrap().len();
            wait_until_equal(&format!("{name}: generations, of which no old one is left"), 1, generations);
            let output = tfo(&["hide", "--list", "--json", "-i", name]);
            let list: Value = serde_json::from_slice(&output.stdout).unwrap();
            let list: BTreeSet<Hidden> = serde_json::from_value(list["hidden"].clone()).unwrap();
            assert_eq!(list, model.orders[interface], "{name}: orders");
        }
    }

    /// Panics unless every SYN is counted once and no counter has fallen. Clients must be held up.
    fn check_counts(&mut self) {
        let sent = self.traffic.done.load(Ordering::Relaxed)
            + self.client.run(retransmissions).unwrap()
            + self.probed[0];
        let [syns, accepted] = self.counted_of_first();
        let passive = TcpExt::read().unwrap().passive;
        let missed = [i128::from(sent) - i128::from(syns), i128::from(passive) - i128::from(accepted)];
        match self.missed {
            // The program was attached while clients connected.
            None => self.missed = Some(missed),
            Some([syns, accepted]) => {
                let expected = [i128::from(sent) - syns, i128::from(passive) - accepted];
                wait_until_equal(
                    "SYNs and accepted connections, of which each is counted once",
                    expected,
                    || self.counted_of_first().map(i128::from),
                );
            }
        }
        let second = i128::from(total(&pinned(SECOND).counters().unwrap()));
        let base = *self.second_base.get_or_insert(second - i128::from(self.probed[1]));
        wait_until_equal("SYNs to the second interface", base + i128::from(self.probed[1]), || {
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

    /// Sends SYNs that concern the protections. Clients must be held up.
    fn probe(&mut self) {
        let certain = [0, 1].map(|interface| self.model.is_certain(interface));
        (0..2).filter(|interface| certain[*interface]).for_each(|interface| self.wait_until_up(interface));
        if certain[0] {
            // Earlier visitors must still be remembered.
            for visitor in std::mem::take(&mut self.visitors) {
                self.probe_by(0, visitor);
            }
            for port in PORTS {
                let visitor = Visitor::new(&self.model, 0, port, self.rng);
                let visitor = self.probe_by(0, visitor);
                self.visitors.push(visitor);
            }
        }
        if certain[1] {
            let port = PORTS[self.rng.usize(..PORTS.len())];
            let visitor = Visitor::new(&self.model, 1, port, self.rng);
            self.probe_by(1, visitor);
        }
    }

    /// Makes a visit, and compares the counters of tfo and of the kernel with the expected outcome.
    fn probe_by(&mut self, interface: usize, visitor: Visitor) -> Visitor {
        let name = INTERFACES[interface];
        let counts = || counts_by_service(&pinned(name));
        let before = (counts(), TcpExt::read().unwrap());
        let wire = self.topology.wire(interface);
        let visit = Visit::new(&self.model, &self.keys, interface, &wire, visitor);
        let (visitor, expected) = visit.make();
        self.probed[interface] += expected.sent;
        let what = format!("{name}, port {}, from {}: what becomes of SYNs", visitor.to.1, visitor.from);
        wait_until_equal(&what, expected.counts, || {
            let mut now = counts();
            for (what, before) in &before.0 {
                *now.entry(what.clone()).or_default() -= before;
            }
            now.retain(|_, count| *count != 0);
            now
        });
        if interface == 0 {
            eventually("its connections are over", has_no_connections);
            assert_eq!(TcpExt::read().unwrap() - before.1, expected.kernel, "{what}, by the kernel (left)");
        }
        visitor
    }
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let log = self.running.take().map(Running::kill_and_read_log).unwrap_or_default();
        eprintln!("PROPTEST_RNG_SEED={}; in step {}:", self.seed, self.history.len());
        self.history.iter().for_each(|step| eprintln!("  {step}"));
        eprintln!("what the controller logged:\n{log}\n{:#?}", self.model);
    }
}

/// Uses the connection once more, and closes it, to show that it was not cut off.
fn finish(mut connection: TcpStream) {
    connection.write_all(DATA).unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    assert_eq!(connection.read(&mut [0]).unwrap(), 0);
}

fn bpffs() -> Bpffs {
    Bpffs::new(Path::new(BPFFS))
}

fn pinned(interface: &str) -> Pinned {
    Pinned::open(&bpffs().pins(interface)).unwrap()
}

fn total(counters: &Counters) -> u64 {
    counters.syn.as_flattened().as_flattened().iter().map(|tally| tally.packets).sum()
}

/// Returns all counters that never fall.
fn flat(counters: &Counters) -> Vec<u64> {
    let syn = counters.syn.as_flattened().as_flattened().iter();
    let syn = syn.flat_map(|tally| [tally.packets, tally.with_data, tally.data_bytes]);
    let guards = counters.guards.iter().flat_map(|guarded| [guarded.acted, guarded.would]);
    syn.chain(counters.hits).chain(guards).collect()
}

/// Runs `tfo ARGS`, which must end with `code`. Returns the text on standard error.
fn run_tfo(args: &[&str], code: i32) -> String {
    let (found, error) = failure(&tfo(args));
    assert_eq!(found, Some(code), "{args:?}: {error:?}");
    error
}

/// Waits until `now` returns `expected`.
fn wait_until_equal<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, now: impl Fn() -> T) {
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

/// Returns the number of repeated segments in the calling thread's namespace. Only SYNs may be repeated in this test.
fn retransmissions() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut all = names.split(' ').zip(values.split(' '));
    Ok(all.find(|(name, _)| *name == "TCPSynRetrans").unwrap().1.parse()?)
}
