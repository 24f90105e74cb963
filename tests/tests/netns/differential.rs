//! Random SYNs to a real Fast Open listener behind the program. The kernel's answers and counters must be those that
//! the class predicts, and the program's counters must be the host's.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener},
};

use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use proptest::{
    strategy::Strategy as _,
    test_runner::{TestCaseError, TestError},
};
use tfo_common::{
    class::{Class, Unlimited, classify},
    keyring::KeyRing,
    parse::{LinkLayer, parse},
    policy::{Guard, Policy, WithoutGuards, decide},
    service::OTHER,
    verdict::{Mode, Verdict},
};
use tfo_tests::{
    cases::{SERVER_V4, SERVER_V6, rows},
    host,
    kernel::{Kernel, sum},
    keys::{self, BACKUP, CURRENT},
    netns::{ip, sandbox},
    packet::{Carry as _, Ip, eth, flag, ipv4, ipv6},
    random,
    tap::Tap,
};
use tfo_userspace::{
    kernel::{sysctl::KeySysctl, tcp_ext::TcpExt},
    lab::server::listen,
};

const NAME: &str = "nic0";
const PORT: u16 = 7413;
const SERVERS: [SocketAddr; 2] =
    [SocketAddr::new(IpAddr::V4(SERVER_V4), PORT), SocketAddr::new(IpAddr::V6(SERVER_V6), PORT)];

#[test]
fn ethernet_observed() {
    check(LinkLayer::Ethernet, Mode::Observe, None);
}

#[test]
fn ethernet_accelerated() {
    check(LinkLayer::Ethernet, Mode::Accelerate, None);
}

#[test]
fn ip_observed() {
    check(LinkLayer::Ip, Mode::Observe, None);
}

#[test]
fn ip_accelerated() {
    check(LinkLayer::Ip, Mode::Accelerate, None);
}

/// The kernel sees an ordinary SYN, and answers it as one.
#[test]
fn ethernet_hidden() {
    check(LinkLayer::Ethernet, Mode::Shield, Some(Guard::Hide));
}

#[test]
fn ip_hidden() {
    check(LinkLayer::Ip, Mode::Shield, Some(Guard::Hide));
}

fn check(link: LinkLayer, mode: Mode, guard: Option<Guard>) {
    // The numbers of SYNs are 768 and 30,720.
    let mut runner = random::runner(&format!("random SYNs, {link}, {mode}"), 3, 120);
    let policy = Policy::of_mode(mode);
    let policy = guard.map_or(policy, |guard| policy.with(guard, true));
    sandbox(|| {
        let bench = RefCell::new(Bench::new(link, mode, policy));
        let syns = random::syn(link, SERVER_V4, SERVER_V6)
            .prop_filter("the listener has no key for it", |frame| !is_signed(frame, link));
        let result = runner.run(&syns, |frame| bench.borrow_mut().check(&frame).map_err(TestCaseError::fail));
        match result {
            Ok(()) => {}
            Err(TestError::Fail(reason, frame)) => {
                let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
                panic!("{reason}\n{hex}");
            }
            Err(TestError::Abort(reason)) => panic!("{reason}"),
        }
        let seen = bench.into_inner().seen;
        println!("{seen:?}");
        let missing: Vec<_> =
            Class::ALL.iter().map(|class| class.name()).filter(|class| !seen.contains_key(class)).collect();
        assert!(missing.is_empty(), "no SYN of {missing:?}");
    });
}

/// Listener behind the program, and the wire in front of it.
struct Bench {
    link: LinkLayer,
    policy: Policy,
    ring: KeyRing,
    nic: Tap,
    kernel: Kernel,
    listeners: [TcpListener; 2],
    /// Least number of bytes from a broken option on with which the kernel drops a SYN: see
    /// [`Bench::ask_what_is_checked`].
    checked_from: usize,
    /// Number of SYNs by class, or by the reason of a fault.
    seen: BTreeMap<&'static str, u32>,
}

/// Outcome of a SYN.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    counted: TcpExt,
    answers: Vec<Answer>,
    /// Number of connections in the listeners' queues before any handshake ended.
    children: u64,
}

impl Outcome {
    fn silence() -> Self {
        Self { counted: TcpExt::default(), answers: Vec::new(), children: 0 }
    }
}

/// SYN-ACK of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    /// Destination.
    client: SocketAddr,
    /// Number of acknowledged sequence numbers: one for the SYN, one for each byte of data.
    acknowledged: u32,
    fast_open: Option<Cookie>,
}

