//! Mode `accelerate` in the kernel: the real program, run by BPF_PROG_TEST_RUN, changes only the cookies of old keys.
//! The expected frame is that of the packet builder for the other key. Needs root.

use std::{
    cell::RefCell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use proptest::{
    strategy::Strategy,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};
use tfo_common::{
    class::Class,
    counters::Counters,
    keyring::{KeyRing, NEWEST, SLOTS},
    parse::LinkLayer,
    policy::Policy,
    segment::Family,
    verdict::{Mode, Verdict},
};
use tfo_tests::{
    cases::{CLIENT_V4, CLIENT_V6, Expected, Keys, SERVER_V4, SERVER_V6, all, rows, signed},
    host,
    kernel::{Kernel, fits, sum},
    keys::{self, BACKUP, CURRENT, RETIRED, STRANGER, TestKey},
    netns::{BPFFS, PATIENCE, StopOnDrop, sandbox},
    packet::{Carry, Ip, MORE_FRAGMENTS, Tcp, eth, ipv4, ipv6},
    random::{frame, spoilt_frame},
};
use tfo_userspace::dataplane::{
    LoadOptions, SharedMaps,
    pins::{Bpffs, MAPS},
};

/// Returns headers of many kinds in front of the TCP header.
fn packets(link: LinkLayer) -> Vec<(&'static str, Ip)> {
    let (v4, v6) = match link {
        LinkLayer::Ethernet => (eth().ipv4(CLIENT_V4, SERVER_V4), eth().ipv6(CLIENT_V6, SERVER_V6)),
        LinkLayer::Ip => (ipv4(CLIENT_V4, SERVER_V4), ipv6(CLIENT_V6, SERVER_V6)),
    };
    let mut packets: Vec<(&str, Ip)> = vec![
        ("IPv4", v4.clone().into()),
        ("IPv4 with options", v4.clone().options(&[1; 4]).into()),
        ("IPv4 with all options", v4.options(&[1; 40]).into()),
        ("IPv6", v6.clone().into()),
        ("IPv6, hop by hop", v6.clone().hop_by_hop().into()),
        ("IPv6, a chain", v6.hop_by_hop().routing(0).atomic_fragment().destination_options().into()),
    ];
    if link == LinkLayer::Ethernet {
        packets.extend([
            ("VLAN, IPv4", Ip::from(eth().vlan(5).ipv4(CLIENT_V4, SERVER_V4))),
            ("VLAN, IPv6", eth().vlan(5).ipv6(CLIENT_V6, SERVER_V6).into()),
            ("two tags, IPv4", eth().service_vlan(5).vlan(6).ipv4(CLIENT_V4, SERVER_V4).into()),
            ("two tags, IPv6", eth().service_vlan(5).vlan(6).ipv6(CLIENT_V6, SERVER_V6).hop_by_hop().into()),
        ]);
    }
    packets
}

/// Options around a cookie, which differ in the cookie only.
type Options = fn(Tcp, [u8; 8]) -> Tcp;

/// Options in both forms, at odd and even offsets, up to the end of the largest area.
const OPTIONS: [(&str, Options); 10] = [
    ("alone", |tcp, cookie| tcp.fast_open(&cookie)),
    ("behind a NOP", |tcp, cookie| tcp.nop().fast_open(&cookie)),
    ("of Linux", |tcp, cookie| tcp.linux_options().fast_open(&cookie).nops(2)),
    ("of Linux, behind a NOP", |tcp, cookie| tcp.linux_options().nop().fast_open(&cookie).nop()),
    ("at the very end", |tcp, cookie| tcp.nops(30).fast_open(&cookie)),
    ("experimental", |tcp, cookie| tcp.experimental(Tcp::MAGIC, &cookie)),
    ("experimental, behind a NOP", |tcp, cookie| tcp.nop().experimental(Tcp::MAGIC, &cookie)),
    ("experimental, of Linux", |tcp, cookie| tcp.linux_options().experimental(Tcp::MAGIC, &cookie)),
    ("experimental, one before the end", |tcp, cookie| tcp.nops(27).experimental(Tcp::MAGIC, &cookie)),
    ("experimental, at the very end", |tcp, cookie| tcp.nops(28).experimental(Tcp::MAGIC, &cookie)),
];

/// Data behind the header: none, an odd and an even number of bytes, and many.
const DATA: [&[u8]; 4] = [b"", b"x", b"GET / HTTP/1.1\r\n\r\n", &[0xa5; 1399]];

/// Returns the ring of all keys, without those in these slots.
fn ring_without(slots: &[usize]) -> KeyRing {
    let mut ring = keys::ring();
    slots.iter().for_each(|slot| ring.set(*slot, None));
    ring
}

/// Loaded program with its counters.
struct Counting {
    kernel: Kernel,
    counters: Counters,
}

impl Counting {
    fn load(link: LinkLayer, mode: Mode, ring: &KeyRing) -> Self {
        Self { kernel: Kernel::load(link, mode, ring), counters: Counters::default() }
    }

    /// Panics unless `frame` becomes `after`, and `expected` alone is counted.
    fn check(&mut self, name: &str, frame: &[u8], after: &[u8], expected: &Counters) {
        let out = self.kernel.run(name, frame, 1);
        let differ = out.iter().zip(after).position(|(out, after)| out != after);
        assert!(out == after, "{name}: not as expected from byte {differ:?} on\n{out:02x?}\n{after:02x?}");
        let (before, counters) = (self.counters, self.kernel.counters());
        self.counters = counters;
        let expected = sum(&before, expected);
        assert!(counters == expected, "{name}: {:#?}, expected {:#?}", rows(&counters), rows(&expected));
    }
}

fn family(ip: &Ip) -> Family {
    match ip {
        Ip::V4(_) => Family::Ipv4,
        Ip::V6(_) => Family::Ipv6,
    }
}

/// Sends a cookie of every key, in every packet, through a program in `mode` with `ring`. Cookies that the kernel does
/// not hold must become those of `translation`, if given.
fn check_shapes(link: LinkLayer, mode: Mode, ring: &KeyRing, translation: Option<TestKey>) {
    let mut counting = Counting::load(link, mode, ring);
    for (slot, key) in keys::all().into_iter().enumerate().filter(|(slot, _)| ring.holds(*slot)) {
        let into = translation.filter(|_| slot >= 2);
        let verdict = if into.is_some() { Verdict::Rewrite } else { Verdict::Pass };
        for (ip_name, ip) in packets(link) {
            for (options_name, options) in OPTIONS {
                for data in DATA {
                    let name = format!("{ip_name}, slot {slot}, {options_name}, {} bytes", data.len());
                    let syn = |key: TestKey| {
                        let syn = ip.clone().syn();
                        let cookie = syn.cookie(key);
                        options(syn, cookie).data(data).build()
                    };
                    let expected = Expected::of_key(family(&ip), slot, data.len()).counted(verdict, ring);
                    counting.check(&name, &syn(key), &syn(into.unwrap_or(key)), &expected);
                }
            }
        }
    }
}

#[test]
fn old_cookies_become_the_backup_keys() {
    for link in LinkLayer::ALL {
        check_shapes(*link, Mode::Accelerate, &keys::ring(), Some(BACKUP));
    }
}

#[test]
fn without_a_backup_key_they_become_the_current_ones() {
    for link in LinkLayer::ALL {
        check_shapes(*link, Mode::Accelerate, &ring_without(&[1]), Some(CURRENT));
    }
}

#[test]
fn without_a_current_key_they_become_the_backup_ones() {
    check_shapes(LinkLayer::Ethernet, Mode::Accelerate, &ring_without(&[0, 4]), Some(BACKUP));
}

#[test]
fn without_a_key_of_the_kernel_they_are_left_alone() {
    check_shapes(LinkLayer::Ethernet, Mode::Accelerate, &ring_without(&[0, 1]), None);
}

#[test]
fn mode_observe_leaves_them_alone() {
    for link in LinkLayer::ALL {
        check_shapes(*link, Mode::Observe, &keys::ring(), None);
    }
}

/// Cookies are translated only while the keys are confirmed, since the kernel may have other keys by now.
#[test]
fn nothing_is_rewritten_unless_the_keys_are_confirmed() {
    for (link, mode) in
        LinkLayer::ALL.iter().flat_map(|link| Mode::ALL.iter().map(move |mode| (*link, *mode)))
    {
        let ring = keys::ring();
        let mut counting = Counting::load(link, mode, &ring);
        let mut unconfirmed = 0;
        for (name, ip) in packets(link) {
            let syn = |key| ip.clone().syn().cookie_of(key).data(b"data").build();
            let check = |counting: &mut Counting, into: TestKey| {
                let verdict = if into == RETIRED[0] { Verdict::Pass } else { Verdict::Rewrite };
                let expected = Expected::of_key(family(&ip), NEWEST, 4).counted(verdict, &ring);
                counting.check(name, &syn(RETIRED[0]), &syn(into), &expected);
                // These do not depend on the confirmation.
                for (slot, key) in [CURRENT, BACKUP].into_iter().enumerate() {
                    let expected = Expected::of_key(family(&ip), slot, 4).counted(Verdict::Pass, &ring);
                    counting.check(name, &syn(key), &syn(key), &expected);
                }
            };
            let (translation, counts) = if mode == Mode::Observe { (RETIRED[0], 0) } else { (BACKUP, 1) };
            counting.kernel.confirm();
            check(&mut counting, translation);
            counting.kernel.confirm_ago(6);
            check(&mut counting, RETIRED[0]);
            unconfirmed += counts;
            assert_eq!(counting.kernel.watch().unconfirmed, unconfirmed, "{name}, {mode}");
            counting.kernel.confirm();
            check(&mut counting, translation);
            assert_eq!(counting.kernel.watch().unconfirmed, unconfirmed, "{name}, {mode}");
        }
    }
}

/// The other cases of the table come out unchanged.
#[test]
fn nothing_but_old_cookies_is_changed() {
    for link in LinkLayer::ALL {
        let mut counting = Counting::load(*link, Mode::Accelerate, &KeyRing::EMPTY);
        let mut keys = Keys::None;
        let mut changed = 0;
        for case in all().into_iter().filter(|case| case.link == *link && fits(&case.frame)) {
            if case.keys != keys {
                keys = case.keys;
                counting.kernel.publish(&keys.ring());
            }
            let is_retired = matches!(case.expected, Expected::Syn { class: Class::CookieRetired, .. });
            if is_retired && !case.is_signed() {
                let after = counting.kernel.run(&case.name, &case.frame, 1);
                assert_ne!(after, case.frame, "{}", case.name);
                // The expected counts are those of a rewrite.
                counting.counters = counting.kernel.counters();
                let expected = case.expected.counted(Verdict::Rewrite, &keys.ring());
                counting.check(&case.name, &case.frame, &after, &expected);
                changed += 1;
            } else {
                counting.check(&case.name, &case.frame, &case.frame, &case.expected.counters());
            }
        }
        assert!(changed > 0);
    }
}

/// Signed SYNs with an old cookie come out as they came, and are counted where they would have been changed.
#[test]
fn signed_cookies_are_left_alone() {
    for mode in Mode::ALL {
        let mut counting = Counting::load(LinkLayer::Ethernet, *mode, &keys::ring());
        let (sign, data) = (signed(&|tcp| tcp.cookie_of(RETIRED[0])), b"data");
        for (name, syn) in &sign {
            let family = if name.starts_with("IPv4") { Family::Ipv4 } else { Family::Ipv6 };
            let expected = Expected::of_key(family, NEWEST, data.len()).counted(Verdict::Pass, &keys::ring());
            let frame = syn.clone().data(data).build();
            counting.check(&format!("{name}, {mode}"), &frame, &frame, &expected);
        }
        let spared = if *mode == Mode::Observe { 0 } else { sign.len() as u64 };
        assert_eq!(counting.kernel.watch().signed_spared, spared, "{mode}");
    }
}

/// The option that the kernel uses is the one that is changed.
#[test]
fn of_several_options_the_right_one_is_changed() {
    type Packet = fn(Tcp, TestKey) -> Tcp;
    let several: [(&str, Packet, bool); 7] = [
        ("an old one behind a current one", |tcp, key| tcp.cookie_of(CURRENT).cookie_of(key), true),
        ("an old one behind an old one", |tcp, key| tcp.cookie_of(RETIRED[3]).cookie_of(key), true),
        ("an old one, then an odd one", |tcp, key| tcp.cookie_of(key).fast_open(&[7; 3]), true),
        ("an old one, then the list's end", |tcp, key| tcp.cookie_of(key).eol().cookie_of(CURRENT), true),
        ("an old one before a current one", |tcp, key| tcp.cookie_of(key).cookie_of(CURRENT), false),
        ("an old one before a request", |tcp, key| tcp.cookie_of(key).request(), false),
        ("an old one, then 18 bytes", |tcp, key| tcp.cookie_of(key).fast_open(&[7; 18]), false),
    ];
    let mut kernel = Kernel::load(LinkLayer::Ethernet, Mode::Accelerate, &keys::ring());
    for (ip_name, ip) in packets(LinkLayer::Ethernet) {
        for (name, options, is_changed) in several {
            let syn = |key| options(ip.clone().syn(), key).data(b"data").build();
            let after = syn(if is_changed { BACKUP } else { keys::NEXT });
            assert_eq!(kernel.run(name, &syn(keys::NEXT), 1), after, "{name}, {ip_name}");
        }
    }
}

/// Padding behind the packet is not part of it. The checksum of a first fragment covers data in later fragments, too.
#[test]
fn padding_and_first_fragments() {
    let mut kernel = Kernel::load(LinkLayer::Ethernet, Mode::Accelerate, &keys::ring());
    let fragments: [Ip; 2] = [
        eth().ipv4(CLIENT_V4, SERVER_V4).fragment(MORE_FRAGMENTS).into(),
        eth().ipv6(CLIENT_V6, SERVER_V6).fragment(0, true).into(),
    ];
    for ip in fragments {
        let syn = |key| ip.clone().syn().cookie_of(key).nops(2).data(b"sixteen and more").cut(40).build();
        assert_eq!(kernel.run("a first fragment", &syn(RETIRED[0]), 1), syn(BACKUP), "{ip:?}");
    }
    for (name, ip) in packets(LinkLayer::Ethernet) {
        for padding in [1, 6, 46] {
            let syn = |key| ip.clone().syn().cookie_of(key).data(b"x").trailer(padding).build();
            assert_eq!(kernel.run("padding", &syn(RETIRED[7]), 1), syn(BACKUP), "{name}, {padding} bytes");
        }
    }
}

/// Returns the TCP checksum of a SYN over Ethernet, without IP options.
fn check_of(frame: &[u8], tcp: usize) -> u16 {
    u16::from_be_bytes([frame[tcp + 16], frame[tcp + 17]])
}

/// Checksums at the ends of their range, before and after the change.
#[test]
fn checksums_of_zero() {
    let mut kernel = Kernel::load(LinkLayer::Ethernet, Mode::Accelerate, &keys::ring());
    let ips: [(usize, Ip); 2] =
        [(34, eth().ipv4(CLIENT_V4, SERVER_V4).into()), (54, eth().ipv6(CLIENT_V6, SERVER_V6).into())];
    for (tcp, ip) in ips {
        for odd in [0, 1] {
            let syn = |key, word: u16| {
                let syn = ip.clone().syn().sequence(u32::from(word)).nops(odd).cookie_of(key);
                syn.data(b"data").build()
            };
            for wanted in [0, 1, 0xfffe] {
                let before = |word: &u16| check_of(&syn(RETIRED[5], *word), tcp) == wanted;
                let after = |word: &u16| check_of(&syn(BACKUP, *word), tcp) == wanted;
                let words = [(0..=u16::MAX).find(before), (0..=u16::MAX).find(after)];
                for word in words.map(|word| word.expect("some sequence number makes this checksum")) {
                    let name = format!("{wanted:#06x} with sequence number {word}, odd {odd}");
                    assert_eq!(kernel.run(&name, &syn(RETIRED[5], word), 1), syn(BACKUP, word), "{name}");
                }
            }
            // A sender may write zero as 0xffff. Receivers accept both.
            let word =
                (0..=u16::MAX).find(|word| check_of(&syn(RETIRED[5], *word), tcp) == 0).unwrap_or_default();
            let mut frame = syn(RETIRED[5], word);
            frame[tcp + 16..tcp + 18].fill(0xff);
            let (out, right) = (kernel.run("0xffff", &frame, 1), syn(BACKUP, word));
            assert_eq!(check_of(&out, tcp) % 0xffff, check_of(&right, tcp) % 0xffff);
            assert_eq!((&out[..tcp + 16], &out[tcp + 18..]), (&right[..tcp + 16], &right[tcp + 18..]));
        }
    }
}

/// A wrong checksum stays wrong, so that the kernel drops the damaged packet.
#[test]
fn a_wrong_checksum_stays_wrong() {
    let mut kernel = Kernel::load(LinkLayer::Ethernet, Mode::Accelerate, &keys::ring());
    for (name, ip) in packets(LinkLayer::Ethernet) {
        let syn = |key| ip.clone().syn().cookie_of(key).data(b"damaged").build();
        let (mut frame, mut after) = (syn(RETIRED[1]), syn(BACKUP));
        for frame in [&mut frame, &mut after] {
            let last = frame.len() - 1;
            frame[last] ^= 0x10;
        }
        assert_eq!(kernel.run(name, &frame, 1), after, "{name}");
    }
}

/// Checks random frames: each comes out unchanged, or with a cookie of the backup key instead of an old one, and the
/// same sum over the segment.
fn check_random(frames: impl Strategy<Value = Vec<u8>>) {
    let (ring, policy) = (keys::ring(), Policy::of_mode(Mode::Accelerate));
    let kernel = RefCell::new(Kernel::load(LinkLayer::Ethernet, Mode::Accelerate, &ring));
    let before = RefCell::new(Counters::default());
    let default = Config::default();
    let mut runner =
        TestRunner::new(Config { cases: default.cases * 16, failure_persistence: None, ..default });
    let rewritten = RefCell::new(0);
    let result = runner.run(&frames, |frame| {
        if !fits(&frame) {
            return Ok(());
        }
        let mut kernel = kernel.borrow_mut();
        let out = kernel.run("a random frame", &frame, 1);
        let after = kernel.counters();
        let counted = host::count(&frame, LinkLayer::Ethernet, &policy, &ring);
        let expected = sum(&before.replace(after), &counted);
        equal("the counters", rows(&after), rows(&expected))?;

        let verdict = host::check(&frame, &out, LinkLayer::Ethernet, &policy, &ring);
        let verdict = verdict.map_err(|wrong| TestCaseError::fail(format!("{wrong}: {out:02x?}")))?;
        *rewritten.borrow_mut() += u32::from(verdict == Verdict::Rewrite);
        Ok(())
    });
    match result {
        Ok(()) => assert!(*rewritten.borrow() > 50, "too few were rewritten to say anything"),
        Err(TestError::Fail(reason, frame)) => panic!("{reason}\n{frame:02x?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, is: T, expected: T) -> Result<(), TestCaseError> {
    if is == expected {
        return Ok(());
    }
    Err(TestCaseError::fail(format!("{what}: {is:02x?}, expected {expected:02x?}")))
}

#[test]
fn random_frames_are_changed_only_as_they_should_be() {
    check_random(frame());
}

#[test]
fn spoilt_frames_are_changed_only_as_they_should_be() {
    check_random(spoilt_frame());
}

/// Returns the `n`-th ring of a series. All hold all keys in different orders, so that a reader of a mixed ring would
/// miss a key.
fn shuffled(n: usize) -> KeyRing {
    let mut ring = KeyRing::EMPTY;
    for (place, key) in keys::all().into_iter().enumerate() {
        // This is a bijection, since the number of slots is a prime.
        ring.set((place * (1 + n % (SLOTS - 1)) + n * n) % SLOTS, Some(key.key()));
    }
    assert_eq!(ring.present, (1 << SLOTS) - 1);
    ring.generation = n as u64;
    ring
}

/// Publishes rings as fast as possible while SYNs with a cookie of a known key arrive. No cookie may be unknown.
fn check_publication(mode: Mode) {
    const SYNS: u64 = 1_000_000;
    const RINGS: u64 = 200;
    /// SYNs per test run. The kernel waits long before and after each (`bpf_prog_change_xdp`).
    const CHUNK: u32 = 20_000;

    sandbox(|| {
        let pins = Bpffs::new(BPFFS.as_ref()).pins("publication");
        let lock = pins.lock(Duration::ZERO).expect("nobody else is here");
        let generation = lock.next_generation().expect("a folder");
        let shared = SharedMaps { generation: &generation, maps: &MAPS };
        let options = LoadOptions::new(LinkLayer::Ethernet, mode);
        let load = || Kernel::with(&options, Some(shared));
        let (mut writer, mut reader) = (load(), load());
        writer.publish(&shuffled(0));
        assert!(reader.key_ring() == shuffled(0), "the two have their maps in common");

        let (done, published) = (AtomicBool::new(false), AtomicU64::new(0));
        let sent = thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1.. {
                    if done.load(Relaxed) {
                        break;
                    }
                    writer.publish(&shuffled(n));
                    published.fetch_add(1, Relaxed);
                }
            });
            // The writer ends with this block, even on a panic.
            let _end = StopOnDrop(&done);
            send_known_cookies(&mut reader, mode, CHUNK, |sent| {
                sent >= SYNS && published.load(Relaxed) >= RINGS
            })
        });
        println!("{mode}: {sent} SYNs, {} key rings", published.load(Relaxed));

        let counters = reader.counters();
        let known = [Class::CookieCurrent, Class::CookieBackup, Class::CookieRetired];
        let by_class = known.map(|class| counters.class(class).packets);
        assert_eq!(counters.class(Class::CookieUnknown).packets, 0, "{:#?}", rows(&counters));
        assert_eq!(by_class.iter().sum::<u64>(), sent, "{:#?}", rows(&counters));
        assert_eq!(counters.hits.iter().sum::<u64>(), sent, "{:#?}", rows(&counters));
        assert!(by_class.iter().all(|count| *count > 0), "a role was never seen: {:#?}", rows(&counters));
        let rewritten =
            if mode == Mode::Accelerate { counters.class(Class::CookieRetired).packets } else { 0 };
        assert_eq!(counters.verdict(Class::CookieRetired, Verdict::Rewrite), rewritten);
    });
}

