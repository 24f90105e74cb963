//! Decision of a host about a document: whether it is taken, and what is to be forgotten.

use std::fmt;

use super::document::{Document, Outline};

/// Documents that a host has taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Numbers of the last document; generation 0 before the first.
    taken: Outline,
}

/// Decision about a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The document is the one that was taken last.
    Known,
    /// The document is newer.
    Take {
        /// Whether secrets of the documents before have leaked.
        is_emergency: bool,
    },
    /// The document is refused.
    Refuse(Refusal),
}

/// Reason for which a document is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The document is older than the one that was taken last: somebody has written an old value again, or etcd was restored from
    /// a backup.
    Older {
        /// Generation of the document.
        generation: u64,
        /// Generation that was taken last.
        taken: u64,
    },
    /// The document has the generation of the one that was taken last, and other contents.
    Forked {
        /// Generation of both.
        generation: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Older { generation, taken } => write!(
                f,
                "its generation {generation} is older than {taken}, which this host has: it was written again, or etcd \
                 was restored from a backup (`tfo fleet restore` on this host writes what the host has)"
            ),
            Self::Forked { generation } => {
                write!(f, "this host has another document of generation {generation}")
            }
        }
    }
}

impl Member {
    /// Makes a host that has taken the document with these numbers, if any.
    pub fn new(taken: Outline) -> Self {
        Self { taken }
    }

    /// Returns the numbers of the document that was taken last.
    pub fn taken(&self) -> &Outline {
        &self.taken
    }

    /// Decides about `document`, and notes it if it is to be taken.
    pub fn receive(&mut self, document: &Document) -> Decision {
        let (outline, taken) = (document.outline(), &self.taken);
        if outline == *taken {
            return Decision::Known;
        }
        if outline.generation < taken.generation {
            return Decision::Refuse(Refusal::Older {
                generation: outline.generation,
                taken: taken.generation,
            });
        }
        if outline.generation == taken.generation {
            return Decision::Refuse(Refusal::Forked { generation: outline.generation });
        }
        let is_emergency = outline.forget_below > taken.forget_below;
        self.taken = outline;
        Decision::Take { is_emergency }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAKE: Decision = Decision::Take { is_emergency: false };
    const FORGET: Decision = Decision::Take { is_emergency: true };

    #[test]
    fn newer_documents_are_taken_once() {
        let mut member = Member::default();
        let mut document = Document::first(1).unwrap();
        for _ in 0..3 {
            assert_eq!(member.receive(&document), TAKE);
            assert_eq!(member.receive(&document), Decision::Known);
            document = document.with_next().unwrap();
            assert_eq!(member.receive(&document), TAKE);
            document = document.enforced(2);
        }
    }

    #[test]
    fn older_ones_are_refused_and_change_nothing() {
        let (old, new) = (Document::first(1).unwrap(), Document::first(1).unwrap().with_next().unwrap());
        let mut member = Member::default();
        member.receive(&new);
        let before = member.clone();
        let refusal = Refusal::Older { generation: 1, taken: 2 };
        assert_eq!(member.receive(&old), Decision::Refuse(refusal));
        assert_eq!(member, before);
        // After a start, too.
        assert!(matches!(Member::new(new.outline()).receive(&old), Decision::Refuse(_)));
    }

    #[test]
    fn another_document_of_the_same_generation_is_refused() {
        let mut member = Member::default();
        member.receive(&Document::first(1).unwrap().with_next().unwrap());
        for forked in [
            Document::first(1).unwrap().emergency(1).unwrap(),
            Document::first(1).unwrap().with_next().unwrap(),
        ] {
            assert_eq!(member.receive(&forked), Decision::Refuse(Refusal::Forked { generation: 2 }));
        }
    }

    #[test]
    fn an_emergency_is_seen_even_if_it_was_missed() {
        let document = Document::first(1).unwrap();
        let mut member = Member::default();
        member.receive(&document);
        let mut absent = member.clone();
        let document = document.emergency(2).unwrap();
        assert_eq!(member.receive(&document), FORGET);
        let document = document.with_next().unwrap().enforced(3);
        assert_eq!(member.receive(&document), TAKE);
        assert_eq!(absent.receive(&document), FORGET);
        // A new host may have a leaked key in its kernel, too.
        assert_eq!(Member::default().receive(&document), FORGET);
    }
}
