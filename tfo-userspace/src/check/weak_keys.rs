//! Keys that anybody can know: published ones, and ones derived from what a host tells everybody.

use std::fs;

use md5::{Digest as _, Md5};
use tfo_common::keyring::Key;

use crate::model::keys::parse_key;

/// Keys in public scripts, examples and tests, in the form of the sysctl.
const PUBLISHED: [&str; 7] = [
    // The kernel's own tests (tools/testing/selftests/net/packetdrill).
    "a1a1a1a1-b2b2b2b2-c3c3c3c3-d4d4d4d4",
    // Scripts that tune a host, as they are copied around.
    "a1b2c3d4-e5f6a7b8-c9d0e1f2-a3b4c5d6",
    "a1b2c3d4-e5f60718-293a4b5c-6d7e8f90",
    "1234abcd-5678efab-1234abcd-5678efab",
    "12345678-9abcdef0-12345678-9abcdef0",
    "01234567-89abcdef-01234567-89abcdef",
    // Examples in the documentation of the sysctl.
    "1-2-3-4",
];

/// Returns how anybody could know `key`; `None` for a key that is none of the known ones.
pub(super) fn weakness(key: Key) -> Option<String> {
    if PUBLISHED.iter().any(|published| parse_key(published) == Some(key)) {
        return Some("it stands in public scripts".to_owned());
    }
    let words = key.to_words();
    if words.iter().all(|word| *word == words[0]) {
        return Some("its four words are the same".to_owned());
    }
    // `hostname | md5sum` has the end of the line, too.
    let is_sum = |text: &str| [text, &format!("{text}\n")].into_iter().any(|text| md5_key(text) == key);
    let derived = names().into_iter().find(|(_, text)| is_sum(text));
    derived.map(|(what, _)| format!("it is the MD5 sum of {what}"))
}

/// Files with what a host tells everybody. The first is the kernel's own (gethostname(2)).
const FILES: [(&str, &str); 3] = [
    ("the host's name", "/proc/sys/kernel/hostname"),
    ("the host's name", "/etc/hostname"),
    ("the machine's id", "/etc/machine-id"),
];

/// Returns what a host tells everybody, and the text of it.
fn names() -> Vec<(&'static str, String)> {
    let mut names = Vec::new();
    for (what, path) in FILES {
        let Ok(text) = fs::read_to_string(path) else { continue };
        let text = text.trim_end();
        if let Some((short, _)) = text.split_once('.') {
            names.push((what, short.to_owned()));
        }
        names.push((what, text.to_owned()));
    }
    names
}

/// Returns the key of a script that cuts an MD5 sum into four groups of digits.
fn md5_key(text: &str) -> Key {
    let sum = Md5::digest(text);
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(sum.chunks_exact(4)) {
        *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    Key::from_words(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_recognised() {
        for text in PUBLISHED {
            assert!(weakness(parse_key(text).unwrap()).unwrap().contains("public"), "{text}");
        }
        let same = weakness(Key::from_words([7; 4])).unwrap();
        assert!(same.contains("the same"), "{same}");
        assert_eq!(weakness(parse_key("a0bf63f7-ed803d81-cd641d30-cebc4a90").unwrap()), None);
    }

    #[test]
    fn the_sum_of_the_hosts_name_is_recognised() {
        // printf example | md5sum
        assert!(md5_key("example") == parse_key("1a79a4d6-0de6718e-8e5b326e-338ae533").unwrap());
        let name = fs::read_to_string(FILES[0].1).unwrap().trim_end().to_owned();
        for text in [name.clone(), format!("{name}\n")] {
            assert!(weakness(md5_key(&text)).unwrap().contains("the host's name"));
        }
    }
}
