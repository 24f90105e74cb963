//! Map of the ports whose listeners are special, with the key domains of those that have keys of their own. A new map has none.

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use tfo_common::ports::{NO_COOKIE, OWN_KEYS, WORDS, set, with_domain, word};

use crate::model::guards::SpecialPorts;

/// The map, and the words in it.
pub(super) struct SpecialMap {
    map: Array<MapData, u64>,
    words: Vec<u64>,
}

impl SpecialMap {
    /// Takes a new map.
    pub(super) fn new(map: Array<MapData, u64>) -> Self {
        Self { map, words: vec![0; WORDS] }
    }

    /// Replaces all flags in the map by those of `special`. `domain` returns the key domain of a port. Only words that change are
    /// written.
    pub(super) fn set(&mut self, special: &SpecialPorts, domain: impl Fn(u16) -> u32) -> Result<()> {
        for ((index, old), new) in (0..).zip(&mut self.words).zip(words(special, domain)) {
            if *old != new {
                self.map.set(index, new, 0).context("cannot write the map of special ports")?;
                *old = new;
            }
        }
        Ok(())
    }
}

/// Returns the words of the map.
fn words(special: &SpecialPorts, domain: impl Fn(u16) -> u32) -> Vec<u64> {
    let SpecialPorts { own_keys, known, no_cookie, all_no_cookie } = special;
    let mut words = vec![0; WORDS];
    let mut add = |port: u16, flag| words[word(port) as usize] |= set(port, flag);
    own_keys.iter().for_each(|port| add(*port, OWN_KEYS));
    known.iter().for_each(|port| add(*port, with_domain(OWN_KEYS, domain(*port))));
    no_cookie.iter().for_each(|port| add(*port, NO_COOKIE));
    if *all_no_cookie {
        (0..=u16::MAX).for_each(|port| add(port, NO_COOKIE));
    }
    words
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tfo_common::ports;

    use super::*;

    #[test]
    fn ports_get_their_flags() {
        let own_keys = BTreeSet::from([0, 443, 65_535]);
        let no_cookie = BTreeSet::from([443, 444]);
        let known = BTreeSet::from([443]);
        let some = SpecialPorts { own_keys, known, no_cookie, all_no_cookie: false };
        for special in [some.clone(), SpecialPorts { all_no_cookie: true, ..some }] {
            let words = words(&special, |_| 31);
            for port in 0..=u16::MAX {
                let flags = ports::get(port, words[word(port) as usize]);
                assert_eq!(ports::domain(flags), if port == 443 { 31 } else { 0 }, "{port}");
                assert_eq!(flags & OWN_KEYS != 0, special.own_keys.contains(&port), "{port}");
                let needs_none = special.all_no_cookie || special.no_cookie.contains(&port);
                assert_eq!(flags & NO_COOKIE != 0, needs_none, "{port}");
            }
        }
    }
}
