//! Cookies of a real kernel, and comparison with another implementation of SipHash.

use std::{hash::Hasher, net::IpAddr};

use proptest::prelude::*;
use siphasher::sip::SipHasher24;
use tfo_common::{
    class::{Class, Classified, Unlimited, classify},
    cookie,
    keyring::{Key, KeyRing, SLOTS},
    segment::{Addresses, Cookie, FastOpen, Segment},
};
use tfo_tests::keys::TestKey;

fn addresses(source: IpAddr, destination: IpAddr) -> Addresses {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&source.octets());
            bytes[4..].copy_from_slice(&destination.octets());
            Addresses::from_ipv4(bytes)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut bytes = [0; 32];
            bytes[..16].copy_from_slice(&source.octets());
            bytes[16..].copy_from_slice(&destination.octets());
            Addresses::from_ipv6(bytes)
        }
        _ => panic!("{source} and {destination} are not of one family"),
    }
}

/// Parses the sysctl's text into four words.
fn words(text: &str) -> [u32; 4] {
    let words: Vec<u32> =
        text.split('-').map(|word| u32::from_str_radix(word, 16).expect("a hexadecimal word")).collect();
    words.try_into().expect("four words")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//= RFC 7413 section 4.1.2
//# The cookie authenticates the client's (source) IP address of the SYN
//# packet.
#[test]
fn cookies_of_a_real_kernel() {
    for (key, source, destination, expected) in [
        ("a1a1a1a1-b2b2b2b2-c3c3c3c3-d4d4d4d4", "192.0.2.1", "192.168.0.1", "3021b9d889017eeb"),
        ("a1a1a1a1-b2b2b2b2-c3c3c3c3-d4d4d4d4", "fd3d:fa7b:d17d::1", "fd3d:0a0b:17d6::1", "c1d1e9742a47a9bc"),
        ("a0bf63f7-ed803d81-cd641d30-cebc4a90", "10.248.0.2", "192.168.0.2", "00abaaabe8e954c2"),
    ] {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        let key = TestKey(words(key));
        let ours = cookie::make(&key.key(), &addresses(source, destination)).to_le_bytes();
        assert_eq!(hex(&ours), expected, "{source} to {destination}");
        assert_eq!(
            hex(&key.cookie(source, destination)),
            expected,
            "the harness's own, {source} to {destination}"
        );
    }
}

#[test]
fn a_key_reads_back_as_it_was_written() {
    for text in ["a0bf63f7-ed803d81-cd641d30-cebc4a90", "00000000-00000000-00000000-00000001"] {
        let key = Key::from_words(words(text));
        assert_eq!(TestKey(key.to_words()).to_string(), text);
        assert!(!key.is_zero());
    }
    assert!(Key::from_words([0; 4]).is_zero());
    assert!(!Key::from_words([0, 0, 1, 0]).is_zero() && !Key::from_words([0, 1, 0, 0]).is_zero());
}

#[test]
fn a_fingerprint_is_the_hash_of_its_label() {
    let key = TestKey([1, 2, 3, 4]);
    let bytes: Vec<u8> = key.0.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut hasher = SipHasher24::new_with_key(bytes.as_slice().try_into().expect("16 bytes"));
    hasher.write(b"tfo fingerprint\0");
    assert_eq!(cookie::fingerprint(&key.key()), hasher.finish());
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases * 16, failure_persistence: None, ..default }
}

/// Generates two addresses of one family.
fn any_addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<[[u8; 4]; 2]>().prop_map(|[source, destination]| (source.into(), destination.into())),
        any::<[[u8; 16]; 2]>().prop_map(|[source, destination]| (source.into(), destination.into())),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn cookies_agree_with_siphasher(key: [u32; 4], (source, destination) in any_addresses()) {
        let key = TestKey(key);
        let ours = cookie::make(&key.key(), &addresses(source, destination));
        prop_assert_eq!(ours.to_le_bytes(), key.cookie(source, destination));
    }

    /// The class follows from the slot that holds the cookie's key. A key in no slot is unknown.
    #[test]
    fn the_slot_of_the_key_is_the_class(
        keys: [[u32; 4]; SLOTS],
        slot in 0..SLOTS,
        held: [bool; SLOTS],
        (source, destination) in any_addresses(),
    ) {
        let mut ring = KeyRing::EMPTY;
        for (slot, key) in keys.iter().enumerate() {
            ring.set(slot, held[slot].then(|| TestKey(*key).key()));
        }
        let cookie = TestKey(keys[slot]).cookie(source, destination);
        let addresses = addresses(source, destination);
        let fast_open = FastOpen::Cookie(Cookie { value: u64::from_le_bytes(cookie), offset: 22 });
        let segment = Segment { addresses, fast_open, is_signed: false, is_fragment: false, tcp: 34, data_len: 0 };
        let found = classify(&segment, &ring, Unlimited);
        let class = match slot {
            _ if !held[slot] => Class::CookieUnknown,
            0 => Class::CookieCurrent,
            1 => Class::CookieBackup,
            _ => Class::CookieRetired,
        };
        prop_assert_eq!(found, Classified { class, slot: held[slot].then_some(slot), is_portable: false });
    }
}
