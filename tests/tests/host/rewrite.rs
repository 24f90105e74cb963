//! Translated cookies, hidden options and cut windows: the decision and the corrected checksum.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::{collection::vec, prelude::*, sample::Index};
use tfo_common::{
    class::Class,
    keyring::KeyRing,
    parse::{LinkLayer, parse},
    policy::{Decision, Guard, Policy, WithoutGuards, decide},
    rewrite,
    segment::FastOpen,
    verdict::{Mode, Verdict},
};
use tfo_tests::{
    cases::all,
    host, keys,
    packet::{Carry, Ip, Tcp, checksum, eth},
    random,
};

#[test]
fn only_what_the_kernel_refuses_is_translated_and_only_on_request() {
    for mode in Mode::ALL {
        for class in Class::ALL {
            for has_translation in [false, true] {
                let rewrites = *mode != Mode::Observe && *class == Class::CookieRetired;
                let expected = if rewrites && has_translation { Verdict::Rewrite } else { Verdict::Pass };
                let decision = decide(&Policy::of_mode(*mode), *class, WithoutGuards(has_translation));
                let expected = Decision { verdict: expected, ..Decision::PASS };
                assert_eq!(decision, expected, "{mode}, {class}, {has_translation}");
            }
        }
    }
}

/// Place of the checksum in a TCP header.
const CHECKSUM: std::ops::Range<usize> = 16..18;

/// Returns `segment` with `new` at `place`. The checksum is corrected, not computed.
fn translated(segment: &[u8], place: usize, new: [u8; 8]) -> Vec<u8> {
    let mut segment = segment.to_vec();
    let old = segment[place..place + 8].try_into().expect("eight bytes");
    let before = segment[CHECKSUM].try_into().expect("two bytes");
    // Words of either byte order give the same bytes.
    let little = {
        let (old, new) = (u64::from_le_bytes(old), u64::from_le_bytes(new));
        rewrite::checksum(u16::from_le_bytes(before), old, new, place % 2 == 1).to_le_bytes()
    };
    let big = {
        let (old, new) = (u64::from_be_bytes(old), u64::from_be_bytes(new));
        rewrite::checksum(u16::from_be_bytes(before), old, new, place % 2 == 1).to_be_bytes()
    };
    assert_eq!(little, big);
    segment[CHECKSUM].copy_from_slice(&little);
    segment[place..place + 8].copy_from_slice(&new);
    segment
}

/// Returns a SYN's segment with `cookie`, made by the packet builder, which computes the checksum in full.
fn segment(ip: Ip, before: usize, kind: Kind, cookie: [u8; 8], data: &[u8]) -> Vec<u8> {
    let tcp = ip.syn().nops(before);
    let tcp = match kind {
        Kind::FastOpen => tcp.fast_open(&cookie),
        Kind::Experimental => tcp.experimental(Tcp::MAGIC, &cookie),
    };
    tcp.data(data).segment()
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    FastOpen,
    Experimental,
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::FastOpen), Just(Kind::Experimental)]
}

fn any_ip() -> impl Strategy<Value = Ip> {
    let v4 =
        any::<[u32; 2]>().prop_map(|[from, to]| eth().ipv4(Ipv4Addr::from(from), Ipv4Addr::from(to)).into());
    let v6 =
        any::<[u128; 2]>().prop_map(|[from, to]| eth().ipv6(Ipv6Addr::from(from), Ipv6Addr::from(to)).into());
    prop_oneof![v4, v6]
}

/// Generates eight bytes, often with many carries in the sum, or none.
fn any_cookie() -> impl Strategy<Value = [u8; 8]> {
    let extreme =
        any::<[u8; 8]>().prop_map(|bytes| bytes.map(|byte| [0, 0xff, 1, 0x80][usize::from(byte % 4)]));
    prop_oneof![any::<[u8; 8]>(), extreme, any::<u8>().prop_map(|byte| [byte; 8])]
}

