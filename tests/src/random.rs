//! Generators of random frames: mixed forms of the SYNs in the case table, and spoilt ones.

use std::{
    env,
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any},
    prop_oneof,
    sample::{Index, select},
    test_runner::{Config, RngSeed, TestRunner},
};
use tfo_common::parse::LinkLayer;

use crate::{
    keys::{self, STRANGER, TestKey},
    packet::{self, Carry, Eth, Ip, Ipv6, MORE_FRAGMENTS, Tcp, eth, ether_type, flag, protocol},
};

/// Returns a runner for `factor` times as many cases as proptest's default (256), or `long` times as many if
/// TFO_TEST_LONG is set, as `cargo xtask test --long` does.
///
/// Its seed comes from [`seed`].
pub fn runner(what: &str, factor: u32, long: u32) -> TestRunner {
    let default = Config::default();
    let factor = if is_long() { long } else { factor };
    let cases = default.cases * factor;
    let rng_seed = RngSeed::Fixed(seed(&format!("{cases} {what}")));
    TestRunner::new(Config { cases, rng_seed, failure_persistence: None, ..default })
}

/// Returns whether TFO_TEST_LONG is set, as `cargo xtask test --long` does.
pub fn is_long() -> bool {
    env::var_os("TFO_TEST_LONG").is_some()
}

/// Returns the seed in PROPTEST_RNG_SEED, or a new one. It is printed to standard error, which the test harness does
/// not capture, so that a run of `what` can be repeated.
pub fn seed(what: &str) -> u64 {
    let seed = match Config::default().rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => fastrand::u64(..),
    };
    // A closed standard error must not end the test.
    let _ = writeln!(io::stderr(), "{what}: PROPTEST_RNG_SEED={seed}");
    seed
}

/// Generates a frame with a SYN to one of these addresses, port 7413, where a listener gets it. Its TCP options are
/// random. Some SYNs have RST or FIN, or a wrong data offset, so that the listener drops them.
pub fn syn(link: LinkLayer, v4: Ipv4Addr, v6: Ipv6Addr) -> impl Strategy<Value = Vec<u8>> {
    // The clients are in networks of no interface, so that answers take the default route.
    let from_v4 = (any::<u32>(), 0..3_usize).prop_map(move |(host, options)| {
        let client = Ipv4Addr::from(0x0a00_0000 | host >> 8);
        let ip = match link {
            LinkLayer::Ethernet => eth().ipv4(client, v4),
            LinkLayer::Ip => packet::ipv4(client, v4),
        };
        Ip::from(ip.options(&vec![1; options * 4]))
    });
    let from_v6 = (any::<u128>(), 0..3_usize).prop_map(move |(host, units)| {
        let client = Ipv6Addr::from(0x2001_0db8 << 96 | host >> 32);
        let ip = match link {
            LinkLayer::Ethernet => eth().ipv6(client, v6),
            LinkLayer::Ip => packet::ipv6(client, v6),
        };
        Ip::from(if units == 0 { ip } else { ip.options(protocol::DESTINATION, units) })
    });
    let more_flags = flag::PSH | flag::URG | flag::ECE | flag::CWR | flag::AE;
    let flags = prop_oneof![
        4 => Just(flag::SYN),
        4 => any::<u16>().prop_map(move |flags| flag::SYN | flags & more_flags),
        1 => select(vec![flag::SYN | flag::FIN, flag::SYN | flag::RST]),
    ];
    let data = prop_oneof![Just(Vec::new()), bytes(1..100), bytes(1..1400)];
    let words = prop_oneof![12 => Just(None), 1 => (0..16_u8).prop_map(Some)];
    let numbers = (1024..=u16::MAX, any::<u32>(), any::<u16>(), 0..3_usize);
    (prop_oneof![from_v4, from_v6], flags, tcp_options(), data, words, numbers).prop_map(
        |(ip, flags, options, data, words, (port, sequence, window, trailer))| {
            let tcp = options.into_iter().fold(ip.tcp(flags), |tcp, option| option.add_to(tcp));
            let tcp = tcp.ports(port, 7413).sequence(sequence).window(window).data(&data).trailer(trailer);
            words.into_iter().fold(tcp, Tcp::data_offset).build()
        },
    )
}

/// Generates an Ethernet frame with a TCP segment, mostly a SYN. Lengths and offsets are right, TCP options need not
/// be.
pub fn frame() -> impl Strategy<Value = Vec<u8>> {
    segment().prop_map(Tcp::build)
}

