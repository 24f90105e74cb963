//! Comparison of the parser with two others, and of its option walk with a plain one, on random frames.

use std::collections::HashSet;

use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use tfo_common::{
    class::{Class, Classified, Unlimited, classify},
    parse::{Fault, LinkLayer, Malformed, Unfollowed, Unsupported, parse, unfollowed},
    segment::{Addresses, Family, Segment},
};
use tfo_tests::{
    cases::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6, all},
    keys::{CURRENT, ring},
    oracle::{self, Parsed},
    packet::{Carry, eth, ether_type, protocol},
    random::{frame, spoilt_frame},
};

fn ours(frame: &[u8]) -> Parsed {
    parse(frame, LinkLayer::Ethernet)
}

/// Checks that our parser agrees with the reference and with etherparse. If etherparse refuses a frame, we must see no
/// SYN.
fn check(frame: &[u8]) -> Result<(), TestCaseError> {
    let ours = ours(frame);
    prop_assert_eq!(ours, oracle::reference(frame, LinkLayer::Ethernet));
    match oracle::etherparse(frame) {
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
    fn agrees_with_the_others(frame in frame()) {
        check(&frame)?;
        // The packet alone, as on tun, is parsed alike.
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
    fn agrees_with_the_others_on_spoilt_frames(frame in spoilt_frame()) {
        check(&frame)?;
    }

    #[test]
    fn takes_any_bytes(bytes in vec(any::<u8>(), 0..100), v4: bool) {
        prop_assert_eq!(parse(bytes.as_slice(), LinkLayer::Ip), oracle::reference(&bytes, LinkLayer::Ip));
        let ether_type = if v4 { ether_type::IPV4 } else { ether_type::IPV6 };
        check(&eth().carrying(ether_type, &bytes))?;
    }
}

/// The generator must cover every outcome of a frame.
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
                    _ = classes
                        .insert((segment.addresses.family, classify(&segment, &ring(), Unlimited).class))
                }
                Ok(None) => {}
                Err(fault) => _ = faults.insert(fault.name()),
            }
        }
    }
    assert_eq!(classes.len(), 2 * Class::COUNT, "{classes:?}");
    assert_eq!(faults.len(), Malformed::COUNT + Unsupported::COUNT, "{faults:?}");
}

/// The longest extension headers that are followed. The frame is too large for a test run in the kernel.
#[test]
fn follows_the_longest_extension_headers() {
    let ip = eth().service_vlan(1).vlan(2).ipv6(CLIENT_V6, SERVER_V6);
    let chain = (0..6).fold(ip, |ip, _| ip.options(protocol::DESTINATION, 256));
    let syn = chain.syn().cookie_of(CURRENT).data(b"hello");
    let segment = ours(&syn.build()).expect("followed").expect("a SYN");
    let current = Classified { class: Class::CookieCurrent, slot: Some(0), is_portable: false };
    assert_eq!((classify(&segment, &ring(), Unlimited), segment.data_len), (current, 5));
}

/// An unsupported frame that may be a SYN has the addresses of the case table, and a place for the ports inside the frame.
#[test]
fn facts_of_frames_that_are_not_followed() {
    let mut found = HashSet::new();
    for case in all() {
        let frame = case.frame.as_slice();
        let Err(Fault::Unsupported(reason)) = parse(frame, case.link) else { continue };
        let Some(Unfollowed { addresses, tcp }) = unfollowed(frame, case.link) else { continue };
        let expected = match addresses.family {
            Family::Ipv4 => Addresses::from_ipv4(
                [CLIENT_V4.octets(), SERVER_V4.octets()].concat().try_into().expect("two addresses"),
            ),
            Family::Ipv6 => Addresses::from_ipv6(
                [CLIENT_V6.octets(), SERVER_V6.octets()].concat().try_into().expect("two addresses"),
            ),
        };
        assert_eq!(addresses, expected, "{}", case.name);
        if let Some(tcp) = tcp {
            assert_eq!(
                frame.get(tcp as usize..tcp as usize + 4),
                Some(&[0x9c, 0x40, 0, 80][..]),
                "{}",
                case.name
            );
        }
        found.insert((reason, addresses.family, tcp.is_some()));
    }
    use Unsupported::*;
    for (reason, family, has_ports) in [
        (FragmentedHeader, Family::Ipv4, true),
        (FragmentedHeader, Family::Ipv4, false),
        (FragmentedHeader, Family::Ipv6, true),
        (FragmentedHeader, Family::Ipv6, false),
        (ExtensionChain, Family::Ipv6, true),
    ] {
        assert!(
            found.remove(&(reason, family, has_ports)),
            "{reason} over {family}, with ports: {has_ports}"
        );
    }
    assert!(found.iter().all(|(reason, ..)| *reason == FragmentedHeader), "{found:?}");
}
