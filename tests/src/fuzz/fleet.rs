//! Random bytes as a value in etcd: what is not sealed is refused, and what is sealed and accepted is written the same way.

use tfo_userspace::{
    fleet::{document::Document, record::Record, seal::SealKey},
    keys::secret::Secret,
};

/// Name of the value.
const NAME: &str = "/tfo/secret";

fn key() -> SealKey {
    SealKey::new(Secret::from_digits("4b".repeat(32).as_bytes()).expect("these are digits"))
}

/// Checks one value.
pub fn check(data: &[u8]) {
    let key = key();
    assert!(key.open(NAME, data).is_err(), "nobody else has the key");
    let sealed = key.seal(NAME, data).expect("random numbers");
    assert_eq!(key.open(NAME, &sealed).expect("it is ours").as_slice(), data);
    // A document or a record of somebody who has the key.
    match Document::open(&key, NAME, &sealed) {
        Ok(document) => {
            let text = document.text().expect("it can be written");
            let again = Document::parse(&text).expect("it is a document");
            assert_eq!(again.outline(), document.outline());
            assert!(*again.text().expect("it can be written") == *text);
            assert!(document.entries().all(|entry| (1..=document.generation).contains(&entry.id)));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(record) = Record::open(&key, NAME, &sealed) {
        let sealed = record.seal(&key, NAME).expect("it can be written");
        assert_eq!(Record::open(&key, NAME, &sealed).expect("it is a record"), record);
    }
}

/// Returns documents and a record.
pub fn seeds() -> Vec<Vec<u8>> {
    let document = || Document::first(1).and_then(Document::with_next).expect("random numbers");
    let documents = [document(), document().enforced(2), document().emergency(3).expect("random numbers")];
    let record = br#"{"version":1,"name":"a","instance":"1","tfo":"0","rotate":10,"written":1,"generation":1,"learnt":1,"in_force":1,"forgotten":0,"current":null,"backup":null,"interfaces":[],"fault":null}"#;
    let texts = documents.iter().map(|document| document.text().expect("it can be written").to_vec());
    texts.chain([record.to_vec()]).collect()
}
