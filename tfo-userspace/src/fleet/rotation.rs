//! Changes of the fleet's document. Each makes the next generation.

use anyhow::{Context as _, Result};

use super::document::{Document, Entry, FORMER};
use crate::keys::secret::Secret;

impl Document {
    /// Returns the document with a new secret that every host is to learn. A secret that waits already is replaced.
    pub fn with_next(self) -> Result<Self> {
        let generation = self.following()?;
        let next = Some(Entry { id: generation, since: 0, secret: Secret::random()? });
        Ok(Self { generation, next, ..self })
    }

    /// Returns the document in which the secret that was to be learnt is in force since `now` (seconds since 1970).
    /// Without such a secret, it returns the same document.
    pub fn enforced(mut self, now: u64) -> Self {
        let Some(next) = self.next.take() else { return self };
        let before = std::mem::replace(&mut self.in_force, Entry { since: now, ..next });
        self.former.insert(0, before);
        self.former.truncate(FORMER);
        self.generation = self.generation.saturating_add(1);
        self
    }

    /// Returns the document with a new secret in force since `now`, which is the only one: all others have leaked.
    pub fn emergency(&self, now: u64) -> Result<Self> {
        let generation = self.following()?;
        let in_force = Entry { id: generation, since: now, secret: Secret::random()? };
        Ok(Self { generation, in_force, next: None, former: Vec::new(), forget_below: generation })
    }

    /// Returns the same document as a later generation than `stored`, for an etcd that has lost it.
    pub fn restored(mut self, stored: u64) -> Result<Self> {
        self.generation = self.generation.max(stored);
        self.generation = self.following()?;
        Ok(self)
    }

    fn following(&self) -> Result<u64> {
        self.generation.checked_add(1).context("the fleet has no generation left")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::document::Outline;

    /// Numbers of a document: generation, secret in force, secret to learn, and what to forget.
    fn numbers(document: &Document) -> (u64, u64, Option<u64>, u64) {
        let Outline { generation, in_force, next, forget_below, .. } = document.outline();
        (generation, in_force, next, forget_below)
    }

    #[test]
    fn a_rotation_has_two_steps() {
        let document = Document::first(10).unwrap();
        assert_eq!(numbers(&document), (1, 1, None, 0));
        let old = document.in_force.secret.digits();
        let learning = document.with_next().unwrap();
        assert_eq!(numbers(&learning), (2, 1, Some(2), 0));
        assert!(learning.in_force.secret.digits() == old);
        let new = learning.next.as_ref().unwrap().secret.digits();
        assert!(new != old);
        let enforced = learning.enforced(20);
        assert_eq!(numbers(&enforced), (3, 2, None, 0));
        assert!(enforced.in_force.secret.digits() == new && enforced.in_force.since == 20);
        assert!(enforced.former[0].secret.digits() == old && enforced.former[0].since == 10);
    }

    #[test]
    fn former_secrets_are_few() {
        let mut document = Document::first(1).unwrap();
        for now in 2..9 {
            document = document.with_next().unwrap().enforced(now);
            Document::parse(&document.text().unwrap()).unwrap();
        }
        assert_eq!(document.former.iter().map(|former| former.since).collect::<Vec<_>>(), [7, 6]);
    }

    #[test]
    fn an_emergency_leaves_one_secret() {
        let document = Document::first(1).unwrap().with_next().unwrap().enforced(2).with_next().unwrap();
        let leaked: Vec<_> = document.entries().map(|entry| entry.secret.digits()).collect();
        let document = document.emergency(3).unwrap();
        assert_eq!(numbers(&document), (5, 5, None, 5));
        assert_eq!(document.entries().count(), 1);
        assert!(!leaked.contains(&document.in_force.secret.digits()));
        // The number below which secrets are forgotten stays, for hosts that come back later.
        let later = document.with_next().unwrap().enforced(4);
        assert_eq!(numbers(&later), (7, 6, None, 5));
        Document::parse(&later.text().unwrap()).unwrap();
    }

    #[test]
    fn a_restored_document_is_newer_than_all() {
        let document = || Document::first(1).unwrap().with_next().unwrap();
        assert_eq!(numbers(&document().restored(0).unwrap()), (3, 1, Some(2), 0));
        assert_eq!(numbers(&document().restored(7).unwrap()), (8, 1, Some(2), 0));
    }

    #[test]
    fn a_second_rotation_takes_up_or_replaces_the_first() {
        let document = Document::first(1).unwrap().with_next().unwrap().with_next().unwrap();
        assert_eq!(numbers(&document), (3, 1, Some(3), 0));
        assert_eq!(numbers(&Document::first(1).unwrap().enforced(2)), (1, 1, None, 0));
    }
}
