//! Random SYNs under random keys and policies: their class, the decision and the counts.

use std::net::IpAddr;

use arbitrary::{Arbitrary, Unstructured};
use tfo_common::{
    class::{Class, Unlimited, classify, classify_at},
    counters::{Cell, GuardCounts},
    description::Description,
    keyring::{KeyRing, SLOTS},
    policy::{Facts, Guard, decide},
    segment::{Addresses, Cookie, FastOpen, Segment},
};

use crate::{
    cases::Expected,
    guards::{Open, ServiceSettings, Setting},
    keys::{TestKey, portable},
};

/// Number of distinct keys. A slot with this number or more is empty.
const KEYS: u8 = 14;

#[derive(Arbitrary)]
struct Input {
    /// Number of the key in each slot. A key may be in several slots.
    slots: [u8; SLOTS],
    accelerates: bool,
    ends: Ends,
    option: Option_,
    tcp: u16,
    data_len: u32,
    /// Setting of each guard: off, dry run or acting.
    guards: [u8; Guard::COUNT],
    /// Bits of the guards that trip, by [`Guard`] index.
    triggers: u8,
    hidden: bool,
    hides_sources: bool,
    answers: bool,
    drops: bool,
    all_hidden: bool,
    is_signed: bool,
    needs_no_cookie: bool,
    /// Tag of the portable cookies of the service; 0 for none.
    tag: u8,
    /// Whether the SYN brings a portable cookie.
    is_portable: bool,
}

/// Facts of an input that guards read.
struct Guards {
    has_translation: bool,
    needs_no_cookie: bool,
    is_portable: bool,
    triggers: u8,
}

impl Facts for Guards {
    fn has_translation(&self) -> bool {
        self.has_translation
    }

    fn is_portable(&self) -> bool {
        self.is_portable
    }

    fn may_be_hidden(&self) -> bool {
        panic!("only the quick decision asks")
    }

    fn needs_no_cookie(&self) -> bool {
        self.needs_no_cookie
    }

    fn triggers(&mut self, guard: Guard) -> bool {
        self.triggers >> guard.index() & 1 == 1
    }
}

#[derive(Arbitrary)]
enum Ends {
    V4([[u8; 4]; 2]),
    V6([[u8; 16]; 2]),
}

/// Fast Open option of an input.
#[derive(Arbitrary)]
enum Option_ {
    Absent,
    Ignored,
    Request,
    BadLength,
    /// Cookie of the key with this number, with some bits flipped.
    Of {
        key: u8,
        flip: u64,
        offset: u8,
    },
}

/// Returns the n-th key of a series.
fn key(n: u8) -> TestKey {
    let word = 0x0101_0101 * u32::from(n);
    TestKey([word, !word, word ^ 0x1234_5678, 7])
}

