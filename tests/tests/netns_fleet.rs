//! Fleets that share a secret through a real etcd.

use std::{fs, path::Path};

use tfo_tests::{
    etcd_fleet::{Files, fleet, start_etcd, status},
    netns::sandbox,
};
use tfo_userspace::{fleet::document::Document, model::keys::key_text};

/// Name of the document in etcd.
const DOCUMENT: &str = "/tfo/secret";

/// Returns all files below `folder`.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(fs::read(entry.path()).unwrap()),
        }
    }
    found
}

/// The first secret is made once, and nothing of it can be read in etcd's data.
#[test]
fn the_first_secret_is_made_once_and_sealed() {
    sandbox(|| {
        let etcd = start_etcd();
        let files_ = Files::new(&etcd);
        let config = files_.config("a", "v0");
        let before = status(&config);
        assert!(before["generation"].is_null());
        assert_eq!(
            fleet(&config, &["init"]),
            (true, "the fleet has its first secret, generation 1\n".to_owned())
        );
        let (made, text) = fleet(&config, &["init"]);
        assert!(!made && text.contains("has a document already"), "{text}");
        assert_eq!(status(&config)["generation"], 1);

        let sealed = etcd.value(DOCUMENT).unwrap();
        let document = Document::open(&files_.key(), DOCUMENT, &sealed).unwrap();
        let digits = document.in_force.secret.digits();
        let raw: Vec<u8> =
            (0..32).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect();
        let key = key_text(document.in_force.secret.key(1));
        let data = files(&etcd.data(0));
        assert!(data.iter().any(|file| file.windows(DOCUMENT.len()).any(|part| part == DOCUMENT.as_bytes())));
        for secret in [digits.as_bytes(), &raw, key.as_bytes(), &[0x4b; 32]] {
            for length in [secret.len(), 12] {
                let is_there = |file: &Vec<u8>| file.windows(length).any(|part| part == &secret[..length]);
                assert!(!data.iter().any(is_there));
            }
        }
    });
}