/// Generates a frame that is cut, or has a wrong data offset or flipped bits.
pub fn spoilt_frame() -> impl Strategy<Value = Vec<u8>> {
    let segment = prop_oneof![
        2 => segment(),
        1 => (segment(), 0..60_usize).prop_map(|(tcp, len)| tcp.cut(len)),
        1 => (segment(), 0..16_u8).prop_map(|(tcp, words)| tcp.data_offset(words)),
    ];
    let flips = vec((header_byte(), 0..8_u32), 0..4);
    let cut = prop_oneof![3 => Just(None), 1 => any::<Index>().prop_map(Some)];
    (segment, flips, cut).prop_map(|(segment, flips, cut)| {
        let mut frame = segment.build();
        for (byte, bit) in flips {
            let byte = byte % frame.len();
            frame[byte] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len()));
        }
        frame
    })
}

fn segment() -> impl Strategy<Value = Tcp> {
    let ip = prop_oneof![ipv4().boxed(), ipv6().boxed()];
    let data = prop_oneof![Just(Vec::new()), bytes(0..100)];
    let trailer = prop_oneof![3 => Just(0), 1 => 0..50_usize];
    (ip, flags(), tcp_options(), data, trailer).prop_map(|(ip, flags, options, data, trailer)| {
        let tcp = options.into_iter().fold(ip.tcp(flags), |tcp, option| option.add_to(tcp));
        tcp.data(&data).trailer(trailer)
    })
}

/// Generates sixteen random bytes that repeat, which is much cheaper than a strategy for each byte.
fn bytes(len: Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    (len, any::<u128>()).prop_map(|(len, bytes)| bytes.to_ne_bytes().into_iter().cycle().take(len).collect())
}

/// Generates an index that is mostly in the headers.
fn header_byte() -> impl Strategy<Value = usize> {
    prop_oneof![12..100_usize, any::<Index>().prop_map(|byte| byte.index(2000))]
}

fn flags() -> impl Strategy<Value = u16> {
    prop_oneof![6 => Just(flag::SYN), 1 => Just(flag::SYN | flag::ECE | flag::CWR), 1 => 0..=0x1ff_u16]
}

fn link() -> impl Strategy<Value = Eth> {
    let tpid = select(vec![ether_type::VLAN, ether_type::SERVICE_VLAN]);
    let tag = (tpid, any::<u16>());
    // One more tag than is followed.
    let too_many = tag.clone().prop_map(|tag| vec![tag; 366]);
    let tags = prop_oneof![32 => vec(tag.clone(), 0..=2), 8 => vec(tag, 3..=8), 1 => too_many];
    tags.prop_map(|tags| tags.into_iter().fold(eth(), |eth, (tpid, id)| eth.tag(tpid, id)))
}

fn ipv4() -> impl Strategy<Value = Ip> {
    let options = prop_oneof![3 => Just(Vec::new()), 1 => bytes(0..41)];
    let fragment = prop_oneof![8 => Just(0), 1 => Just(MORE_FRAGMENTS), 1 => any::<u16>()];
    let addresses = any::<[u32; 2]>();
    (link(), addresses, options, fragment).prop_map(|(link, [source, destination], options, fragment)| {
        let ip = link.ipv4(Ipv4Addr::from(source), Ipv4Addr::from(destination));
        ip.options(&options).fragment(fragment).into()
    })
}

fn ipv6() -> impl Strategy<Value = Ip> {
    let chain = prop_oneof![2 => vec(extension(), 0..=3), 1 => vec(extension(), 0..=20)];
    (link(), any::<[u128; 2]>(), hop_by_hop(), chain).prop_map(
        |(link, [source, destination], hop_by_hop, chain)| {
            let ip = link.ipv6(Ipv6Addr::from(source), Ipv6Addr::from(destination));
            hop_by_hop.into_iter().chain(chain).fold(ip, |ip, extension| extension.add_to(ip)).into()
        },
    )
}

/// IPv6 extension header.
#[derive(Clone, Debug)]
enum Extension {
    Options(u8, usize),
    Routing(u8),
    Fragment(u16, bool),
    Authentication,
}

impl Extension {
    fn add_to(self, ip: Ipv6) -> Ipv6 {
        match self {
            Self::Options(kind, units) => ip.options(kind, units),
            Self::Routing(segments_left) => ip.routing(segments_left),
            Self::Fragment(offset, more) => ip.fragment(offset, more),
            Self::Authentication => ip.authentication(),
        }
    }
}

fn hop_by_hop() -> impl Strategy<Value = Option<Extension>> {
    let options = (1..5_usize).prop_map(|units| Some(Extension::Options(protocol::HOP_BY_HOP, units)));
    prop_oneof![3 => Just(None), 1 => options]
}

