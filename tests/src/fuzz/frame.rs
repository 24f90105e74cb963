//! Random frames, with and without a link layer: all parsers agree, and only headers affect the result.

use tfo_common::parse::{Fault, LinkLayer, Malformed, parse, unfollowed};

use crate::{
    cases,
    oracle::{self, Parsed},
};

/// Checks one frame.
pub fn check(frame: &[u8]) {
    for link in LinkLayer::ALL {
        let ours = parse(frame, *link);
        assert_eq!(ours, oracle::reference(frame, *link), "{link}");
        only_headers_count(frame, *link, ours);
        if let (Err(Fault::Unsupported(_)), Some(found)) = (ours, unfollowed(frame, *link)) {
            let ports = found.tcp.map(|tcp| tcp as usize..tcp as usize + 4);
            assert!(ports.is_none_or(|ports| frame.get(ports).is_some()), "{link}: {found:?}");
        }
    }
    let ours = parse(frame, LinkLayer::Ethernet);
    match oracle::etherparse(frame) {
        Some(theirs) => assert_eq!(ours, theirs, "etherparse"),
        None => assert!(!matches!(ours, Ok(Some(_))), "etherparse refuses it, and we read {ours:?}"),
    }
}

/// Returns the frames of the case table.
pub fn seeds() -> Vec<Vec<u8>> {
    cases::all().into_iter().map(|case| case.frame).collect()
}

/// Checks that neither the data nor padding behind the packet affects the result.
fn only_headers_count(frame: &[u8], link: LinkLayer, parsed: Parsed) {
    if has_no_length(frame, link) {
        return;
    }
    use Malformed::*;
    let is_short = matches!(parsed, Err(Fault::Malformed(LinkTruncated | IpTruncated | IpTotalLength)));
    if !is_short {
        let padded = [frame, &[0x22; 46]].concat();
        assert_eq!(parse(padded.as_slice(), link), parsed, "{link}, with padding");
    }
    if let Ok(Some(segment)) = parsed {
        let tcp = segment.tcp as usize;
        let data = tcp + usize::from(frame[tcp + 12] >> 4) * 4;
        // The kernel cuts off up to seven bytes at the end of a first fragment.
        let end = if is_fragment_v4(frame, link) { frame.len() } else { data + segment.data_len as usize };
        let mut other = frame[..end].to_vec();
        other[data..].iter_mut().for_each(|byte| *byte = !*byte);
        assert_eq!(parse(other.as_slice(), link), parsed, "{link}, with other data and without padding");
    }
}

/// Returns whether the frame is a fragment of an IPv4 packet, and not the last.
fn is_fragment_v4(frame: &[u8], link: LinkLayer) -> bool {
    matches!(oracle::network(frame, link), Ok(Some((4, packet))) if packet[6] & 0x20 != 0)
}

/// Returns whether the frame is an IPv6 packet that may be a jumbogram, which ends where the frame does.
fn has_no_length(frame: &[u8], link: LinkLayer) -> bool {
    matches!(oracle::network(frame, link), Ok(Some((6, [_, _, _, _, 0, 0, ..]))))
}
