//! The option walk, exhaustively: every area of up to three options with every length, and what systems send with any byte
//! changed. Against a plain walk, over IPv4 and IPv6.

use tfo_common::{
    parse::{LinkLayer, parse},
    segment::FastOpen,
};
use tfo_tests::{
    fuzz::options::{BEHIND, both},
    keys::CURRENT,
    oracle::kernel_walk,
    packet::{Carry, Ip, Tcp},
};

/// The sizes that an option area can have, in bytes.
const SIZES: [usize; 11] = [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40];

/// SYNs of one family, one for each size of the option area; their other bytes stay as they are.
struct Syns {
    frames: [Vec<u8>; SIZES.len()],
    /// Where the options begin.
    options: usize,
}

impl Syns {
    fn new(ip: &Ip) -> Self {
        let frames = SIZES.map(|size| ip.clone().syn().option_bytes(&vec![0; size]).data(&BEHIND).build());
        Self { options: frames[0].len() - BEHIND.len(), frames }
    }

    /// The Fast Open option that our parser finds in `area`.
    fn fast_open(&mut self, area: &[u8]) -> FastOpen {
        let frame = &mut self.frames[area.len() / 4];
        frame[self.options..self.options + area.len()].copy_from_slice(area);
        let segment =
            parse(frame.as_slice(), LinkLayer::Ethernet).expect("it is whole").expect("it is a SYN");
        segment.fast_open
    }
}

/// Asks both about areas, and counts them.
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
        let expected = kernel_walk(area);
        for syns in &mut self.families {
            let found = syns.fast_open(area);
            assert!(found == expected, "{area:02x?}: found {found:?}, expected {expected:?}");
        }
    }

    /// Every area that has the first `at` bytes of `area` and up to `more` options behind. Zeros follow the last of them.
    fn options(&mut self, area: &mut [u8], at: usize, more: usize) {
        area[at..].fill(0);
        self.area(area);
        if more == 0 || at == area.len() {
            return;
        }
        fill(&mut area[at + 1..], &[]);
        self.area(area);
        area[at] = 1;
        self.options(area, at + 1, more - 1);
        for (kind, value) in KINDS {
            if at + 1 == area.len() {
                // Nor is there room for a length.
                area[at] = kind;
                self.area(area);
                continue;
            }
            for length in 0..=u8::MAX {
                (area[at], area[at + 1]) = (kind, length);
                let end = at + usize::from(length);
                if length < 2 || end > area.len() {
                    // It ends the list.
                    fill(&mut area[at + 2..], value);
                    self.area(area);
                } else {
                    fill(&mut area[at + 2..end], value);
                    self.options(area, end, more - 1);
                }
            }
        }
    }
}

/// Begins with `value`; all else looks like options, and is not to be taken for any.
fn fill(place: &mut [u8], value: &[u8]) {
    for (to, from) in place.iter_mut().zip(value.iter().chain([34, 2].iter().cycle())) {
        *to = *from;
    }
}

/// A kind of each sort that has a length, and what its value begins with.
const KINDS: [(u8, &[u8]); 5] = [(34, &[]), (254, &[0xf9, 0x89]), (254, &[0xf9, 0x88]), (2, &[]), (77, &[])];

#[test]
fn every_area_of_up_to_three_options() {
    let mut comparison = Comparison::new();
    for size in SIZES {
        comparison.options(&mut vec![0; size], 0, 3);
    }
    println!("{} areas", comparison.areas);
    assert_eq!(comparison.areas, 73_786_021);
}

/// What systems offer, without Fast Open, with a request and with cookies, in either form.
fn typical() -> Vec<Vec<u8>> {
    let systems = [
        Tcp::linux_options,
        Tcp::linux_options_without_timestamps,
        Tcp::macos_options,
        Tcp::windows_options,
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

/// So a parser that knows these layouts has to look at all of what makes them so.
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
    assert_eq!(comparison.areas, 1_301_840);
}

/// Bytes that mean something as a kind or as a length.
const TELLING: [u8; 12] = [0, 1, 2, 3, 4, 8, 10, 12, 34, 40, 254, 255];