impl Answer {
    /// Whether this repeats `first`, as happens if the test is kept from its CPU for a second. The kernel does not keep
    /// the cookie for a repetition (`tcp_rtx_synack`).
    fn repeats(&self, first: &Self) -> bool {
        (self.client, self.acknowledged) == (first.client, first.acknowledged) && self.fast_open.is_none()
    }
}

/// Fast Open option.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cookie {
    is_experimental: bool,
    cookie: Vec<u8>,
}

impl Bench {
    fn new(link: LinkLayer, mode: Mode, policy: Policy) -> Self {
        let nic = Tap::new(NAME, link);
        ip("link set lo up");
        ip(&format!("addr add {SERVER_V4}/24 dev {NAME}"));
        ip(&format!("addr add {SERVER_V6}/64 dev {NAME} nodad"));
        // All clients are behind one router, whose address needs no look-up.
        for (family, router) in [("-4", "192.168.0.254"), ("-6", "fd3d:a0b:17d6::fe")] {
            if link == LinkLayer::Ethernet {
                ip(&format!("{family} neigh add {router} lladdr 02:00:00:00:00:01 dev {NAME}"));
            }
            ip(&format!("{family} route add default via {router} dev {NAME}"));
        }
        tfo_userspace::kernel::sysctl::write_mode(tfo_userspace::kernel::sysctl::SERVER).unwrap();
        let listeners = SERVERS.map(|server| listen(server).unwrap());
        for listener in &listeners {
            listener.set_nonblocking(true).unwrap();
        }
        KeySysctl::open().and_then(|sysctl| sysctl.write(CURRENT.key(), Some(BACKUP.key()))).unwrap();

        let ring = keys::ring();
        let mut kernel = Kernel::load(link, mode, &ring);
        kernel.set_policy(OTHER, &policy);
        kernel.attach(NAME, link);
        let (checked_from, seen) = (usize::MAX, BTreeMap::new());
        let mut bench = Self { link, policy, ring, nic, kernel, listeners, checked_from, seen };
        bench.checked_from = bench.ask_what_is_checked();
        bench
    }

    /// Since Linux 6.7 a listener drops a SYN with a broken option if a signature could stand there, unless its kernel
    /// knows no signatures: five bytes for TCP-AO, else 18 for TCP-MD5 (`tcp_do_parse_auth_options`). Older kernels use
    /// the options before the broken one. The parser follows the older kernels.
    fn ask_what_is_checked(&mut self) -> usize {
        let client = SocketAddr::new(IpAddr::from([10, 0, 0, 1]), 1024);
        let is_dropped = |left: &usize| {
            let syn = self.ip_from(client).syn().ports(client.port(), PORT).sequence(0);
            let syn = syn.nops(40 - left).option_bytes(&[77, 0]).nops(left - 2).build();
            self.nic.receive(&syn).unwrap();
            let answers = self.answers(0);
            answers.iter().for_each(|answer| self.reset(0, answer));
            answers.is_empty()
        };
        let checked_from = (2..=40).find(is_dropped).unwrap_or(usize::MAX);
        assert!([5, 18, usize::MAX].contains(&checked_from), "dropped from {checked_from} bytes on");
        checked_from
    }

    /// Sends `frame`, and returns any difference to the prediction.
    fn check(&mut self, frame: &[u8]) -> Result<(), String> {
        let (class, predicted) = self.predict(frame);
        let sequence = Segment::of(frame, self.link).map_or(0, |syn| syn.tcp.sequence_number());
        let before = (self.kernel.counters(), TcpExt::read().unwrap());
        self.nic.receive(frame).unwrap();
        let answers = self.answers(sequence);
        let counted = TcpExt::read().unwrap() - before.1;
        // A child that is reset before it is accepted frees its place in the listener's Fast Open queue.
        for answer in &answers {
            self.reset(sequence, answer);
        }
        let outcome = Outcome { counted, answers, children: self.accept() };
        if outcome != predicted {
            return Err(format!("{class}: predicted\n{predicted:#?}\nbut the kernel did\n{outcome:#?}"));
        }
        let counters = self.kernel.counters();
        let expected = sum(&before.0, &host::count(frame, self.link, &self.policy, &self.ring));
        if counters != expected {
            return Err(format!(
                "{class}: the program has counted\n{:#?}\ninstead of\n{:#?}",
                rows(&counters),
                rows(&expected)
            ));
        }
        *self.seen.entry(class).or_default() += 1;
        Ok(())
    }

