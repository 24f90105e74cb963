//! The parser against etherparse, and its option walk against a plain one, on random frames.

use std::collections::HashSet;

use etherparse::{Ipv6ExtensionSlice, NetSlice, SlicedPacket, TcpSlice, err::packet::SliceError};
use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use tfo_common::{
    class::{Class, Classified, classify},
    parse::{Fault, LinkLayer, Malformed, Unsupported, parse},
    segment::{Addresses, Cookie, FastOpen, Segment},
};
use tfo_tests::{
    cases::{CLIENT_V6, SERVER_V6},
    keys::{CURRENT, ring},
    packet::{Carry, eth, ether_type, protocol},
    random::{frame, spoilt_frame},
};

type Parsed = Result<Option<Segment>, Fault>;

fn ours(frame: &[u8]) -> Parsed {
    parse(frame, LinkLayer::Ethernet)
}

/// What etherparse reads in `frame`, in our words; `None` where it refuses the frame.
fn theirs(frame: &[u8]) -> Option<Parsed> {
    let packet = match SlicedPacket::from_ethernet(frame) {
        Ok(packet) => packet,
        // It refuses an authentication header of eight bytes, which is up to IPsec to refuse.
        Err(SliceError::Ipv6Exts(_)) if matches!(ours(frame), Ok(Some(_))) => return Some(ours(frame)),
        Err(_) => return None,
    };
    for (place, tag) in (0..packet.link_exts.len()).zip(frame[12..].chunks(4)) {
        match u16::from_be_bytes([tag[0], tag[1]]) {
            ether_type::VLAN | ether_type::SERVICE_VLAN if place < 2 => {}
            ether_type::VLAN | ether_type::SERVICE_VLAN => return Some(Err(Unsupported::VlanDepth.into())),
            // Etherparse knows more kinds of tags than Linux.
            _ => return Some(Ok(None)),
        }
    }
    let (ip, addresses) = match packet.net.as_ref() {
        None | Some(NetSlice::Arp(_)) => return Some(Ok(None)),
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            if header.protocol().0 != protocol::TCP {
                return Some(Ok(None));
            }
            if header.fragments_offset().value() > 0 {
                return Some(Err(Unsupported::LaterFragment.into()));
            }
            (ip.payload(), Addresses::from_ipv4(concat(header.source(), header.destination())))
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            // It takes any length of zero for a jumbogram's, the kernel only where hop-by-hop options follow.
            if header.payload_length() == 0 && header.next_header().0 != protocol::HOP_BY_HOP {
                return None;
            }
            if let Some(parsed) = not_followed(ip.extensions().clone()) {
                return Some(parsed);
            }
            (ip.payload(), Addresses::from_ipv6(concat(header.source(), header.destination())))
        }
    };
    if ip.ip_number.0 != protocol::TCP {
        return Some(Ok(None));
    }
    // By hand: etherparse does not look into a first fragment.
    let tcp = TcpSlice::from_slice(ip.payload).ok()?;
    Some(match (tcp.syn() && !tcp.ack(), tcp.rst() || tcp.fin()) {
        (false, _) => Ok(None),
        (true, true) => Err(Malformed::TcpFlags.into()),
        (true, false) => Ok(Some(Segment {
            addresses,
            fast_open: kernel_walk(tcp.options()),
            tcp: offset_in(frame, tcp.slice()),
            data_len: tcp.payload().len() as u32,
        })),
    })
}

/// Where `part` begins in `whole`, of which it is a part.
fn offset_in(whole: &[u8], part: &[u8]) -> u32 {
    (part.as_ptr().addr() - whole.as_ptr().addr()) as u32
}

fn concat<const N: usize, const M: usize>(source: [u8; N], destination: [u8; N]) -> [u8; M] {
    [source, destination].concat().try_into().expect("two addresses are twice as long as one")
}

/// What is to become of a packet because of extension headers that etherparse takes and we do not.
fn not_followed(extensions: etherparse::Ipv6ExtensionsSlice<'_>) -> Option<Parsed> {
    let mut fragments = 0;
    for (place, extension) in extensions.into_iter().enumerate() {
        if place == 6 {
            return Some(Err(Unsupported::ExtensionChain.into()));
        }
        match extension {
            Ipv6ExtensionSlice::Routing(header)
                if header.slice()[3] > 0 || matches!(header.slice()[2], 3 | 4) =>
            {
                return Some(Err(Unsupported::SourceRoute.into()));
            }
            Ipv6ExtensionSlice::Fragment(_) if fragments > 0 => {
                return Some(Err(Unsupported::ExtensionChain.into()));
            }
            Ipv6ExtensionSlice::Fragment(header) if header.fragment_offset().value() > 0 => {
                use protocol::*;
                return Some(match header.next_header().0 {
                    TCP | HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION => {
                        Err(Unsupported::LaterFragment.into())
                    }
                    _ => Ok(None),
                });
            }
            Ipv6ExtensionSlice::Fragment(_) => fragments += 1,
            _ => {}
        }
    }
    None
}

