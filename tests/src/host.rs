//! The packet's journey on the host: the verbs in the order in which the program has them.

use tfo_common::{
    class::classify,
    counters::Counters,
    keyring::KeyRing,
    parse::{LinkLayer, parse},
    verdict::{Mode, decide},
};

/// What the program counts for `frame`, without the program.
pub fn count(frame: &[u8], link: LinkLayer, ring: &KeyRing) -> Counters {
    let mut counters = Counters::default();
    match parse(frame, link) {
        Ok(Some(segment)) => {
            let class = classify(&segment, ring);
            counters.count_syn(&segment, class, decide(Mode::Observe, class));
        }
        Ok(None) => {}
        Err(fault) => counters.count_fault(fault),
    }
    counters
}