    /// Returns the class of the SYN in `frame`, and the outcome of SYNs of that class.
    fn predict(&self, frame: &[u8]) -> (&'static str, Outcome) {
        let segment = match parse(frame, self.link) {
            Ok(Some(segment)) => segment,
            // The kernel drops it silently.
            Err(fault) => return (fault.name(), Outcome::silence()),
            Ok(None) => panic!("no SYN was generated"),
        };
        let class = classify(&segment, &self.ring, Unlimited).class;
        let verdict = decide(&self.policy, class, WithoutGuards(self.ring.translation().is_some())).verdict;
        let none = TcpExt::default();
        let (takes_data, gives_cookie, counted) = match (class, verdict) {
            //= RFC 7413 section 4.1.1
            //# The number MUST be even.
            //= RFC 7413 section 4.1.1
            //# Options with invalid Length values or without the SYN flag set MUST be
            //# ignored.
            (Class::PlainSyn | Class::OptionIgnored, _) | (_, Verdict::Hide) => (false, false, none),
            (_, Verdict::Drop) => return (class.name(), Outcome::silence()),
            (_, Verdict::Answer) => unreachable!("no service of this test is answered"),
            (Class::CookieRequest, _) => (false, true, TcpExt { cookie_reqd: 1, ..none }),
            (Class::CookieCurrent, _) => (true, false, TcpExt { passive: 1, ..none }),
            (Class::CookieBackup, _) | (_, Verdict::Rewrite) => {
                (true, true, TcpExt { passive: 1, passive_alt_key: 1, ..none })
            }
            (Class::CookieRetired | Class::CookieUnknown | Class::CookieBadLength, Verdict::Pass) => {
                (false, true, TcpExt { passive_fail: 1, ..none })
            }
        };
        let syn = Segment::of(frame, self.link).expect("etherparse reads what we do");
        let options = Options::of(&syn.tcp);
        if options.broken.len() >= self.checked_from {
            return ("broken options", Outcome::silence());
        }
        let fast_open = gives_cookie.then(|| Cookie {
            // The answer has the form of the last Fast Open option that Linux used.
            //= RFC 7413 section 9
            //# Existing implementations that are using experimental option 254 per
            //# [RFC6994] with magic number 0xF989 (16 bits) as allocated in the IANA
            //# "TCP Experimental Option Experiment Identifiers (TCP ExIDs)" registry
            //# by this document, SHOULD migrate to use this new option (34) by
            //# default.
            is_experimental: options.fast_open().last().is_some_and(|asked| asked.is_experimental),
            cookie: CURRENT.cookie(syn.source.ip(), syn.destination.ip()).to_vec(),
        });
        //= RFC 7413 section 4.2.2
        //# If the FastOpened flag is set, the packet acknowledges the SYN and
        //# data sequence.
        //= RFC 7413 section 4.2.2
        //# Otherwise, it acknowledges only the SYN sequence.
        let acknowledged = 1 + if takes_data { segment.data_len } else { 0 };
        let answer = Answer { client: syn.source, acknowledged, fast_open };
        (class.name(), Outcome { counted, answers: vec![answer], children: takes_data.into() })
    }

