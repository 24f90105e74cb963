//! Data of SYNs: what makes two requests the same.

use proptest::prelude::*;
use tfo_common::{
    bytes::Bytes as _,
    parse::{LinkLayer, parse},
    policy::{Policy, decide_good},
    request::{COMPARED, Request, request_tag},
    segment::Segment,
    table::{Seed, Tag, syn_tag},
};
use tfo_tests::{
    cases::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6},
    packet::{Carry as _, Ip, MORE_FRAGMENTS, Tcp, eth},
};

/// Service of the requests.
const SERVICE: u32 = 3;

fn segment(frame: &[u8]) -> Segment {
    parse(frame, LinkLayer::Ethernet).expect("it is whole").expect("it is a SYN")
}

fn tag(frame: &[u8], service: u32, seed: &Seed) -> Tag {
    let Segment { addresses, tcp, data_len, .. } = segment(frame);
    request_tag(frame, tcp as usize, &addresses, (service, data_len), |at| seed.word(at))
        .expect("it is whole")
}

/// Returns headers of both families, with and without options.
fn headers() -> [Ip; 5] {
    [
        eth().ipv4(CLIENT_V4, SERVER_V4).into(),
        eth().ipv4(CLIENT_V4, SERVER_V4).options(&[1; 40]).into(),
        eth().vlan(5).ipv4(CLIENT_V4, SERVER_V4).into(),
        eth().ipv6(CLIENT_V6, SERVER_V6).into(),
        eth().ipv6(CLIENT_V6, SERVER_V6).destination_options().into(),
    ]
}

/// Ports, sequence number, options, padding and layers below do not change the tag of the data. Source, service, length and
/// each of the first bytes do.
#[test]
fn the_same_data_of_a_source_is_one_request() {
    let seed = Seed::new(7);
    let bytes: Vec<u8> = (1..=200).collect();
    for len in (1..=80).chain([199]) {
        let data = &bytes[..len];
        for ip in headers() {
            let syn = |ip: &Ip, data: &[u8]| ip.clone().syn().mss(1460).data(data).build();
            let is = tag(&syn(&ip, data), SERVICE, &seed);
            let others: [fn(Tcp) -> Tcp; 5] = [
                |tcp| tcp.ports(1, 2),
                |tcp| tcp.sequence(9),
                |tcp| tcp.nops(36),
                |tcp| tcp.trailer(1),
                |tcp| tcp.linux_options().trailer(46),
            ];
            for (n, other) in others.into_iter().enumerate() {
                let other = other(ip.clone().syn()).data(data).build();
                assert_eq!(tag(&other, SERVICE, &seed), is, "{len} bytes, change {n}");
            }
            assert_ne!(tag(&syn(&ip, data), SERVICE + 1, &seed), is, "another service");
            assert_ne!(tag(&syn(&ip, &bytes[..len + 1]), SERVICE, &seed), is, "one byte more than {len}");
            for changed in 0..len {
                let mut data = data.to_vec();
                data[changed] ^= 0x80;
                let is_same = tag(&syn(&ip, &data), SERVICE, &seed) == is;
                assert_eq!(is_same, changed >= COMPARED, "byte {changed} of {len}");
            }
        }
        let [v4, _, _, v6, _] = headers().map(|ip| tag(&ip.syn().data(data).build(), SERVICE, &seed));
        assert_ne!(v4, v6, "another source");
    }
}

/// A header that promises more data than there is has no tag.
#[test]
fn what_is_not_there_is_not_compared() {
    let frame = eth().ipv4(CLIENT_V4, SERVER_V4).syn().data(b"some data").build();
    let Segment { addresses, tcp, data_len, .. } = segment(&frame);
    let seed = Seed::new(7);
    for missing in 1..=data_len as usize {
        let frame = &frame[..frame.len() - missing];
        assert!(frame.len() >= tcp as usize + 20);
        let tag = request_tag(frame, tcp as usize, &addresses, (SERVICE, data_len), |at| seed.word(at));
        assert_eq!(tag, None, "{missing} bytes are missing");
    }
}

/// The parser tells a SYN whose data may go on in another frame.
#[test]
fn first_fragments_are_told_from_whole_packets() {
    for (ip, is_fragment) in [
        (Ip::from(eth().ipv4(CLIENT_V4, SERVER_V4)), false),
        (eth().ipv4(CLIENT_V4, SERVER_V4).fragment(MORE_FRAGMENTS).into(), true),
        (eth().ipv6(CLIENT_V6, SERVER_V6).atomic_fragment().into(), false),
        (eth().ipv6(CLIENT_V6, SERVER_V6).fragment(0, true).into(), true),
    ] {
        let frame = ip.clone().syn().data(b"some data").build();
        assert_eq!(segment(&frame).is_fragment, is_fragment, "{ip:?}");
    }
}

/// The quick decision leaves a service that compares data to the slow path, where the data is read.
#[test]
fn data_is_not_compared_on_the_fast_path() {
    use tfo_common::policy::{Facts, Guard};
    struct NoReason;
    impl Facts for NoReason {
        fn has_translation(&self) -> bool {
            false
        }

        fn may_be_hidden(&self) -> bool {
            false
        }

        fn needs_no_cookie(&self) -> bool {
            false
        }

        fn triggers(&mut self, _guard: Guard) -> bool {
            false
        }
    }
    for acts in [true, false] {
        let once = Policy::default().with(Guard::Once, acts);
        assert!(decide_good(&once, NoReason, |_| {}));
        let data = Policy { flags: once.flags | Policy::COMPARES_DATA, ..once };
        assert!(!decide_good(&data, NoReason, |_| panic!("it is decided")));
    }
}

proptest! {
    /// Data is remembered for its time. The same SYN repeats nothing.
    #[test]
    fn requests_are_remembered(then in 1..1_u64 << 40, later in prop_oneof![0..10_u64, 0..1_u64 << 20], kept in prop_oneof![0..10_u64, 0..1_u64 << 20], port: u16) {
        let seed = Seed::new(9);
        let of = |port| {
            let frame = eth().ipv4(CLIENT_V4, SERVER_V4).syn().ports(port, 80).build();
            let Segment { addresses, tcp, .. } = segment(&frame);
            syn_tag(&addresses, frame[..].read(tcp as usize).expect("it is whole"), |at| seed.word(at))
        };
        let (one, other) = (of(port), of(!port));
        let request = Request::new(then, one);
        prop_assert_eq!(Request::from_word(request.word()), request);
        prop_assert_eq!(request.is_remembered(then + later, kept), later < kept);
        prop_assert_eq!(request.is_repeated(then + later, kept, other), later < kept);
        prop_assert!(!request.is_repeated(then + later, kept, one));
        prop_assert!(!Request::from_word(0).is_remembered(then, u64::MAX));
        // The seat with the smallest word is the one that is evicted.
        prop_assert!(Request::new(then + 1, other).word() > request.word());
    }
}
