//! Checks of connections from here, and of ways that SYNs with data don't pass. They need a running tfo, which has counted.

use anyhow::{Result, anyhow};
use tfo_common::observed::PrefixTally;

use super::{Finding, Status};
use crate::{
    dataplane::{Pinned, pins::Bpffs},
    kernel::netns,
    view::{
        client::{Client, Counts, Destination},
        network,
    },
};

/// Number of SYNs with data to a destination that were lost, none having arrived, from which on the way there is suspected.
/// Three losses in a row are rare where one packet in ten is lost.
const LOST: u64 = 3;
/// Number of requests for a cookie from a network that never came back with one, from which on the way from there is
/// suspected.
const ASKED: u64 = 32;
/// Maximum number of networks that are named.
const NAMED: usize = 3;

/// Counts of tfo on the first interface of the calling thread's network namespace.
pub(super) struct Counted {
    /// Connections from here; `None` if they are not followed.
    client: Option<Client>,
    /// Source prefixes, by name.
    sources: Vec<(String, PrefixTally)>,
}

impl Counted {
    /// Reads the counts; `None` if no tfo is attached here.
    pub(super) fn read(bpffs: &Bpffs) -> Result<Option<Self>> {
        let namespace = netns::netns()?;
        for pins in bpffs.attached()? {
            let pinned = Pinned::open(&pins)?;
            if pinned.info().netns == namespace {
                let client = Client::read(&pinned)?;
                let sources = pinned.prefixes().into_iter();
                let sources = sources.map(|(prefix, tally)| (network::of_prefix(prefix), tally)).collect();
                return Ok(Some(Self { client, sources }));
            }
        }
        Ok(None)
    }
}

/// Tells what Fast Open saved and cost for connections from here.
pub(super) fn client(counted: &Result<Option<Counted>>) -> Result<Finding> {
    Ok(match known(counted)? {
        None => Finding::ok("not followed: no tfo runs here"),
        Some(Counted { client: None, .. }) => {
            Finding::ok("not followed: that needs a cgroup2, and Linux 5.15 with type information")
        }
        Some(Counted { client: Some(client), .. }) => Finding::ok(client.sentence()),
    })
}

/// Looks for networks to or from which no SYN with data seems to arrive. For those to which we send, that is certain enough for a
/// warning. Those that send to us may have other reasons, so they are a hint.
pub(super) fn syn_data(counted: &Result<Option<Counted>>) -> Result<Finding> {
    let Some(counted) = known(counted)? else { return Ok(Finding::ok("not known: no tfo runs here")) };
    let to: Vec<_> =
        counted.client.iter().flat_map(|client| &client.destinations).filter_map(eaten_to).collect();
    let from: Vec<_> = counted.sources.iter().filter_map(eaten_from).collect();
    let status = match (to.is_empty(), from.is_empty()) {
        (true, true) => {
            return Ok(Finding::ok("no network is known to or from which SYNs with data never arrive"));
        }
        (true, false) => Status::Ok,
        (false, _) => Status::Warn,
    };
    let advice = "a firewall or balancer on the way may drop such SYNs: compare captures of both ends; Fast Open to there costs time";
    let found = [to, from].concat();
    let more = match found.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let found = found.into_iter().take(NAMED).collect::<Vec<_>>().join("; ");
    Ok(Finding {
        status,
        found: format!("SYNs with data may not arrive: {found}{more}"),
        advice: Some(advice.to_owned()),
    })
}

/// Describes a destination to which all SYNs with data were lost.
fn eaten_to(Destination { network, port, counts }: &Destination) -> Option<String> {
    let Counts { accepted, refused, lost, .. } = counts;
    let never = accepted + refused == 0 && *lost >= LOST;
    never.then(|| format!("to {network} port {port}, {lost} of {lost} were lost"))
}

/// Describes a source that asked for cookies and never came back with one.
fn eaten_from((prefix, tally): &(String, PrefixTally)) -> Option<String> {
    let never = tally.valid + tally.unknown == 0 && tally.requests >= ASKED;
    never.then(|| format!("from {prefix}, {} asked for a cookie and none came with one", tally.requests))
}

/// Returns what was counted, or the error of reading it.
fn known(counted: &Result<Option<Counted>>) -> Result<Option<&Counted>> {
    counted.as_ref().map(Option::as_ref).map_err(|error| anyhow!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use tfo_common::client;

    use super::*;

    fn counted(to: &[Counts], from: &[PrefixTally]) -> Result<Option<Counted>> {
        let destination =
            |counts: &Counts| Destination { network: "192.0.2.0/24".to_owned(), port: 443, counts: *counts };
        let client = Client {
            destinations: to.iter().map(destination).collect(),
            ..Client::new(&client::Client::EMPTY, None)
        };
        let sources = from.iter().map(|tally| ("198.51.100.0/24".to_owned(), *tally)).collect();
        Ok(Some(Counted { client: Some(client), sources }))
    }

    fn judge(to: &[Counts], from: &[PrefixTally]) -> Finding {
        syn_data(&counted(to, from)).unwrap()
    }

    #[test]
    fn a_way_is_suspected_only_if_nothing_ever_arrived() {
        let lost = Counts { lost: LOST, ..Counts::default() };
        let found = judge(&[lost], &[]);
        assert_eq!(found.status, Status::Warn);
        assert_eq!(found.found, "SYNs with data may not arrive: to 192.0.2.0/24 port 443, 3 of 3 were lost");
        for counts in [
            Counts { lost: LOST - 1, ..Counts::default() },
            Counts { accepted: 1, ..lost },
            Counts { refused: 1, ..lost },
            Counts { granted: 99, ..Counts::default() },
        ] {
            assert_eq!(judge(&[counts], &[]).status, Status::Ok, "{counts:?}");
            assert_eq!(judge(&[counts], &[]).advice, None, "{counts:?}");
        }
        assert!(judge(&[lost; 5], &[]).found.ends_with("; and 2 more"));
    }

    #[test]
    fn sources_that_only_ask_are_a_hint() {
        let asked = PrefixTally { requests: ASKED, ..PrefixTally::NEW };
        let found = judge(&[], &[asked]);
        assert_eq!((found.status, found.advice.is_some()), (Status::Ok, true));
        assert!(found.found.contains("from 198.51.100.0/24, 32 asked"), "{}", found.found);
        for tally in [
            PrefixTally { requests: ASKED - 1, ..asked },
            PrefixTally { valid: 1, ..asked },
            PrefixTally { unknown: 1, ..asked },
        ] {
            assert_eq!(judge(&[], &[tally]).advice, None, "{tally:?}");
        }
    }

    #[test]
    fn without_tfo_there_is_nothing_to_say() {
        assert_eq!(client(&Ok(None)).unwrap().status, Status::Ok);
        assert_eq!(syn_data(&Ok(None)).unwrap().status, Status::Ok);
        assert!(client(&Err(anyhow!("no"))).is_err());
        let unknown = Ok(Some(Counted { client: None, sources: Vec::new() }));
        assert!(client(&unknown).unwrap().found.starts_with("not followed"));
    }
}
