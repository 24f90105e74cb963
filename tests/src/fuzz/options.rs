//! Random option areas: the parser finds the same Fast Open option as the kernel, and hiding leaves none.

use tfo_common::{
    parse::{LinkLayer, parse},
    rewrite,
    segment::FastOpen,
};

use crate::{
    cases::{self, CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6},
    host,
    oracle::{has_signature, kernel_walk},
    packet::{Carry, Ip, eth},
};

/// Size of the option area, in bytes.
const ROOM: usize = 40;
/// Bytes behind the options, which must not be read. They look like another option.
pub const BEHIND: [u8; 10] = [34, 10, 1, 2, 3, 4, 5, 6, 7, 8];

/// Checks the option area in the first 40 bytes.
pub fn check(data: &[u8]) {
    let mut area = data[..data.len().min(ROOM)].to_vec();
    area.resize(area.len().next_multiple_of(4), 0);
    for ip in both() {
        let frame = ip.clone().syn().option_bytes(&area).data(&BEHIND).build();
        let segment =
            parse(frame.as_slice(), LinkLayer::Ethernet).expect("it is whole").expect("it is a SYN");
        assert_eq!(segment.fast_open, kernel_walk(&area));
        assert_eq!(segment.is_signed, has_signature(&area));
        assert_eq!(segment.data_len as usize, BEHIND.len());

        // The result is the packet of a client that sent no-operations instead of the options.
        let mut hidden = frame.clone();
        rewrite::hide(&mut hidden[..], segment.tcp as usize);
        let mut without = frame.clone();
        host::hide(&mut without[segment.tcp as usize..]);
        let options = segment.tcp as usize + 20;
        let area = &without[options..options + area.len()];
        assert_eq!(kernel_walk(area), FastOpen::Absent);
        assert_eq!(hidden, ip.syn().option_bytes(area).data(&BEHIND).build());
    }
}

/// Returns the headers in front of a segment, for each family.
pub fn both() -> [Ip; 2] {
    [eth().ipv4(CLIENT_V4, SERVER_V4).into(), eth().ipv6(CLIENT_V6, SERVER_V6).into()]
}

/// Returns the option areas of the case table.
pub fn seeds() -> Vec<Vec<u8>> {
    let area = |case: cases::Case| {
        let tcp = parse(case.frame.as_slice(), case.link).ok()??.tcp as usize;
        let end = tcp + usize::from(case.frame[tcp + 12] >> 4) * 4;
        Some(case.frame[tcp + 20..end].to_vec())
    };
    cases::all().into_iter().filter_map(area).collect()
}
