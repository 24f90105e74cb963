//! A packet's journey on the host: the steps of the program, in its order.

use std::net::IpAddr;

use tfo_common::{
    class::{Class, Classified, Unlimited, classify_at},
    cookie::ExpandedKey,
    counters::{Cell, Counters},
    description::Description,
    keyring::{CURRENT, KeyRing},
    parse::{LinkLayer, parse, unfollowed},
    policy::{Decision, Facts, Guard, Policy, decide},
    rewrite,
    segment::{Addresses, Family, FastOpen, Segment},
    service::OTHER,
    verdict::Verdict,
};

use crate::{keys::TestKey, oracle, packet::checksum};

/// Returns what the program counts for `frame` under `policy`, without the program. The guards of the policy must be
/// those that keep no state.
pub fn count(frame: &[u8], link: LinkLayer, policy: &Policy, ring: &KeyRing) -> Counters {
    let mut cell = Cell::EMPTY;
    count_in(&mut cell, frame, link, policy, ring);
    cell.counters()
}

/// Counts `frame` in `cell`, as [`count`] does. Returns whether it is a signed SYN that would have been changed if it were
/// not signed.
pub fn count_in(cell: &mut Cell, frame: &[u8], link: LinkLayer, policy: &Policy, ring: &KeyRing) -> bool {
    match parse(frame, link) {
        Ok(Some(segment)) => {
            let found = classify_at(&segment, ring, policy.portable, Unlimited);
            let (decision, is_spared) = decision(frame, &segment, policy, ring, found);
            cell.count_syn(&segment, found, decision.verdict, ring);
            for (place, guard) in Guard::ALL.iter().enumerate() {
                cell.guards[place].acted += u64::from(decision.guard == Some(*guard));
                cell.guards[place].would += u64::from(decision.would >> place & 1);
            }
            is_spared
        }
        Ok(None) => false,
        Err(fault) => {
            let mut described = Description::default();
            described.set_fault(fault);
            if policy.has(Policy::DROPS_UNFOLLOWED) && unfollowed(frame, link).is_some() {
                described.set_unfollowed(OTHER, true);
            }
            cell.count_fault(&described);
            false
        }
    }
}

/// Returns the decision on a SYN, and whether it has been taken back since the SYN is signed.
fn decision(
    frame: &[u8],
    segment: &Segment,
    policy: &Policy,
    ring: &KeyRing,
    Classified { class, is_portable, .. }: Classified,
) -> (Decision, bool) {
    let mut described = Description::default();
    described.set_syn(segment, class);
    let syn = Syn { frame, segment: *segment, policy, ring, is_portable };
    described.set_decision(decide(policy, class, syn), OTHER);
    let is_spared = described.spare_signed();
    (described.decision(), is_spared)
}

/// Facts for the guards that keep no state.
struct Syn<'a> {
    frame: &'a [u8],
    segment: Segment,
    policy: &'a Policy,
    ring: &'a KeyRing,
    is_portable: bool,
}

impl Facts for Syn<'_> {
    fn has_translation(&self) -> bool {
        self.ring.translation().is_some()
    }

    fn is_portable(&self) -> bool {
        self.is_portable
    }

    fn may_be_hidden(&self) -> bool {
        false
    }

    fn needs_no_cookie(&self) -> bool {
        false
    }

    fn triggers(&mut self, guard: Guard) -> bool {
        match guard {
            Guard::Hide => false,
            Guard::Clamp => {
                let most = self.policy.clamp * u64::from(self.segment.data_len);
                u64::from(window(&self.frame[self.segment.tcp as usize..])) > most
            }
            Guard::Once | Guard::Fair | Guard::Shed | Guard::Answer => {
                panic!("{guard} remembers: that is not known here")
            }
        }
    }
}

/// Returns what the program makes of `frame`, by the functions of which the program consists. [`check`] tests the
/// result independently.
pub fn carry_out(frame: &[u8], link: LinkLayer, policy: &Policy, ring: &KeyRing) -> Vec<u8> {
    let mut out = frame.to_vec();
    let Ok(Some(segment)) = parse(frame, link) else { return out };
    let found = classify_at(&segment, ring, policy.portable, Unlimited);
    let (decision, _) = decision(frame, &segment, policy, ring, found);
    let tcp = segment.tcp as usize;
    if decision.clamps {
        rewrite::clamp(&mut out[..], tcp, policy.max_window(segment.data_len));
    }
    match (decision.verdict, translation(found.class, ring)) {
        (Verdict::Rewrite, Some(key)) => {
            rewrite::translate(&mut out[..], &segment, key.cookie(&segment.addresses));
        }
        (Verdict::Hide, _) => rewrite::hide(&mut out[..], tcp),
        (Verdict::Pass | Verdict::Rewrite | Verdict::Drop | Verdict::Answer, _) => {}
    }
    out
}

