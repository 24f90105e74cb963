//! The document of a fleet: its secrets, and which of them is in force.

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::seal::SealKey;
use crate::keys::secret::Secret;

/// Version of the format. No other version is read.
pub const VERSION: u64 = 1;

/// Number of former secrets that a document has at most. A host that joins knows them as retired ones.
pub const FORMER: usize = 2;

/// Capacity for the text of a secret, in bytes, with room to spare.
const ENTRY: usize = 192;

/// The document of a fleet.
///
/// The type has no `Debug`, because secrets are never printed.
pub struct Document {
    /// Number of this document. It grows with each change, so an older one is known as such.
    pub generation: u64,
    /// Secret in force.
    pub in_force: Entry,
    /// Secret that every host is to learn, and that comes into force when all have.
    pub next: Option<Entry>,
    /// Secrets that were in force before, newest first; at most [`FORMER`].
    pub former: Vec<Entry>,
    /// Number below which every secret has leaked and is to be forgotten at once; 0 if there was no emergency.
    pub forget_below: u64,
}

/// A secret with its number.
pub struct Entry {
    /// Number of the secret: the generation of the document in which it appeared first.
    pub id: u64,
    /// Time since which it has been in force, in seconds since 1970, by the clock of the host that said so; 0 if it has
    /// not been yet.
    pub since: u64,
    /// The secret.
    pub secret: Secret,
}

/// Numbers of a document, without its secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    /// Number of the document; 0 for none.
    pub generation: u64,
    /// Number of the secret in force.
    pub in_force: u64,
    /// Fingerprint of the secret in force.
    pub fingerprint: String,
    /// Number of the secret to learn.
    pub next: Option<u64>,
    /// Number below which secrets are to be forgotten.
    pub forget_below: u64,
}

/// Content as JSON. It borrows, so that the text of a secret is only in the buffer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content<'a> {
    version: u64,
    generation: u64,
    #[serde(borrow)]
    in_force: Numbered<'a>,
    #[serde(borrow)]
    next: Option<Numbered<'a>>,
    #[serde(borrow)]
    former: Vec<Numbered<'a>>,
    forget_below: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbered<'a> {
    id: u64,
    since: u64,
    secret: &'a str,
}

/// Part of the content that all versions have.
#[derive(Deserialize)]
struct Header {
    version: u64,
}

impl Entry {
    /// Returns a copy.
    pub fn copy(&self) -> Self {
        let secret = Secret::from_digits(self.secret.digits().as_bytes()).expect("these are digits");
        Self { id: self.id, since: self.since, secret }
    }
}

impl Document {
    /// Makes the first document of a fleet, at `now` (seconds since 1970).
    pub fn first(now: u64) -> Result<Self> {
        let in_force = Entry { id: 1, since: now, secret: Secret::random()? };
        Ok(Self { generation: 1, in_force, next: None, former: Vec::new(), forget_below: 0 })
    }

    /// Opens and parses what is stored under `name`.
    pub fn open(key: &SealKey, name: &str, sealed: &[u8]) -> Result<Self> {
        Self::parse(&key.open(name, sealed)?)
    }

    /// Seals the document for storage under `name`.
    pub fn seal(&self, key: &SealKey, name: &str) -> Result<Vec<u8>> {
        key.seal(name, &self.text()?)
    }

