//! Exhaustive test of the option walk: all areas of up to three options with every length, and common layouts with any
//! byte changed. It is compared with a plain walk, over IPv4 and IPv6.

use tfo_common::{
    parse::{LinkLayer, parse},
    segment::FastOpen,
};
use tfo_tests::{
    fuzz::options::{BEHIND, both},
    keys::CURRENT,
    oracle::{has_signature, kernel_walk},
    packet::{Carry, Ip, Tcp},
};

/// Possible sizes of an option area, in bytes.
const SIZES: [usize; 11] = [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40];

/// SYNs of one family, one for each size of the option area. All other bytes stay the same.
struct Syns {
    frames: [Vec<u8>; SIZES.len()],
    /// Offset of the options.
    options: usize,
}

impl Syns {
    fn new(ip: &Ip) -> Self {
        let frames = SIZES.map(|size| ip.clone().syn().option_bytes(&vec![0; size]).data(&BEHIND).build());
        Self { options: frames[0].len() - BEHIND.len(), frames }
    }

    /// Returns the Fast Open option that our parser finds in `area`, and whether it finds a signature.
    fn parse(&mut self, area: &[u8]) -> (FastOpen, bool) {
        let frame = &mut self.frames[area.len() / 4];
        frame[self.options..self.options + area.len()].copy_from_slice(area);
        let segment =
            parse(frame.as_slice(), LinkLayer::Ethernet).expect("it is whole").expect("it is a SYN");
        (segment.fast_open, segment.is_signed)
    }
}

/// Comparison of both walks, which counts the areas.
struct Comparison {
    families: [Syns; 2],
    areas: u64,
}

impl Comparison {
    fn new() -> Self {
        Self { families: both().each_ref().map(Syns::new), areas: 0 }
    }

    fn area(&mut self, area: &[u8]) {
        self.areas += 1;
        let expected = (kernel_walk(area), has_signature(area));
        for syns in &mut self.families {
            let found = syns.parse(area);
            assert!(found == expected, "{area:02x?}: found {found:?}, expected {expected:?}");
        }
    }

    /// Checks all areas with the first `at` bytes of `area` and up to `more` options of `kinds` behind. Zeros follow the
    /// last option.
    fn options(&mut self, kinds: &[(u8, &[u8])], area: &mut [u8], at: usize, more: usize) {
        area[at..].fill(0);
        self.area(area);
        if more == 0 || at == area.len() {
            return;
        }
        fill(&mut area[at + 1..], &[]);
        self.area(area);
        area[at] = 1;
        self.options(kinds, area, at + 1, more - 1);
        for (kind, value) in kinds.iter().copied() {
            if at + 1 == area.len() {
                // There is no room for a length, either.
                area[at] = kind;
                self.area(area);
                continue;
            }
            for length in 0..=u8::MAX {
                (area[at], area[at + 1]) = (kind, length);
                let end = at + usize::from(length);
                if length < 2 || end > area.len() {
                    // This option is the last one.
                    fill(&mut area[at + 2..], value);
                    self.area(area);
                } else {
                    fill(&mut area[at + 2..end], value);
                    self.options(kinds, area, end, more - 1);
                }
            }
        }
    }
}

/// Fills `place` with `value`, then with bytes that look like options and must not be taken for any.
fn fill(place: &mut [u8], value: &[u8]) {
    for (to, from) in place.iter_mut().zip(value.iter().chain([34, 2].iter().cycle())) {
        *to = *from;
    }
}

/// Kinds that have a length, one of each sort, with the beginning of their value.
const KINDS: [(u8, &[u8]); 5] = [(34, &[]), (254, &[0xf9, 0x89]), (254, &[0xf9, 0x88]), (2, &[]), (77, &[])];

#[test]
fn every_area_of_up_to_three_options() {
    let mut comparison = Comparison::new();
    for size in SIZES {
        comparison.options(&KINDS, &mut vec![0; size], 0, 3);
    }
    println!("{} areas", comparison.areas);
    assert_eq!(comparison.areas, 73_786_021);
}

/// Signatures of every length, before and behind Fast Open, and behind each other.
#[test]
fn every_area_of_up_to_three_options_with_signatures() {
    const KINDS: [(u8, &[u8]); 3] = [(34, &[]), (19, &[]), (29, &[])];
    let mut comparison = Comparison::new();
    for size in SIZES {
        comparison.options(&KINDS, &mut vec![0; size], 0, 3);
    }
    println!("{} areas", comparison.areas);
    assert_eq!(comparison.areas, 16_478_861);
}

/// Data that is all no-operations leads nowhere: not on, and not back to the first option.
#[test]
fn data_like_options_is_not_read() {
    // If the 64 bytes that a walk could count were a ring, the cookie would be its last step once more.
    let steps = [1, 4, 2].repeat(4);
    let area =
        |ip: Ip| ip.syn().option_bytes(&steps).cookie_of(CURRENT).request().option_bytes(&steps).mss(1460);
    for ip in both() {
        for data in [&[1; 200][..], &[1; 3], &[34, 2, 1, 1]] {
            let frame = area(ip.clone()).data(data).build();
            let segment = parse(frame.as_slice(), LinkLayer::Ethernet).expect("whole").expect("a SYN");
            assert_eq!(segment.fast_open, FastOpen::Request);
        }
    }
}

/// Returns the options of common systems: without Fast Open, with a request and with cookies, in either form.
fn typical() -> Vec<Vec<u8>> {
    let systems = [
        Tcp::linux_options,
        Tcp::linux_options_without_timestamps,
        Tcp::macos_options,
        Tcp::windows_options,
        Tcp::freebsd_options,
        |tcp: Tcp| tcp.mss(1460),
        |tcp| tcp,
    ];
    let fast_opens = [
        |tcp: Tcp| tcp,
        Tcp::request,
        |tcp: Tcp| tcp.cookie_of(CURRENT),
        |tcp: Tcp| tcp.nops(2).cookie_of(CURRENT),
        |tcp: Tcp| tcp.experimental(Tcp::MAGIC, &[]),
        |tcp: Tcp| tcp.experimental(Tcp::MAGIC, &[1, 2, 3, 4, 5, 6, 7, 8]),
    ];
    let [ip, _] = both();
    let mut areas = Vec::new();
    for system in systems {
        for fast_open in fast_opens {
            areas.push(fast_open(system(ip.clone().syn())).segment().split_off(20));
        }
    }
    areas
}

/// A parser with fixed layouts must check every byte that defines them.
#[test]
fn every_area_that_is_nearly_a_typical_one() {
    let mut comparison = Comparison::new();
    for mut area in typical() {
        for size in SIZES.into_iter().filter(|size| *size <= area.len()) {
            comparison.area(&area[..size]);
        }
        for first in 0..area.len() {
            let before = area[first];
            for byte in 0..=u8::MAX {
                area[first] = byte;
                comparison.area(&area);
            }
            for byte in TELLING {
                area[first] = byte;
                for second in first + 1..area.len() {
                    let before = area[second];
                    for byte in TELLING {
                        area[second] = byte;
                        comparison.area(&area);
                    }
                    area[second] = before;
                }
            }
            area[first] = before;
        }
    }
    println!("{} areas", comparison.areas);
    assert_eq!(comparison.areas, 2_478_717);
}

/// Bytes that have a meaning as a kind or as a length.
const TELLING: [u8; 15] = [0, 1, 2, 3, 4, 8, 10, 12, 18, 19, 29, 34, 40, 254, 255];