/// Checks one SYN.
pub fn check(data: &[u8]) {
    // Missing bytes at the end are read as zeros.
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) else { return };
    let (source, destination, addresses): (IpAddr, IpAddr, _) = match input.ends {
        Ends::V4([from, to]) => {
            let bytes = [from, to].concat().try_into().expect("eight bytes");
            (from.into(), to.into(), Addresses::from_ipv4(bytes))
        }
        Ends::V6([from, to]) => {
            let bytes = [from, to].concat().try_into().expect("32 bytes");
            (from.into(), to.into(), Addresses::from_ipv6(bytes))
        }
    };
    // These cookies are made with another implementation of SipHash.
    let cookie_of = |n| u64::from_le_bytes(key(n).cookie(source, destination));
    let held = input.slots.map(|n| (n < KEYS).then_some(n));
    let mut ring = KeyRing::EMPTY;
    for (slot, n) in held.iter().enumerate() {
        ring.set(slot, n.map(|n| key(n).key()));
    }

    let tag = u64::from(input.tag);
    let portable_of = |n| u64::from_le_bytes(portable(key(n), tag, source));
    let (fast_open, class, made_by) = match input.option {
        Option_::Absent => (FastOpen::Absent, Class::PlainSyn, None),
        Option_::Ignored => (FastOpen::Ignored, Class::OptionIgnored, None),
        Option_::Request => (FastOpen::Request, Class::CookieRequest, None),
        Option_::BadLength => (FastOpen::BadLength, Class::CookieBadLength, None),
        Option_::Of { key, flip, offset } => {
            let value = if input.is_portable { portable_of(key) } else { cookie_of(key) } ^ flip;
            let portable = (2..SLOTS).map(|slot| (slot, true));
            let later = portable.chain((2..SLOTS).map(|slot| (slot, false)));
            let order = [(0, true), (0, false), (1, false), (1, true)].into_iter().chain(later);
            let made_by = order.into_iter().find(|(slot, is_portable)| match (held[*slot], is_portable) {
                (None, _) => false,
                (Some(n), false) => cookie_of(n) == value,
                (Some(n), true) => tag != 0 && portable_of(n) == value,
            });
            let class = match made_by.map(|(slot, _)| slot) {
                None => Class::CookieUnknown,
                Some(0) => Class::CookieCurrent,
                Some(1) => Class::CookieBackup,
                Some(_) => Class::CookieRetired,
            };
            (FastOpen::Cookie(Cookie { value, offset: offset.into() }), class, made_by)
        }
    };
    let (tcp, data_len, is_signed) = (input.tcp.into(), input.data_len, input.is_signed);
    let segment = Segment { addresses, fast_open, is_signed, is_fragment: false, tcp, data_len };
    let found = classify_at(&segment, &ring, tag, Unlimited);
    let slot = made_by.map(|(slot, _)| slot);
    let is_portable = made_by.is_some_and(|(_, is_portable)| is_portable);
    assert_eq!((found.class, found.slot, found.is_portable), (class, slot, is_portable));

    let kernels = held[1].or(held[0]);
    let service_settings = ServiceSettings {
        guards: input.guards.map(|setting| match setting % 3 {
            0 => Setting::Off,
            1 => Setting::Dry,
            _ => Setting::Acts,
        }),
        translates: input.accelerates,
        hidden: input.hidden,
        all_hidden: input.all_hidden,
        hides_sources: input.hides_sources,
        answers: input.answers,
        drops: input.drops,
    };
    let has_translation = ring.translation().is_some();
    let mut described = Description::default();
    described.set_syn(&segment, found.class);
    described.set_no_cookie(input.needs_no_cookie);
    let needs_no_cookie = described.no_cookie != 0;
    let facts = Guards { has_translation, needs_no_cookie, is_portable, triggers: input.triggers };
    let open = match (input.needs_no_cookie, data_len > 0) {
        (false, _) => Open::No,
        (true, false) => Open::WithoutData,
        (true, true) => Open::WithData,
    };
    let triggers = |guard: Guard| input.triggers >> guard.index() & 1 == 1;
    // Like the cookie of a retired key, a portable one is good in translation only.
    let judged_as = if is_portable { Class::CookieRetired } else { class };
    let expected = service_settings.expected(judged_as, open, kernels.is_some(), triggers);
    let decision = decide(&service_settings.policy(), found.class, facts);
    let verdict = decision.verdict;
    assert_eq!((verdict, decision.clamps), (expected.verdict, expected.clamps));
    assert_eq!((decision.guard, decision.would), (expected.guard, expected.would));

    described.set_cookie(&segment, found, &ring);
    described.set_decision(decision, 1);
    let (expected, is_spared) = if is_signed { expected.signed() } else { (expected, false) };
    assert_eq!(described.spare_signed(), is_spared);
    described.drop_served();
    let expected = expected.last(open);
    let (verdict, clamps, service) = (expected.verdict, expected.clamps, 1);
    assert_eq!((described.decision().verdict, described.decision().clamps), (verdict, clamps));
    assert_eq!(described.service, service);

    // The description is counted like the segment itself.
    let mut cell = Cell::EMPTY;
    cell.count_syn(&segment, found, verdict, &ring);
    let counted =
        Expected::Syn { family: addresses.family, class, slot, data_len: segment.data_len as usize };
    let mut counted = counted.counted(verdict, &ring);
    assert_eq!(cell.counters(), counted);
    let mut cell = Cell::EMPTY;
    cell.count_described(&described);
    for guard in Guard::ALL {
        counted.guards[guard.index()] = GuardCounts {
            acted: u64::from(expected.guard == Some(*guard)),
            would: u64::from(expected.would >> guard.index() & 1),
        };
    }
    assert_eq!(cell.counters(), counted);

    // Cookies are translated into those of the kernel's backup key, or else of its current key.
    let made = ring.translation().map(|key| key.cookie(&addresses));
    assert_eq!(made, kernels.map(cookie_of));
    if let Some(value) = made {
        let translated = FastOpen::Cookie(Cookie { value, offset: 0 });
        let class = classify(&Segment { fast_open: translated, ..segment }, &ring, Unlimited).class;
        assert!(matches!(class, Class::CookieCurrent | Class::CookieBackup), "{class}");
    }
}