fn extension() -> impl Strategy<Value = Extension> {
    use Extension::*;
    prop_oneof![
        8 => (1..5_usize).prop_map(|units| Options(protocol::DESTINATION, units)),
        4 => Just(Routing(0)),
        4 => Just(Fragment(0, false)),
        4 => Just(Authentication),
        1 => (1..=3_u8).prop_map(Routing),
        1 => Just(Fragment(0, true)),
        1 => (0..0x2000_u16, any::<bool>()).prop_map(|(offset, more)| Fragment(offset, more)),
        1 => Just(Options(protocol::HOP_BY_HOP, 1)),
    ]
}

/// Content of the option area.
#[derive(Clone, Debug)]
enum TcpOption {
    /// Bytes, unchanged.
    Bytes(Vec<u8>),
    /// Cookie that a key makes for the packet.
    CookieOf(TestKey),
    /// Cookie that a key makes for the packet, under the experimental kind.
    ExperimentalCookieOf(TestKey),
    /// Options of a stack, with their length in bytes.
    Stack(fn(Tcp) -> Tcp, usize),
}

/// Options of Linux, macOS and Windows.
const STACKS: [TcpOption; 4] = [
    TcpOption::Stack(Tcp::linux_options, 20),
    TcpOption::Stack(Tcp::linux_options_without_timestamps, 12),
    TcpOption::Stack(Tcp::macos_options, 22),
    TcpOption::Stack(Tcp::windows_options, 12),
];

impl TcpOption {
    fn add_to(self, tcp: Tcp) -> Tcp {
        match self {
            Self::Bytes(bytes) => tcp.option_bytes(&bytes),
            Self::CookieOf(key) => tcp.cookie_of(key),
            Self::ExperimentalCookieOf(key) => {
                let cookie = tcp.cookie(key);
                tcp.experimental(Tcp::MAGIC, &cookie)
            }
            Self::Stack(offer, _) => offer(tcp),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::CookieOf(_) => 10,
            Self::ExperimentalCookieOf(_) => 12,
            Self::Stack(_, len) => *len,
        }
    }
}

/// Generates as many options as fit into 40 bytes, sometimes behind those of a stack.
fn tcp_options() -> impl Strategy<Value = Vec<TcpOption>> {
    let stack = prop_oneof![2 => Just(None), 1 => select(&STACKS[..]).prop_map(Some)];
    (stack, vec(tcp_option(), 0..10)).prop_map(|(stack, options)| {
        let mut room = 40;
        let fits = |option: &TcpOption| {
            let fits = option.len() <= room;
            room -= if fits { option.len() } else { 0 };
            fits
        };
        stack.into_iter().chain(options).filter(fits).collect()
    })
}

fn tcp_option() -> impl Strategy<Value = TcpOption> {
    let all = select(keys::all().to_vec());
    let key = prop_oneof![select(vec![keys::CURRENT, keys::BACKUP, STRANGER]), all];
    let with_value =
        |kind: u8| bytes(0..20).prop_map(move |value| [&[kind, value.len() as u8 + 2], &value[..]].concat());
    let experimental =
        bytes(0..20).prop_map(|cookie| [&[254, cookie.len() as u8 + 4, 0xf9, 0x89], &cookie[..]].concat());
    let bytes = prop_oneof![
        6 => (1..4_usize).prop_map(|count| vec![1; count]),
        2 => Just(vec![2, 4, 5, 0xb4]),
        2 => Just(vec![4, 2]),
        2 => Just(vec![3, 3, 7]),
        2 => Just(vec![8, 10, 1, 2, 3, 4, 0, 0, 0, 0]),
        4 => Just(vec![34, 2]),
        4 => with_value(34),
        2 => experimental,
        2 => with_value(254),
        2 => any::<u8>().prop_flat_map(with_value),
        1 => Just([&[19, 18], &[0x5a; 16][..]].concat()),
        1 => select(vec![19, 29]).prop_flat_map(with_value),
        // These end the walk: the end of the list, an invalid length, random bytes.
        1 => Just(vec![0]),
        1 => (select(vec![34, 254, 2, 99]), any::<u8>()).prop_map(|(kind, len)| vec![kind, len]),
        1 => bytes(1..40),
    ];
    prop_oneof![
        3 => bytes.prop_map(TcpOption::Bytes),
        1 => key.clone().prop_map(TcpOption::CookieOf),
        1 => key.prop_map(TcpOption::ExperimentalCookieOf),
    ]
}