/// Returns the sum that a receiver computes of a segment: 0 if the checksum is right. (0xffff means the same, but is
/// never the complement of a sum that is not all zeros.)
fn remainder(bytes: &[u8]) -> u16 {
    checksum(bytes) % 0xffff
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases * 16, failure_persistence: None, ..default }
}

/// Part of the option area.
#[derive(Clone, Debug)]
enum Piece {
    /// A Fast Open option.
    FastOpen(Kind, Vec<u8>),
    /// Bytes of other options, and whether they end the kernel's walk.
    Other(Vec<u8>, bool),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::FastOpen(Kind::FastOpen, cookie) => 2 + cookie.len(),
            Self::FastOpen(Kind::Experimental, cookie) => 4 + cookie.len(),
            Self::Other(bytes, _) => bytes.len(),
        }
    }

    fn add_to(&self, tcp: Tcp) -> Tcp {
        match self {
            Self::FastOpen(Kind::FastOpen, cookie) => tcp.fast_open(cookie),
            Self::FastOpen(Kind::Experimental, cookie) => tcp.experimental(Tcp::MAGIC, cookie),
            Self::Other(bytes, _) => tcp.option_bytes(bytes),
        }
    }
}

/// Generates as many parts as fit.
fn any_pieces() -> impl Strategy<Value = Vec<Piece>> {
    let other = |bytes: &[u8]| Just(Piece::Other(bytes.to_vec(), false));
    let last = |bytes: &[u8]| Just(Piece::Other(bytes.to_vec(), true));
    let fast_open =
        (any_kind(), vec(any::<u8>(), 0..19)).prop_map(|(kind, cookie)| Piece::FastOpen(kind, cookie));
    let usual = (any_kind(), any_cookie()).prop_map(|(kind, cookie)| Piece::FastOpen(kind, cookie.to_vec()));
    let piece = prop_oneof![
        6 => fast_open,
        4 => usual,
        3 => other(&[1]),
        1 => other(&[2, 4, 5, 0xb4]),
        1 => other(&[4, 2]),
        1 => other(&[3, 3, 7]),
        1 => other(&[8, 10, 34, 10, 34, 2, 0, 0, 0, 0]),
        1 => other(&[254, 6, 0xf9, 0x88, 34, 2]),
        1 => other(&[254, 3, 0xf9]),
        1 => last(&[0]),
        1 => last(&[34, 0]),
        1 => last(&[34, 1]),
        1 => last(&[34, 200]),
        1 => last(&[254, 41, 0xf9, 0x89]),
    ];
    vec(piece, 0..12).prop_map(|pieces| {
        let mut room = 40;
        let fits = |piece: &Piece| {
            let fits = piece.len() <= room;
            room -= if fits { piece.len() } else { 0 };
            fits
        };
        pieces.into_iter().filter(fits).collect()
    })
}

/// Returns a SYN with these options. With `hidden`, no-operations replace those of Fast Open that the kernel's walk
/// reaches.
fn with_options(ip: &Ip, pieces: &[Piece], hidden: bool) -> Tcp {
    let mut is_over = false;
    pieces.iter().fold(ip.clone().syn(), |tcp, piece| {
        let tcp = match piece {
            Piece::FastOpen(..) if hidden && !is_over => tcp.nops(piece.len()),
            _ => piece.add_to(tcp),
        };
        is_over |= matches!(piece, Piece::Other(_, true));
        tcp
    })
}

fn any_tagged_ip() -> impl Strategy<Value = Ip> {
    (any::<[u128; 2]>(), any::<[bool; 3]>()).prop_map(|([from, to], [is_v4, is_tagged, is_twice])| {
        let link = if is_tagged { eth().vlan(5) } else { eth() };
        let link = if is_twice { link.service_vlan(6) } else { link };
        if is_v4 {
            link.ipv4(Ipv4Addr::from(from as u32), Ipv4Addr::from(to as u32)).into()
        } else {
            link.ipv6(Ipv6Addr::from(from), Ipv6Addr::from(to)).into()
        }
    })
}