/// Returns the key into whose cookie one of `class` is translated. The kernel need not answer a portable cookie of the current
/// key with a fresh one.
fn translation(class: Class, ring: &KeyRing) -> Option<&ExpandedKey> {
    if class == Class::CookieCurrent { Some(&ring.slots[CURRENT]) } else { ring.translation() }
}

/// Returns the window of a TCP header.
fn window(tcp: &[u8]) -> u16 {
    u16::from_be_bytes([tcp[14], tcp[15]])
}

/// Checks that `out` is what the program must make of `frame` under `policy`, whose guards keep no state. Cookie,
/// options and window are compared with those that the harness makes. The checksum must be as right or as wrong as
/// before, and all other bytes unchanged. A signed SYN must not be changed at all. Returns the verdict, or the difference as text.
pub fn check(
    frame: &[u8],
    out: &[u8],
    link: LinkLayer,
    policy: &Policy,
    ring: &KeyRing,
) -> Result<Verdict, String> {
    let unchanged =
        |verdict| if out == frame { Ok(verdict) } else { Err("the frame was changed".to_owned()) };
    let Ok(Some(segment)) = parse(frame, link) else { return unchanged(Verdict::Pass) };
    if matches!(oracle::reference(frame, link), Ok(Some(segment)) if segment.is_signed) {
        return unchanged(Verdict::Pass);
    }
    let Classified { class, is_portable, .. } = classify_at(&segment, ring, policy.portable, Unlimited);
    let acts = |guard| policy.with(guard, true) == *policy;
    let translates = (class == Class::CookieRetired || is_portable) && policy.has(Policy::TRANSLATES);
    let key = translation(class, ring).filter(|_| translates);
    let is_kernels = matches!(class, Class::CookieCurrent | Class::CookieBackup) && !is_portable;
    let is_good = is_kernels || key.is_some();
    let is_hidden = (acts(Guard::Hide) || policy.has(Policy::HIDDEN_SERVICE | Policy::HIDDEN_ALL))
        && !matches!(class, Class::PlainSyn | Class::OptionIgnored);

    let mut expected = frame.to_vec();
    let tcp = segment.tcp as usize;
    let verdict = match (segment.fast_open, key) {
        _ if is_hidden => {
            hide(&mut expected[tcp..]);
            Verdict::Hide
        }
        (FastOpen::Cookie(cookie), Some(key)) => {
            let new = cookie_of(TestKey(key.key().to_words()), &segment.addresses);
            expected[tcp + cookie.offset as usize..][..8].copy_from_slice(&new);
            Verdict::Rewrite
        }
        (_, Some(_)) => return Err("no cookie, but a retired one".into()),
        (_, None) => Verdict::Pass,
    };
    if !is_hidden && is_good && acts(Guard::Clamp) {
        let most = policy.clamp * u64::from(segment.data_len);
        let window = u64::from(window(&frame[tcp..])).min(most) as u16;
        expected[tcp + 14..tcp + 16].copy_from_slice(&window.to_be_bytes());
    }
    if expected == frame {
        return unchanged(verdict);
    }
    if out.len() != frame.len() {
        return Err(format!("{} bytes have become {}", frame.len(), out.len()));
    }
    let sum = tcp + 16..tcp + 18;
    expected[sum.clone()].copy_from_slice(&out[sum]);
    if out != expected {
        return Err("not what was to be changed, or not only that, was changed".into());
    }
    // The checksum is computed in full here, not corrected. Modulo 0xffff, both forms of zero are equal.
    if checksum(&out[tcp..]) % 0xffff != checksum(&frame[tcp..]) % 0xffff {
        return Err("the checksum does not go with what was changed".into());
    }
    Ok(verdict)
}

/// Overwrites with no-operations each Fast Open option that the kernel's walk through this TCP header finds. The
/// checksum stays.
pub fn hide(tcp: &mut [u8]) {
    let area = 20..usize::from(tcp[12] >> 4) * 4;
    let mut rest = &mut tcp[area];
    loop {
        let len = match &*rest {
            [1, ..] => 1,
            [kind, len, ..] if *kind != 0 && *len >= 2 && usize::from(*len) <= rest.len() => {
                usize::from(*len)
            }
            _ => break,
        };
        let (option, behind) = rest.split_at_mut(len);
        if let [34, ..] | [254, _, 0xf9, 0x89, ..] = option {
            option.fill(1);
        }
        rest = behind;
    }
}

/// Returns the cookie that `key` makes for `addresses`, by the code of the harness.
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
