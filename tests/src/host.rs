//! The packet's journey on the host: the verbs in the order in which the program has them.

use tfo_common::{
    class::classify,
    counters::Counters,
    keyring::KeyRing,
    parse::{LinkLayer, parse},
    verdict::{Mode, decide},
};

/// What the program counts for `frame` in `mode`, without the program.
pub fn count(frame: &[u8], link: LinkLayer, mode: Mode, ring: &KeyRing) -> Counters {
    let mut counters = Counters::default();
    match parse(frame, link) {
        Ok(Some(segment)) => {
            let found = classify(&segment, ring);
            let verdict = decide(mode, found.class, ring.translation().is_some());
            counters.count_syn(&segment, found, verdict, ring);
        }
        Ok(None) => {}
        Err(fault) => counters.count_fault(fault),
    }
    counters
}
