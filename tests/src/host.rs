//! The packet's journey on the host: the verbs in the order in which the program has them.

use std::net::IpAddr;

use tfo_common::{
    class::{Class, classify},
    counters::{Cell, Counters},
    keyring::KeyRing,
    parse::{LinkLayer, parse},
    policy::{Policy, Unguarded, decide},
    segment::{Addresses, Family, FastOpen},
    verdict::{Mode, Verdict},
};

use crate::{keys::TestKey, packet::checksum};

/// What the program counts for `frame` in `mode`, without the program.
pub fn count(frame: &[u8], link: LinkLayer, mode: Mode, ring: &KeyRing) -> Counters {
    let mut cell = Cell::EMPTY;
    count_in(&mut cell, frame, link, mode, ring);
    cell.counters()
}

/// The same, counted in `cell`.
pub fn count_in(cell: &mut Cell, frame: &[u8], link: LinkLayer, mode: Mode, ring: &KeyRing) {
    match parse(frame, link) {
        Ok(Some(segment)) => {
            let found = classify(&segment, ring);
            let policy = Policy::of_mode(mode);
            let verdict = decide(&policy, found.class, Unguarded(ring.translation().is_some())).verdict();
            cell.count_syn(&segment, found, verdict, ring);
        }
        Ok(None) => {}
        Err(fault) => {
            cell.count_fault(fault);
        }
    }
}

/// Whether `out` is what must have become of `frame`: the cookie of a key that the kernel does not hold is that of
/// another, made by the harness, under a checksum that is as right or as wrong as it was; all else came out as it came.
/// Says what is not so.
pub fn check(
    frame: &[u8],
    out: &[u8],
    link: LinkLayer,
    mode: Mode,
    ring: &KeyRing,
) -> Result<Verdict, String> {
    let unchanged = || if out == frame { Ok(Verdict::Pass) } else { Err("the frame was changed".to_owned()) };
    let segment = parse(frame, link).ok().flatten();
    let retired = segment.filter(|segment| classify(segment, ring).class == Class::CookieRetired);
    let (Mode::Accelerate | Mode::Shield, Some(segment), Some(key)) = (mode, retired, ring.translation())
    else {
        return unchanged();
    };
    let FastOpen::Cookie(cookie) = segment.fast_open else {
        return Err("no cookie, but a retired one".into());
    };
    if out.len() != frame.len() {
        return Err(format!("{} bytes have become {}", frame.len(), out.len()));
    }
    let tcp = segment.tcp as usize;
    let (place, sum) = (tcp + cookie.offset as usize, tcp + 16);
    let mut expected = frame.to_vec();
    expected[place..place + 8].copy_from_slice(&cookie_of(TestKey(key.key().to_words()), &segment.addresses));
    expected[sum..sum + 2].copy_from_slice(&out[sum..sum + 2]);
    if out != expected {
        return Err("not the cookie, or not only the cookie, was changed".into());
    }
    // In full, and not by the difference; zero may be written in two ways.
    if checksum(&out[tcp..]) % 0xffff != checksum(&frame[tcp..]) % 0xffff {
        return Err("the checksum does not go with the new cookie".into());
    }
    Ok(Verdict::Rewrite)
}

/// The cookie that `key` makes for `addresses`, by the harness.
fn cookie_of(key: TestKey, addresses: &Addresses) -> [u8; 8] {
    let bytes = addresses.words.map(u64::to_le_bytes).concat();
    let [source, destination] = [0, 1].map(|place| match addresses.family {
        Family::Ipv4 => IpAddr::from(<[u8; 4]>::try_from(&bytes[place * 4..][..4]).expect("four bytes")),
        Family::Ipv6 => {
            IpAddr::from(<[u8; 16]>::try_from(&bytes[place * 16..][..16]).expect("sixteen bytes"))
        }
    });
    key.cookie(source, destination)
}
