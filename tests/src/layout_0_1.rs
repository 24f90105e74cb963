//! Conversion of pins to the layout of tfo 0.1, for tests of upgrades.

use std::{array::from_fn, fs, mem::offset_of, path::Path};

use aya::{
    maps::{
        Array, Map, MapData, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    util::nr_cpus,
};
use tfo_common::{
    carried::Carried,
    counters::Cell,
    info::Info,
    names,
    observed::{Outcomes, Watch},
    policy::FAMILY_BITS,
};
use tfo_userspace::dataplane::pins::{Bpffs, MAPS};

use crate::netns::BPFFS;

/// Layout version of the maps of tfo 0.1.
const LAYOUT: u32 = 6;
/// Sizes of the maps' structs in words. All consist of 64-bit integers.
const CELL: usize = size_of::<Cell>() / 8;
const OUTCOMES: usize = size_of::<Outcomes>() / 8;
const CARRIED: usize = size_of::<Carried>() / 8;
const WATCH: usize = size_of::<Watch>() / 8;
/// Number of places for the verdicts of a family and class, now and in tfo 0.1, and of words in each.
const VERDICTS: usize = 8;
const VERDICTS_0_1: usize = 4;
const TALLY: usize = 4;
/// Number of words of a cell that count dropped frames, at its end. tfo 0.1 had none.
const DROPPED: usize = 8;
/// Number of words of a cell that tfo 0.1 did not need.
const SAVED: usize = 2 * 8 * (VERDICTS - VERDICTS_0_1) * TALLY + DROPPED;
/// Size of the state of observing in tfo 0.1, in words: a budget and five counters. The present struct begins with
/// these.
const WATCH_0_1: usize = 10;

type Words<const N: usize> = [u64; N];

/// Converts the pins of `interface` into those that tfo 0.1 would have left. There must be no controller. The counts,
/// the keys, the state of guards and the hidden services and sources are preserved.
///
/// tfo 0.1 had no generations, no map of carried counts and no filter for hidden sources. So those counts are added to the counters. Its state of
/// observing had no confirmations. Its counters had fewer places for verdicts. Hidden sources had no family. Orders were in the maps only, so orders for services
/// that do not exist are lost. From the conversion until the next controller is there, no counted frame may arrive: the attached program
/// would count it in its own map.
///
/// # Panics
///
/// Panics unless the pins are those of one generation of the present layout.
pub fn downgrade_pins(interface: &str) {
    let pins = Bpffs::new(Path::new(BPFFS)).pins(interface);
    let [generation] = &pins.generations().expect("pins")[..] else { panic!("one generation, and no other") };
    assert_ne!(generation.dir(), pins.dir(), "a folder of its own");
    for name in MAPS {
        fs::rename(generation.map(name), pins.dir().join(name)).expect("a pin can be moved");
    }
    for (from, to) in [(generation.link(), "link"), (generation.outcomes_link(), "outcomes-link")] {
        fs::rename(from, pins.dir().join(to)).expect("a link can be moved");
    }
    // Programs were not pinned.
    for path in [generation.program(), generation.outcomes_program()] {
        fs::remove_file(path).expect("a pin can be removed");
    }
    fs::remove_dir(generation.dir()).expect("nothing else is in it");
    let open = |name| {
        let data = MapData::from_pin(pins.dir().join(name)).expect("a pinned map");
        Map::from_map_data(data).expect("a map of a known kind")
    };
    let replace = |name| {
        let path = pins.dir().join(name);
        fs::remove_file(&path).expect("it is pinned");
        path
    };

    let mut info: Array<_, [u32; size_of::<Info>() / 4]> = open(names::INFO).try_into().expect("an array");
    let mut words = info.get(&0, 0).expect("its only entry");
    words[offset_of!(Info, layout_version) / 4] = LAYOUT;
    info.set(0, words, 0).expect("the map takes it");

    let carried: Array<_, Words<CARRIED>> = open(names::CARRIED).try_into().expect("an array");
    let cells: PerCpuArray<_, Words<CELL>> = open(names::COUNTERS).try_into().expect("an array");
    let mut outcomes: Array<_, Words<OUTCOMES>> = open(names::OUTCOMES).try_into().expect("an array");
    let mut old_cells = PerCpuArray::<_, Words<{ CELL - SAVED }>>::create(carried.len(), 0).expect("a map");
    let mut watched = [0; WATCH];
    for index in 0..carried.len() {
        // Words of the cell that are not counts are zeros in the map of carried counts.
        let carried = carried.get(&index, 0).expect("an entry");
        let mut cell = cells.get(&index, 0).expect("an entry").to_vec();
        add(&mut cell[0], &carried[offset_of!(Carried, cell) / 8..]);
        let cell: Vec<_> = cell.iter().map(cell_0_1).collect();
        old_cells.set(index, cell.try_into().expect("one of each CPU"), 0).expect("the map takes it");
        let mut outcome = outcomes.get(&index, 0).expect("an entry");
        add(&mut outcome, &carried[offset_of!(Carried, outcomes) / 8..]);
        outcomes.set(index, outcome, 0).expect("the map takes it");
        add(&mut watched, &carried[offset_of!(Carried, watch) / 8..]);
    }
    old_cells.pin(replace(names::COUNTERS)).expect("the place is free");
    replace(names::CARRIED);
    replace(names::HIDE_FILTER);
    replace(names::CHILDREN);
    replace(names::REQUESTS);
    replace(names::CLIENT);
    replace(names::NETWORKS);
    replace(names::CALLERS);

    let watch: PerCpuArray<_, Words<WATCH>> = open(names::WATCH).try_into().expect("an array");
    let mut cpus = watch.get(&0, 0).expect("its only entry").to_vec();
    // The budget is not a count.
    let counts = offset_of!(Watch, events) / 8;
    add(&mut cpus[0][counts..], &watched[counts..]);
    assert_eq!(cpus.len(), nr_cpus().expect("CPUs can be counted"));
    let cpus: Vec<Words<WATCH_0_1>> = cpus.iter().map(|words| from_fn(|i| words[i])).collect();
    let mut map = PerCpuArray::create(1, 0).expect("a map");
    map.set(0, cpus.try_into().expect("one of each CPU"), 0).expect("the map takes it");
    map.pin(replace(names::WATCH)).expect("the place is free");

    const NO_PREALLOC: u32 = 1;
    let sources: LpmTrie<_, [u32; 5], u32> = open(names::HIDDEN).try_into().expect("a trie");
    let mut map = LpmTrie::<_, [u32; 4], u32>::create(4096, NO_PREALLOC).expect("a map");
    for key in sources.keys().map(|key| key.expect("a key")) {
        let (len, [_, address @ ..]) = (key.prefix_len() - FAMILY_BITS, key.data());
        map.insert(&Key::new(len, address), 1, 0).expect("the map takes it");
    }
    map.pin(replace(names::HIDDEN)).expect("the place is free");
    // This removes the orders of all interfaces. No controller may start before the next conversion.
    fs::remove_dir_all("/var/lib/tfo/orders").unwrap_or_default();
}

/// Returns a cell with fewer places for verdicts, and without dropped frames.
fn cell_0_1(cell: &Words<CELL>) -> Words<{ CELL - SAVED }> {
    let (syn, rest) = cell.split_at(2 * 8 * VERDICTS * TALLY);
    let kept = syn.chunks(VERDICTS * TALLY).flat_map(|class| &class[..VERDICTS_0_1 * TALLY]);
    let words: Vec<u64> = kept.chain(&rest[..rest.len() - DROPPED]).copied().collect();
    words.try_into().expect("the rest is the same")
}

fn add(sums: &mut [u64], counts: &[u64]) {
    sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
}