fn tcp_of(frame: &[u8]) -> usize {
    parse(frame, LinkLayer::Ethernet).expect("it is whole").expect("it is a SYN").tcp as usize
}

/// Checks each policy that changes a packet, on any frame.
fn check_all(frame: &[u8], link: LinkLayer, ring: &KeyRing) -> Result<[u32; 4], String> {
    let mut seen = [0; 4];
    let policy = Policy { clamp: 2, ..Policy::of_mode(Mode::Shield) };
    for policy in [
        policy,
        policy.with(Guard::Hide, true),
        policy.with(Guard::Clamp, true),
        Policy { flags: policy.flags | Policy::HIDDEN_SERVICE, ..policy }.with(Guard::Clamp, true),
    ] {
        let out = host::carry_out(frame, link, &policy, ring);
        let verdict = host::check(frame, &out, link, &policy, ring)
            .map_err(|wrong| format!("{wrong}: {policy:?}\n{frame:02x?}\n{out:02x?}"))?;
        seen[verdict.index()] += 1;
        if verdict == Verdict::Hide {
            let hidden = parse(&out[..], link).ok().flatten().map(|segment| segment.fast_open);
            assert_eq!(hidden, Some(FastOpen::Absent));
        }
    }
    Ok(seen)
}

/// Cases of the table, under each policy that changes a packet.
#[test]
fn what_is_done_to_every_case() {
    let mut seen = [0; 4];
    for case in all() {
        let of_case = check_all(&case.frame, case.link, &case.keys.ring());
        let of_case = of_case.unwrap_or_else(|wrong| panic!("{}: {wrong}", case.name));
        seen.iter_mut().zip(of_case).for_each(|(sum, more)| *sum += more);
    }
    assert!(seen[Verdict::Rewrite.index()] > 20 && seen[Verdict::Hide.index()] > 200, "{seen:?}");
}

