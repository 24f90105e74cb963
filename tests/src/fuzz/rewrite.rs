//! Random segments with a changed cookie, a changed window, or hidden options: the corrected checksum equals a full
//! sum.

use tfo_common::{parse, rewrite, segment::FastOpen};

use crate::{host, oracle::kernel_walk, packet::checksum};

/// Place of the checksum in a TCP header.
const CHECKSUM: std::ops::Range<usize> = 16..18;
/// Length of a TCP header without options, and of a cookie, in bytes.
const HEADER: usize = 20;
const COOKIE: usize = 8;

/// Checks the offset of a cookie, its new bytes, and the segment with the old ones.
pub fn check(data: &[u8]) {
    let Some(([place], data)) = data.split_first_chunk() else { return };
    let Some((new, segment)) = data.split_first_chunk::<COOKIE>() else { return };
    if segment.len() < HEADER + COOKIE {
        return;
    }
    check_hidden(segment);
    check_clamped(segment, u16::from_be_bytes([new[0], new[1]]));
    let place = HEADER + usize::from(*place) % (segment.len() - HEADER - COOKIE + 1);
    // A wrong checksum stays wrong by the same difference, so that the kernel drops the segment. The sum over all is
    // the same.
    let changed = translated(segment, place, *new);
    assert_eq!(checksum(&changed) % 0xffff, checksum(segment) % 0xffff, "at {place}");

    // A right one is the one that the sender of the new cookie would have made. No segment is all zeros.
    let mut segment = segment.to_vec();
    segment[12] |= 0x50;
    sum_up(&mut segment);
    let changed = translated(&segment, place, *new);
    segment[place..place + COOKIE].copy_from_slice(new);
    sum_up(&mut segment);
    assert_eq!(changed, segment, "at {place}");
}

/// Checks that a hidden segment is an ordinary one to the kernel, and that nothing else in it has changed.
fn check_hidden(segment: &[u8]) {
    let mut hidden = segment.to_vec();
    rewrite::hide(&mut hidden[..], 0);
    let end = usize::from(segment[12] >> 4) * 4;
    if !(HEADER..=segment.len()).contains(&end) {
        // The parser refuses such a header.
        return;
    }
    assert_eq!(kernel_walk(&hidden[HEADER..end]), FastOpen::Absent);
    assert_eq!(checksum(&hidden) % 0xffff, checksum(segment) % 0xffff);
    let mut expected = segment.to_vec();
    host::hide(&mut expected);
    let places = parse::fast_open_places(segment, HEADER, end - HEADER);
    for at in 0..end - HEADER {
        let is_option = places >> at & 1 == 1;
        assert!(is_option || segment[HEADER + at] == expected[HEADER + at], "at {at}");
        assert!(!is_option || expected[HEADER + at] == 1, "at {at}");
    }
    expected[CHECKSUM].copy_from_slice(&hidden[CHECKSUM]);
    assert_eq!(hidden, expected);
}

/// Checks that only the window of a clamped segment has changed.
fn check_clamped(segment: &[u8], most: u16) {
    let mut clamped = segment.to_vec();
    rewrite::clamp(&mut clamped[..], 0, most);
    assert_eq!(rewrite::window(&clamped[..], 0), Some(most));
    assert_eq!(checksum(&clamped) % 0xffff, checksum(segment) % 0xffff);
    let mut expected = segment.to_vec();
    expected[14..16].copy_from_slice(&most.to_be_bytes());
    expected[CHECKSUM].copy_from_slice(&clamped[CHECKSUM]);
    assert_eq!(clamped, expected);
}

/// Returns `segment` with `new` at `place`. The checksum is corrected, not computed.
fn translated(segment: &[u8], place: usize, new: [u8; COOKIE]) -> Vec<u8> {
    let mut segment = segment.to_vec();
    let (checksum, rest) = segment[CHECKSUM.start..].split_first_chunk().expect("it has a header");
    let (_, from) = rest.split_at(place - CHECKSUM.end);
    let old = u64::from_le_bytes(*from.first_chunk().expect("the place is inside"));
    let checksum =
        rewrite::checksum(u16::from_le_bytes(*checksum), old, u64::from_le_bytes(new), place % 2 == 1);
    segment[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
    segment[place..place + COOKIE].copy_from_slice(&new);
    segment
}

/// Computes the checksum over all bytes.
fn sum_up(segment: &mut [u8]) {
    segment[CHECKSUM].fill(0);
    let sum = checksum(segment);
    segment[CHECKSUM].copy_from_slice(&sum.to_be_bytes());
}