/// Sends SYNs of both families with cookies of all keys until `enough`, and returns their number. In mode `accelerate`
/// a changed packet is sent again as it is. Each result must have a cookie of a known key, and the right checksum.
fn send_known_cookies(reader: &mut Kernel, mode: Mode, chunk: u32, enough: impl Fn(u64) -> bool) -> u64 {
    let ips: [Ip; 2] = [eth().ipv4(CLIENT_V4, SERVER_V4).into(), eth().ipv6(CLIENT_V6, SERVER_V6).into()];
    let frames =
        ips.map(|ip| keys::all().map(|key| ip.clone().syn().nop().cookie_of(key).data(b"data").build()));
    let start = Instant::now();
    let mut sent = 0;
    while !enough(sent) {
        assert!(start.elapsed() < PATIENCE * 6, "too slow: {sent} SYNs by now");
        for frames in &frames {
            for frame in frames {
                let out = reader.run("a known cookie", frame, chunk);
                match mode {
                    Mode::Observe => assert_eq!(&out, frame),
                    Mode::Accelerate | Mode::Shield => assert!(frames.contains(&out), "{out:02x?}"),
                }
                sent += u64::from(chunk);
            }
        }
    }
    sent
}

#[test]
fn no_cookie_is_unknown_while_keys_are_published() {
    check_publication(Mode::Observe);
}

#[test]
fn no_cookie_is_half_rewritten_while_keys_are_published() {
    check_publication(Mode::Accelerate);
}

/// The test above would notice unknown cookies: a stranger's cookie is counted as unknown.
#[test]
fn a_strangers_cookie_is_not_rewritten() {
    let mut kernel = Kernel::load(LinkLayer::Ethernet, Mode::Accelerate, &keys::ring());
    for (name, ip) in packets(LinkLayer::Ethernet) {
        let syn = ip.syn().cookie_of(STRANGER).data(b"data").build();
        kernel.pass(name, &syn, 3);
    }
    let unknown = 3 * packets(LinkLayer::Ethernet).len() as u64;
    assert_eq!(kernel.counters().class(Class::CookieUnknown).packets, unknown);
}
