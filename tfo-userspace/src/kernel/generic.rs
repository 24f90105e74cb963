//! Requests to families of generic netlink, in the calling thread's network namespace.

use std::{io, marker::PhantomData};

use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use rtnetlink::{
    packet_core::{
        DecodeError, DefaultNla, Emitable, Nla as _, NlasIterator, Parseable as _, ParseableParametrized,
    },
    sys::protocols::NETLINK_GENERIC,
};

use crate::kernel::netlink;

/// Question to a family.
pub trait Question {
    /// Name of the family.
    const FAMILY: &'static str;
    /// Number of the command.
    const COMMAND: u8;
}

/// Attributes of a message.
#[derive(Debug)]
pub struct Attributes<Q> {
    all: Vec<DefaultNla>,
    question: PhantomData<Q>,
}

impl<Q> Attributes<Q> {
    fn new(all: Vec<DefaultNla>) -> Self {
        Self { all, question: PhantomData }
    }

    /// Returns the value of the attribute of `kind`, if there is one.
    pub fn get(&self, kind: u16) -> Option<Vec<u8>> {
        let found = self.all.iter().find(|attribute| attribute.kind() == kind)?;
        let mut value = vec![0; found.value_len()];
        found.emit_value(&mut value);
        Some(value)
    }
}

/// Asks `Q` about what `attributes` (kind and value) name, and returns the one answer; `None` if the kernel lacks the family.
pub fn ask<Q: Question + std::fmt::Debug>(attributes: &[(u16, &[u8])]) -> io::Result<Option<Attributes<Q>>> {
    let Some(question) = question(attributes)? else { return Ok(None) };
    Ok(Some(netlink::ask(NETLINK_GENERIC, question)?.payload))
}

/// Asks `Q` about all that there is; `None` if the kernel lacks the family.
pub fn dump<Q: Question + std::fmt::Debug>() -> io::Result<Option<Vec<Attributes<Q>>>> {
    let Some(question) = question(&[])? else { return Ok(None) };
    let answers = netlink::dump(NETLINK_GENERIC, question)?;
    Ok(Some(answers.into_iter().map(|answer: GenlMessage<_>| answer.payload).collect()))
}

fn question<Q: Question + std::fmt::Debug>(
    attributes: &[(u16, &[u8])],
) -> io::Result<Option<GenlMessage<Attributes<Q>>>> {
    let family = match family(Q::FAMILY) {
        Ok(family) => family,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let attributes = attributes.iter().map(|(kind, value)| DefaultNla::new(*kind, value.to_vec()));
    let mut question = GenlMessage::from_payload(Attributes::new(attributes.collect()));
    question.set_resolved_family_id(family);
    Ok(Some(question))
}

/// Returns the number of the family `name`.
fn family(name: &str) -> io::Result<u16> {
    let question = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(name.to_owned())],
    });
    let answer = netlink::ask(NETLINK_GENERIC, question)?;
    let number = answer.payload.nlas.iter().find_map(|attribute| match attribute {
        GenlCtrlAttrs::FamilyId(number) => Some(*number),
        _ => None,
    });
    number.ok_or_else(|| io::Error::other(format!("the kernel gave the family {name} no number")))
}

impl<Q: Question> GenlFamily for Attributes<Q> {
    fn family_name() -> &'static str {
        Q::FAMILY
    }

    fn command(&self) -> u8 {
        Q::COMMAND
    }

    fn version(&self) -> u8 {
        1
    }
}

impl<Q> Emitable for Attributes<Q> {
    fn buffer_len(&self) -> usize {
        self.all.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.all.as_slice().emit(buffer);
    }
}

impl<Q> ParseableParametrized<[u8], GenlHeader> for Attributes<Q> {
    fn parse_with_param(attributes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let all = NlasIterator::new(attributes).map(|nla| DefaultNla::parse(&nla?));
        all.collect::<Result<_, _>>().map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_the_kernel_lacks_is_not_found() {
        // Before Linux 6.3, the answer for `netdev` is the same.
        assert_eq!(family("nonesuch").err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
        assert!(family("nlctrl").is_ok());
    }
}