    /// Parses the text of a document. Errors show nothing of it.
    pub fn parse(text: &[u8]) -> Result<Self> {
        // The library's own message may quote the text, and so a secret.
        let broken = |error: serde_json::Error| {
            anyhow!("it is no document (line {}, column {})", error.line(), error.column())
        };
        let Header { version } = serde_json::from_slice(text).map_err(broken)?;
        if version != VERSION {
            bail!("it is a document of version {version}, and this tfo reads version {VERSION}");
        }
        let content: Content<'_> = serde_json::from_slice(text).map_err(broken)?;
        let entry = |numbered: Numbered<'_>| {
            let secret = Secret::from_digits(numbered.secret.as_bytes());
            let secret = secret.with_context(|| format!("its secret {} is not valid", numbered.id))?;
            anyhow::Ok(Entry { id: numbered.id, since: numbered.since, secret })
        };
        let document = Self {
            generation: content.generation,
            in_force: entry(content.in_force)?,
            next: content.next.map(entry).transpose()?,
            former: content.former.into_iter().map(entry).collect::<Result<_>>()?,
            forget_below: content.forget_below,
        };
        document.check()?;
        Ok(document)
    }

    /// Fails if the numbers contradict each other.
    fn check(&self) -> Result<()> {
        let ids: Vec<_> = self.entries().map(|entry| entry.id).collect();
        let descends = ids.windows(2).all(|pair| pair[0] > pair[1]);
        let is_known = ids.iter().all(|id| (1..=self.generation).contains(id));
        if !descends
            || !is_known
            || self.former.len() > FORMER
            || ids.iter().any(|id| *id < self.forget_below)
        {
            bail!("its numbers contradict each other");
        }
        Ok(())
    }

    /// Returns the text of the document.
    pub fn text(&self) -> Result<Zeroizing<Vec<u8>>> {
        let digits: Vec<_> = self.entries().map(|entry| entry.secret.digits()).collect();
        let mut all: Vec<_> = self
            .entries()
            .zip(&digits)
            .map(|(entry, digits)| Numbered { id: entry.id, since: entry.since, secret: digits })
            .collect();
        let next = self.next.is_some().then(|| all.remove(0));
        let in_force = all.remove(0);
        let content = Content {
            version: VERSION,
            generation: self.generation,
            in_force,
            next,
            former: all,
            forget_below: self.forget_below,
        };
        // The buffer must not grow: growing would leave a copy of a secret behind.
        let mut text = Zeroizing::new(Vec::with_capacity(ENTRY * (2 + digits.len())));
        serde_json::to_writer(&mut *text, &content)?;
        Ok(text)
    }

    /// Returns all secrets, newest first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.next.iter().chain([&self.in_force]).chain(&self.former)
    }

    /// Returns the numbers of the document.
    pub fn outline(&self) -> Outline {
        Outline {
            generation: self.generation,
            in_force: self.in_force.id,
            fingerprint: self.in_force.secret.fingerprint(),
            next: self.next.as_ref().map(|next| next.id),
            forget_below: self.forget_below,
        }
    }
}

impl Outline {
    /// Returns the number of the newest secret.
    pub fn newest(&self) -> u64 {
        self.next.unwrap_or(self.in_force)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::fleet::seal::tests::key;

    #[test]
    fn a_document_survives_sealing() {
        let document =
            Document::first(1_000).unwrap().with_next().unwrap().enforced(2_000).with_next().unwrap();
        let sealed = document.seal(&key(1), "tfo/secret").unwrap();
        let opened = Document::open(&key(1), "tfo/secret", &sealed).unwrap();
        assert_eq!(opened.outline(), document.outline());
        assert_eq!(*opened.text().unwrap(), *document.text().unwrap());
        assert!(Document::open(&key(1), "other/secret", &sealed).is_err());
        for entry in document.entries() {
            let digits = entry.secret.digits();
            assert!(!sealed.windows(digits.len()).any(|part| part == digits.as_bytes()));
        }
    }

    #[test]
    fn a_broken_document_is_refused_and_not_quoted() {
        let text = Document::first(1_000).unwrap().text().unwrap();
        let text = str::from_utf8(&text).unwrap();
        let digits = Document::first(1).unwrap().in_force.secret.digits();
        for (from, to, complaint) in [
            ("\"version\":1", "\"version\":2", "of version 2"),
            ("\"generation\":1", "\"generation\":0", "contradict"),
            ("\"forget_below\":0", "\"forget_below\":2", "contradict"),
            ("\"id\":1", "\"id\":2", "contradict"),
            ("\"secret\":\"", "\"secret\":\"x", "secret 1 is not valid"),
            ("}", "", "no document"),
        ] {
            let broken = text.replacen(from, to, 1);
            assert_ne!(broken, text, "{from}");
            let error = Document::parse(broken.as_bytes()).err().expect("it is refused").to_string();
            assert!(error.contains(complaint) && !error.contains(&digits[..8]), "{from}: {error}");
        }
    }
}
