//! A cookie is translated: what decides it, and the checksum that goes with it.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::{collection::vec, prelude::*, sample::Index};
use tfo_common::{
    class::Class,
    policy::{Policy, Unguarded, decide},
    rewrite,
    verdict::{Mode, Verdict},
};
use tfo_tests::packet::{Carry, Ip, Tcp, checksum, eth};

#[test]
fn only_what_the_kernel_refuses_is_translated_and_only_on_request() {
    for mode in Mode::ALL {
        for class in Class::ALL {
            for has_translation in [false, true] {
                let rewrites = *mode != Mode::Observe && *class == Class::CookieRetired;
                let expected = if rewrites && has_translation { Verdict::Rewrite } else { Verdict::Pass };
                let decision = decide(&Policy::of_mode(*mode), *class, Unguarded(has_translation));
                assert_eq!(decision.verdict(), expected, "{mode}, {class}, {has_translation}");
                assert!(decision.is_silent() && !decision.clamps(), "{mode}, {class}, {has_translation}");
            }
        }
    }
}

/// Where a TCP header has its checksum.
const CHECKSUM: std::ops::Range<usize> = 16..18;

/// `segment` with `new` at `place` and the checksum corrected, not computed.
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

/// A SYN's segment with `cookie` in it, by the packet builder, which sums up all of it.
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

/// Eight bytes; often such as carry far, or not at all.
fn any_cookie() -> impl Strategy<Value = [u8; 8]> {
    let extreme =
        any::<[u8; 8]>().prop_map(|bytes| bytes.map(|byte| [0, 0xff, 1, 0x80][usize::from(byte % 4)]));
    prop_oneof![any::<[u8; 8]>(), extreme, any::<u8>().prop_map(|byte| [byte; 8])]
}

/// The sum that a receiver makes of a segment: 0 where the checksum is right (0xffff, which stands for the same, is
/// never the complement of a sum that is not all zeros).
fn remainder(bytes: &[u8]) -> u16 {
    checksum(bytes) % 0xffff
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases * 16, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    /// The very bytes that a sender with the new cookie would have sent.
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

    /// Whatever the segment, wherever the bytes stand, and whether or not its checksum is right: the sum over all of it
    /// is what it was. A wrong one stays wrong by as much, for the kernel to drop.
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

    /// There and back again. Of the two ways to write zero, the sum makes 0x0000.
    #[test]
    fn a_way_back_leads_home(check: u16, old in any_cookie(), new in any_cookie(), odd: bool) {
        let [old, new] = [old, new].map(u64::from_le_bytes);
        let there = rewrite::checksum(check, old, new, odd);
        let back = rewrite::checksum(there, new, old, odd);
        prop_assert_eq!(back % 0xffff, check % 0xffff);
        prop_assert_eq!(rewrite::checksum(check, old, old, odd) % 0xffff, check % 0xffff);
    }
}

/// Every checksum there is, over changes that carry far: it never misses by one, as RFC 1141's way does (RFC 1624, 5).
#[test]
fn every_checksum_is_corrected() {
    let words = [0, u64::MAX, 1, 0xffff, 0xffff_0000_0000_0000, 0x0102_0304_0506_0708, 0x8000_7fff_0000_0001];
    let mut segment = [0; 40];
    for (old, new) in words.iter().flat_map(|old| words.map(|new| (*old, new))) {
        for (odd, place) in [(false, 22), (true, 23)] {
            // The sum of all but the checksum, of which each checksum is the right one for some other part.
            segment[place..place + 8].copy_from_slice(&old.to_le_bytes());
            let (was, mut changed) = (checksum(&segment), segment);
            changed[place..place + 8].copy_from_slice(&new.to_le_bytes());
            let is = checksum(&changed);
            for check in 0..=u16::MAX {
                let got = rewrite::checksum(check, old, new, odd);
                // Modulo 0xffff, where one's complement sums live; is - was is what the change makes.
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

/// RFC 1624, section 4: 0x5555 becomes 0x3285 in a header whose checksum is 0xdd2f, which becomes 0x0000. (By RFC 1141
/// it would be 0xffff.)
#[test]
fn the_example_of_the_rfc() {
    let at_any_place = [0, 16, 32, 48];
    for shift in at_any_place {
        let (old, new) = (0x5555_u64 << shift, 0x3285_u64 << shift);
        assert_eq!(rewrite::checksum(0xdd2f, old, new, false), 0);
    }
}
