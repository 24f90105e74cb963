//! Frames of the comparison: those of the case table, generated ones, and spoilt copies of both.

use proptest::{
    strategy::{BoxedStrategy, Strategy, ValueTree},
    test_runner::{Config, RngSeed, TestRunner},
};
use tfo_common::parse::{LinkLayer, parse};

use crate::{
    cases,
    packet::{ETHERNET, ether_type},
    random,
};

/// Number of generated frames in stock. To make a frame costs more than to check it, so each is used again.
const GENERATED: usize = 512;
/// Largest length, in bytes. It exceeds the largest Ethernet frame of native mode, which has to fit into a page.
const LONGEST: usize = 5000;

/// Bytes that have a meaning as a length, a kind or a protocol number, and the ends of their ranges.
const MEANINGFUL: [u8; 24] =
    [0, 1, 2, 3, 4, 5, 6, 8, 10, 17, 18, 34, 43, 44, 51, 58, 60, 0x40, 0x45, 0x50, 0x60, 0xf0, 254, 255];
/// Options that are written over others.
const OPTIONS: [&[u8]; 10] = [
    &[1],
    &[0],
    &[34, 2],
    &[34, 10],
    &[34, 18],
    &[254, 12, 0xf9, 0x89],
    &[254, 4, 0xf9, 0x89],
    &[2, 4, 5, 0xb4],
    &[19, 18],
    &[29, 4],
];

/// Endless sequence of frames for one link layer, determined by a seed.
pub(super) struct Frames {
    link: LinkLayer,
    rng: fastrand::Rng,
    runner: TestRunner,
    generator: BoxedStrategy<Vec<u8>>,
    /// Frames of the case table.
    cases: Vec<Vec<u8>>,
    generated: Vec<Vec<u8>>,
    /// Number of case frames that were given out unchanged. Each is given out once.
    begun: usize,
}

impl Frames {
    pub(super) fn new(link: LinkLayer, seed: u64) -> Self {
        let config =
            Config { rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Config::default() };
        let cases = cases::all().into_iter().filter(|case| case.link == link && case.frame.len() <= LONGEST);
        let mut frames = Self {
            link,
            rng: fastrand::Rng::with_seed(seed),
            runner: TestRunner::new(config),
            generator: random::frame().boxed(),
            cases: cases.map(|case| case.frame).collect(),
            generated: Vec::new(),
            begun: 0,
        };
        frames.generated = (0..GENERATED).map(|_| frames.generate()).collect();
        frames
    }

    /// Returns the next frame.
    pub(super) fn next(&mut self) -> Vec<u8> {
        if let Some(frame) = self.cases.get(self.begun) {
            self.begun += 1;
            return frame.clone();
        }
        match self.rng.u8(..) {
            0..=7 => self.noise(),
            // A generated frame is given out unchanged the first time.
            8..=39 => {
                let frame = self.generate();
                let place = self.rng.usize(..self.generated.len());
                self.generated[place].clone_from(&frame);
                frame
            }
            _ => {
                let mut frame = self.pick().to_vec();
                for _ in 0..self.rng.u8(1..=3) {
                    self.spoil(&mut frame);
                }
                frame.truncate(LONGEST);
                frame
            }
        }
    }

    /// Returns a well-formed frame with random options.
    fn generate(&mut self) -> Vec<u8> {
        let frame =
            self.generator.new_tree(&mut self.runner).expect("the generator rejects nothing").current();
        match self.link {
            LinkLayer::Ethernet => frame,
            LinkLayer::Ip => {
                let is_tag = |tag: &&[u8]| {
                    let kind = u16::from_be_bytes([tag[0], tag[1]]);
                    [ether_type::VLAN, ether_type::SERVICE_VLAN].contains(&kind)
                };
                let tags = frame[ETHERNET - 2..].chunks_exact(4).take_while(is_tag).count();
                frame[ETHERNET + 4 * tags..].to_vec()
            }
        }
    }

    fn pick(&mut self) -> &[u8] {
        let frames = if self.rng.u8(..) < 64 { &self.cases } else { &self.generated };
        &frames[self.rng.usize(..frames.len())]
    }

    /// Returns random bytes, behind a beginning that the interface accepts.
    fn noise(&mut self) -> Vec<u8> {
        let mut frame = vec![0; self.rng.usize(1..200)];
        self.rng.fill(&mut frame);
        let v4 = self.rng.bool();
        let network = match self.link {
            LinkLayer::Ethernet => ETHERNET,
            LinkLayer::Ip => 0,
        };
        if let Some(kind) = frame.get_mut(..network).and_then(|link| link.last_chunk_mut()) {
            *kind = if v4 { ether_type::IPV4 } else { ether_type::IPV6 }.to_be_bytes();
        }
        if let Some(first) = frame.get_mut(network) {
            *first = if v4 { 0x45 } else { 0x60 };
        }
        frame
    }

    /// Returns a random offset, mostly in the headers.
    fn place(&mut self, frame: &[u8]) -> usize {
        let len = if self.rng.u8(..) < 224 { frame.len().min(100) } else { frame.len() };
        self.rng.usize(..len)
    }

    fn spoil(&mut self, frame: &mut Vec<u8>) {
        if frame.is_empty() {
            return;
        }
        let (first, second) = (self.place(frame), self.place(frame));
        match self.rng.u8(..10) {
            0 | 1 => frame[first] ^= 1 << self.rng.u8(..8),
            2 => frame[first] = self.rng.choice(MEANINGFUL).expect("there are some"),
            3 => frame[first] = self.rng.u8(..),
            4 => frame.swap(first, second),
            // Changes what may be a length by up to eight.
            5 => frame[first] = frame[first].wrapping_add(self.rng.u8(..17)).wrapping_sub(8),
            6 => frame.truncate(self.rng.usize(..=frame.len())),
            7 => frame.resize(frame.len() + self.rng.usize(1..64), self.rng.u8(..)),
            8 => {
                let other = self.pick().to_vec();
                frame.truncate(first);
                frame.extend(other.get(first..).unwrap_or_default());
            }
            _ => self.spoil_options(frame),
        }
    }

    /// Spoils the TCP options: overwrites some, moves them, or changes the data offset.
    fn spoil_options(&mut self, frame: &mut [u8]) {
        let Ok(Some(segment)) = parse(&*frame, self.link) else { return };
        let tcp = segment.tcp as usize;
        let end = (tcp + 60).min(frame.len());
        let Some(area) = frame.get_mut(tcp + 20..end).filter(|area| !area.is_empty()) else { return };
        let place = self.rng.usize(..area.len());
        match self.rng.u8(..4) {
            0 => area.rotate_left(place),
            1 => self.rng.shuffle(&mut area[place..]),
            2 => {
                let option = self.rng.choice(OPTIONS).expect("there are some");
                area[place..].iter_mut().zip(option).for_each(|(to, from)| *to = *from);
            }
            _ => frame[tcp + 12] = self.rng.u8(..),
        }
    }
}