proptest! {
    #![proptest_config(config())]

    /// Hiding yields the packet of a client without Fast Open, byte for byte.
    #[test]
    fn what_is_hidden_was_never_there(ip in any_tagged_ip(), pieces in any_pieces(), data in vec(any::<u8>(), 0..70)) {
        let mut frame = with_options(&ip, &pieces, false).data(&data).build();
        let expected = with_options(&ip, &pieces, true).data(&data).build();
        let tcp = tcp_of(&frame);
        rewrite::hide(&mut frame[..], tcp);
        prop_assert_eq!(&frame, &expected);
        let segment = parse(&frame[..], LinkLayer::Ethernet).expect("it is whole").expect("it is a SYN");
        prop_assert_eq!(segment.fast_open, FastOpen::Absent);
    }

    /// A clamp yields the packet of a client with that window, byte for byte.
    #[test]
    fn a_window_is_cut(ip in any_tagged_ip(), pieces in any_pieces(), window: u16, most: u16, data in vec(any::<u8>(), 0..70)) {
        let syn = |window| with_options(&ip, &pieces, false).window(window).data(&data).build();
        let mut frame = syn(window);
        let tcp = tcp_of(&frame);
        prop_assert_eq!(rewrite::window(&frame[..], tcp), Some(window));
        rewrite::clamp(&mut frame[..], tcp, most);
        prop_assert_eq!(&frame, &syn(most));
    }

    /// Random frames, right or spoilt.
    #[test]
    fn what_is_done_to_any_frame(frame in prop_oneof![random::frame().boxed(), random::spoilt_frame().boxed()]) {
        prop_assert_eq!(check_all(&frame, LinkLayer::Ethernet, &keys::ring()).err(), None);
    }

    /// The result is the packet of a sender with the new cookie, byte for byte.
    #[test]
    fn a_right_checksum_stays_right(
        ip in any_ip(),
        before in 0..=28_usize,
        kind in any_kind(),
        (old, new) in (any_cookie(), any_cookie()),
        data in vec(any::<u8>(), 0..70),
    ) {
        let place = 20 + before + match kind { Kind::FastOpen => 2, Kind::Experimental => 4 };
        let input = segment(ip.clone(), before, kind, old, &data);
        prop_assert_eq!(&input[place..place + 8], &old);
        prop_assert_eq!(translated(&input, place, new), segment(ip, before, kind, new, &data));
    }

    /// The sum over all bytes stays, for any segment, place and checksum. So a wrong checksum stays wrong by the same
    /// difference, and the kernel drops the packet.
    #[test]
    fn the_sum_over_all_is_what_it_was(
        input in vec(any::<u8>(), 28..100),
        place in any::<Index>(),
        check in prop_oneof![any::<u16>(), Just(0), Just(0xffff), Just(1), Just(0xfffe)],
        (old, new) in (any_cookie(), any_cookie()),
    ) {
        let mut input = input;
        let place = 20 + place.index(input.len() - 27);
        input[place..place + 8].copy_from_slice(&old);
        input[CHECKSUM].copy_from_slice(&check.to_be_bytes());
        let output = translated(&input, place, new);
        prop_assert_eq!(remainder(&output), remainder(&input));
    }

    /// A change and its reversal. Of the two forms of zero, the sum yields 0x0000.
    #[test]
    fn a_change_can_be_reversed(check: u16, old in any_cookie(), new in any_cookie(), odd: bool) {
        let [old, new] = [old, new].map(u64::from_le_bytes);
        let there = rewrite::checksum(check, old, new, odd);
        let back = rewrite::checksum(there, new, old, odd);
        prop_assert_eq!(back % 0xffff, check % 0xffff);
        prop_assert_eq!(rewrite::checksum(check, old, old, odd) % 0xffff, check % 0xffff);
    }
}

/// Correction of every checksum, with many carries. The result is never off by one, as with RFC 1141 (RFC 1624, section
/// 5).
#[test]
fn every_checksum_is_corrected() {
    let words = [0, u64::MAX, 1, 0xffff, 0xffff_0000_0000_0000, 0x0102_0304_0506_0708, 0x8000_7fff_0000_0001];
    let mut segment = [0; 40];
    for (old, new) in words.iter().flat_map(|old| words.map(|new| (*old, new))) {
        for (odd, place) in [(false, 22), (true, 23)] {
            // This is the sum of all but the checksum. Each checksum is the right one for some rest of the packet.
            segment[place..place + 8].copy_from_slice(&old.to_le_bytes());
            let (was, mut changed) = (checksum(&segment), segment);
            changed[place..place + 8].copy_from_slice(&new.to_le_bytes());
            let is = checksum(&changed);
            for check in 0..=u16::MAX {
                let got = rewrite::checksum(check, old, new, odd);
                // The change is is - was, modulo 0xffff as in one's complement.
                let change = u32::from(is) + 0xffff - u32::from(was);
                let expected = (u32::from(u16::from_be_bytes(check.to_le_bytes())) + change) % 0xffff;
                assert_eq!(
                    u32::from(u16::from_be_bytes(got.to_le_bytes())) % 0xffff,
                    expected,
                    "{check:04x}"
                );
            }
        }
    }
}

/// RFC 1624, section 4: if 0x5555 becomes 0x3285, the checksum 0xdd2f becomes 0x0000. (RFC 1141 yields 0xffff.)
#[test]
fn the_example_of_the_rfc() {
    let at_any_place = [0, 16, 32, 48];
    for shift in at_any_place {
        let (old, new) = (0x5555_u64 << shift, 0x3285_u64 << shift);
        assert_eq!(rewrite::checksum(0xdd2f, old, new, false), 0);
    }
}