    /// Returns the kernel's SYN-ACKs to a SYN with this sequence number. They exist when the SYN has been written.
    fn answers(&mut self, sequence: u32) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some(frame) = self.nic.sent() {
            answers.extend(self.answer(sequence, &frame));
        }
        answers.dedup_by(|later, first| later.repeats(first));
        answers
    }

    /// Returns the SYN-ACK in `frame`. `None` means a packet by which IPv6 looks for routers.
    fn answer(&self, sequence: u32, frame: &[u8]) -> Option<Answer> {
        let Segment { source: server, destination: client, tcp } = Segment::of(frame, self.link)?;
        assert!(tcp.syn() && tcp.ack() && SERVERS.contains(&server), "no SYN-ACK: {frame:02x?}");
        let fast_open = Options::of(&tcp).fast_open();
        assert!(fast_open.len() < 2, "several Fast Open options: {frame:02x?}");
        let acknowledged = tcp.acknowledgment_number().wrapping_sub(sequence);
        Some(Answer { client, acknowledged, fast_open: fast_open.into_iter().next() })
    }

    fn ip_from(&self, client: SocketAddr) -> Ip {
        match (self.link, client.ip()) {
            (LinkLayer::Ethernet, IpAddr::V4(client)) => eth().ipv4(client, SERVER_V4).into(),
            (LinkLayer::Ethernet, IpAddr::V6(client)) => eth().ipv6(client, SERVER_V6).into(),
            (LinkLayer::Ip, IpAddr::V4(client)) => ipv4(client, SERVER_V4).into(),
            (LinkLayer::Ip, IpAddr::V6(client)) => ipv6(client, SERVER_V6).into(),
        }
    }

    /// Resets the connection that `answer` began.
    fn reset(&mut self, sequence: u32, answer: &Answer) {
        let Answer { client, acknowledged, .. } = *answer;
        let reset = self.ip_from(client).tcp(flag::RST).ports(client.port(), PORT);
        let reset = reset.sequence(sequence.wrapping_add(acknowledged));
        self.nic.receive(&reset.build()).unwrap();
        let late = self.answers(sequence);
        assert!(late.iter().all(|late| late.repeats(answer)), "a reset was answered: {late:?}");
    }

    /// Accepts all connections of the listeners, and returns their number.
    fn accept(&self) -> u64 {
        let mut accepted = 0;
        for listener in &self.listeners {
            loop {
                match listener.accept() {
                    Ok(_) => accepted += 1,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("accept: {error}"),
                }
            }
        }
        accepted
    }
}

/// TCP segment, as etherparse reads it.
struct Segment<'a> {
    source: SocketAddr,
    destination: SocketAddr,
    tcp: TcpSlice<'a>,
}

impl<'a> Segment<'a> {
    fn of(frame: &'a [u8], link: LinkLayer) -> Option<Self> {
        let packet = match link {
            LinkLayer::Ethernet => SlicedPacket::from_ethernet(frame),
            LinkLayer::Ip => SlicedPacket::from_ip(frame),
        };
        let SlicedPacket { net, transport: Some(TransportSlice::Tcp(tcp)), .. } = packet.ok()? else {
            return None;
        };
        let (source, destination) = match net? {
            NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Ipv6(ip) => {
                (IpAddr::V6(ip.header().source_addr()), IpAddr::V6(ip.header().destination_addr()))
            }
            NetSlice::Arp(_) => return None,
        };
        Some(Self {
            source: SocketAddr::new(source, tcp.source_port()),
            destination: SocketAddr::new(destination, tcp.destination_port()),
            tcp,
        })
    }
}

/// Option area of a segment, as far as Linux reads it (`tcp_parse_options`, net/ipv4/tcp_input.c).
struct Options<'a> {
    /// Kind and value of each option.
    read: Vec<(u8, &'a [u8])>,
    /// Rest from a broken option on, which has an invalid length and ends the walk.
    broken: &'a [u8],
}

impl<'a> Options<'a> {
    fn of(tcp: &'a TcpSlice<'_>) -> Self {
        let (mut left, mut read) = (tcp.options(), Vec::new());
        loop {
            match *left {
                [] | [0, ..] => return Self { read, broken: &[] },
                [1, ref rest @ ..] => left = rest,
                [kind, len, ..] if len >= 2 && usize::from(len) <= left.len() => {
                    let (option, rest) = left.split_at(len.into());
                    read.push((kind, &option[2..]));
                    left = rest;
                }
                _ => return Self { read, broken: left },
            }
        }
    }

    /// Returns the options that are Fast Open to Linux, in either form. It ignores one of odd length
    /// (`tcp_parse_fastopen_option`).
    fn fast_open(&self) -> Vec<Cookie> {
        let found = self.read.iter().filter_map(|option| match *option {
            (34, cookie) => Some((false, cookie)),
            (254, [0xf9, 0x89, cookie @ ..]) => Some((true, cookie)),
            _ => None,
        });
        found
            .filter(|(_, cookie)| cookie.len() % 2 == 0)
            .map(|(is_experimental, cookie)| Cookie { is_experimental, cookie: cookie.to_vec() })
            .collect()
    }

    /// Returns whether an option is a signature (TCP-MD5 or TCP-AO). The listener has no key for it, and drops the SYN
    /// (`tcp_inbound_hash`).
    fn are_signed(&self) -> bool {
        self.read.iter().any(|(kind, _)| matches!(kind, 19 | 29))
    }
}

fn is_signed(frame: &[u8], link: LinkLayer) -> bool {
    Segment::of(frame, link).is_some_and(|segment| Options::of(&segment.tcp).are_signed())
}