/// `tcp_parse_options` and `tcp_parse_fastopen_option` (net/ipv4/tcp_input.c), as they read.
fn kernel_walk(area: &[u8]) -> FastOpen {
    let mut options = area;
    let mut seen = false;
    let mut found: Option<&[u8]> = None;
    loop {
        match options {
            [1, rest @ ..] => options = rest,
            [kind, len, ..] if *kind != 0 && *len >= 2 && usize::from(*len) <= options.len() => {
                let (option, rest) = options.split_at(usize::from(*len));
                if let (34, cookie) | (254, [0xf9, 0x89, cookie @ ..]) = (kind, &option[2..]) {
                    seen = true;
                    match cookie.len() {
                        len if len % 2 == 1 => {}
                        0 | 4..=16 => found = Some(cookie),
                        _ => found = None,
                    }
                }
                options = rest;
            }
            _ => break,
        }
    }
    match found {
        None if seen => FastOpen::Ignored,
        None => FastOpen::Absent,
        Some([]) => FastOpen::Request,
        Some(cookie) => match cookie.try_into() {
            Ok(bytes) => FastOpen::Cookie(Cookie {
                value: u64::from_le_bytes(bytes),
                offset: 20 + offset_in(area, cookie),
            }),
            Err(_) => FastOpen::BadLength,
        },
    }
}

/// Where etherparse reads the frame, we read the same; where it refuses it, we see no SYN.
fn check(frame: &[u8]) -> Result<(), TestCaseError> {
    let ours = ours(frame);
    match theirs(frame) {
        Some(theirs) => prop_assert_eq!(ours, theirs),
        None => prop_assert!(!matches!(ours, Ok(Some(_))), "etherparse refuses it, and we read {:?}", ours),
    }
    Ok(())
}

fn config() -> Config {
    let default = Config::default();
    Config { cases: default.cases * 16, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn agrees_with_etherparse(frame in frame()) {
        check(&frame)?;
        // The packet alone, as on tun, reads the same.
        let is_tag = |tag: &[u8]| matches!(tag, [0x81, 0x00, ..] | [0x88, 0xa8, ..]);
        let tags = frame[12..].chunks(4).take_while(|tag| is_tag(tag)).count();
        let link = 14 + 4 * tags;
        if tags <= 2 {
            let further_in = |segment: Segment| Segment { tcp: segment.tcp + link as u32, ..segment };
            let alone = parse(&frame[link..], LinkLayer::Ip).map(|parsed| parsed.map(further_in));
            prop_assert_eq!(alone, ours(&frame));
        }
    }

    #[test]
    fn agrees_with_etherparse_on_spoilt_frames(frame in spoilt_frame()) {
        check(&frame)?;
    }

    #[test]
    fn takes_any_bytes(bytes in vec(any::<u8>(), 0..100), v4: bool) {
        // Neither panics nor reads outside; nothing else can be said of noise.
        let _ = parse(bytes.as_slice(), LinkLayer::Ip);
        let ether_type = if v4 { ether_type::IPV4 } else { ether_type::IPV6 };
        check(&eth().carrying(ether_type, &bytes))?;
    }
}

/// The generator is worth its time only if it comes by everything.
#[test]
fn random_frames_are_of_every_kind() {
    let (mut classes, mut faults) = (HashSet::new(), HashSet::new());
    let mut runner = TestRunner::deterministic();
    let (good, spoilt) = (frame(), spoilt_frame());
    for _ in 0..2000 {
        let good = good.new_tree(&mut runner).expect("the generator rejects nothing").current();
        let spoilt = spoilt.new_tree(&mut runner).expect("the generator rejects nothing").current();
        for frame in [good, spoilt] {
            match ours(&frame) {
                Ok(Some(segment)) => {
                    _ = classes.insert((segment.addresses.family, classify(&segment, &ring()).class))
                }
                Ok(None) => {}
                Err(fault) => _ = faults.insert(fault.name()),
            }
        }
    }
    assert_eq!(classes.len(), 2 * Class::COUNT, "{classes:?}");
    assert_eq!(faults.len(), Malformed::COUNT + Unsupported::COUNT, "{faults:?}");
}

/// The longest chain that is followed. The frame is too large for a test run in the kernel.
#[test]
fn follows_the_longest_extension_headers() {
    let ip = eth().service_vlan(1).vlan(2).ipv6(CLIENT_V6, SERVER_V6);
    let chain = (0..6).fold(ip, |ip, _| ip.options(protocol::DESTINATION, 256));
    let syn = chain.syn().cookie_of(CURRENT).data(b"hello");
    let segment = ours(&syn.build()).expect("followed").expect("a SYN");
    let current = Classified { class: Class::CookieCurrent, slot: Some(0) };
    assert_eq!((classify(&segment, &ring()), segment.data_len), (current, 5));
}
