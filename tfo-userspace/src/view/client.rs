//! Connections that began here with Fast Open: what became of them, as text and JSON.

use std::cmp::Reverse;

use anyhow::Result;
use comfy_table::CellAlignment::{Left, Right};
use serde::Serialize;
use tfo_common::{
    client::{self, Attempt, Attempts, Network},
    segment::Family,
};
use tracing::debug;

use crate::{
    dataplane::Pinned,
    kernel::{netns, tcp_metrics},
    view::{
        network,
        rtt_saved::{RttSaved, seconds},
        table::table,
    },
};

/// Maximum number of destinations in a text.
const MAX_ROWS: usize = 20;

/// Connections from here, in the whole network namespace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Client {
    /// Connections by family, without the families that have none.
    pub families: Vec<FamilyRow>,
    /// Round trips that accepted connections saved.
    pub rtt_saved: RttSaved,
    /// Seconds from the SYN to the SYN-ACK of connections whose SYN with data was lost.
    pub lost_seconds: f64,
    /// Destinations, the one with most connections first.
    pub destinations: Vec<Destination>,
    /// Number of destinations that made room for others.
    pub destinations_forgotten: u64,
    /// Number of cookies that the kernel holds for connections from here; null if that is not known, as in another network
    /// namespace.
    pub cookies_held: Option<usize>,
}

/// Connections of one family.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FamilyRow {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Numbers of connections.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Connections to one network and port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Destination {
    /// Network, such as `192.0.2.0/24`.
    pub network: String,
    /// Port.
    pub port: u32,
    /// Numbers of connections.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Numbers of connections, by what became of them ([`Attempt`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Asked for a cookie and got one.
    pub granted: u64,
    /// Asked for a cookie and got none.
    pub withheld: u64,
    /// Sent data with the SYN, which was accepted.
    pub accepted: u64,
    /// Sent data with the SYN, which was refused and sent again.
    pub refused: u64,
    /// Sent data with the SYN, which was lost and sent again.
    pub lost: u64,
    /// Went without Fast Open, since the kernel pauses it.
    pub paused: u64,
}

impl From<&Attempts> for Counts {
    fn from(attempts: &Attempts) -> Self {
        let of = |attempt: Attempt| attempts.0[attempt.index()];
        Self {
            granted: of(Attempt::Granted),
            withheld: of(Attempt::Withheld),
            accepted: of(Attempt::Accepted),
            refused: of(Attempt::Refused),
            lost: of(Attempt::Lost),
            paused: of(Attempt::Paused),
        }
    }
}

impl Counts {
    /// Returns the number of connections that asked for a cookie.
    pub const fn asked(&self) -> u64 {
        self.granted + self.withheld
    }

    /// Returns the number of connections that sent data with the SYN: they had a cookie.
    pub const fn with_data(&self) -> u64 {
        self.accepted + self.refused + self.lost
    }

    /// Returns the number of all connections.
    pub const fn all(&self) -> u64 {
        self.asked() + self.with_data() + self.paused
    }

    /// Returns the numbers for a table with the columns of [`COLUMNS`].
    pub const fn row(&self) -> [u64; COLUMNS.len()] {
        [self.asked(), self.granted, self.with_data(), self.accepted, self.refused, self.lost, self.paused]
    }

    fn add(&mut self, other: &Self) {
        let Self { granted, withheld, accepted, refused, lost, paused } = other;
        self.granted += granted;
        self.withheld += withheld;
        self.accepted += accepted;
        self.refused += refused;
        self.lost += lost;
        self.paused += paused;
    }
}

/// Heads of the numbers of [`Counts::row`].
pub const COLUMNS: [&str; 7] = ["asked", "got", "with data", "accepted", "refused", "lost", "paused"];

impl Client {
    /// Makes a report of `counts`, and of the destinations in `networks`, if these have been read.
    pub fn new(counts: &client::Client, networks: Option<Vec<(Network, Attempts)>>) -> Self {
        let rows = Family::ALL.iter().zip(&counts.attempts).filter(|(_, attempts)| attempts.all() > 0);
        let families = rows.map(|(family, of)| FamilyRow { family: family.name(), counts: of.into() });
        let known = networks.as_ref().map_or(counts.destinations, |networks| networks.len() as u64);
        Self {
            families: families.collect(),
            rtt_saved: RttSaved::new(&counts.rtt_saved),
            lost_seconds: counts.lost_us as f64 / 1e6,
            destinations: destinations(networks.unwrap_or_default()),
            destinations_forgotten: counts.destinations.saturating_sub(known),
            cookies_held: None,
        }
    }

    /// Reads the counts and destinations in `pinned`; `None` if connections from here are not followed.
    pub fn read(pinned: &Pinned) -> Result<Option<Self>> {
        let Some(counts) = pinned.client()? else { return Ok(None) };
        let is_our_namespace = pinned.info().netns == netns::netns()?;
        let cookies_held = is_our_namespace.then(tcp_metrics::cookies_held).transpose();
        let cookies_held = cookies_held.inspect_err(|error| debug!("{error:#}")).unwrap_or_default();
        Ok(Some(Self { cookies_held, ..Self::new(&counts, Some(pinned.networks())) }))
    }

    /// Returns the numbers of connections of both families.
    pub fn sum(&self) -> Counts {
        let mut sum = Counts::default();
        self.families.iter().for_each(|row| sum.add(&row.counts));
        sum
    }

    /// Formats the destinations with most connections, and the sentence.
    pub fn text(&self) -> String {
        let shown = self.destinations.iter().take(MAX_ROWS);
        let rows = shown.map(|Destination { network, port, counts }| {
            [network.clone(), port.to_string()].into_iter().chain(counts.row().map(|n| n.to_string()))
        });
        let mut columns = vec![("to", Left), ("port", Right)];
        columns.extend(COLUMNS.map(|head| (head, Right)));
        let mut text = String::new();
        if !self.destinations.is_empty() {
            text += &table(&columns, rows);
        }
        if let more @ 1.. = self.destinations.len().saturating_sub(MAX_ROWS) {
            text += &format!("and {more} more: --json has all\n");
        }
        text + &self.sentence()
    }

    /// Describes in sentences what Fast Open did for connections from here, what it saved and what it cost.
    pub fn sentence(&self) -> String {
        let sum = self.sum();
        let Counts { granted, accepted, refused, lost, paused, .. } = sum;
        let mut parts = Vec::new();
        if sum.asked() > 0 {
            parts.push(format!("{} asked for a cookie, and {granted} got one", sum.asked()));
        }
        if sum.with_data() > 0 {
            let data = format!("{} sent data with the SYN", sum.with_data());
            parts.push(format!("{data}: {accepted} accepted, {refused} refused, {lost} lost"));
        }
        if paused > 0 {
            parts.push(format!("{paused} went without, since the kernel pauses Fast Open"));
        }
        let held = self.cookies_held.map_or_else(String::new, |held| format!(" Cookies held: {held}."));
        if parts.is_empty() {
            return format!("No connection from here has used Fast Open yet.{held}");
        }
        let [saved, cost] = [self.rtt_saved.seconds, self.lost_seconds].map(seconds);
        let balance = match (accepted, lost) {
            (0, 0) => "It has saved nothing yet.".to_owned(),
            (_, 0) => format!("It saved {saved} of waiting."),
            (0, _) => format!("It saved nothing, and {cost} went by until SYNs were repeated without data."),
            _ => format!(
                "It saved {saved} of waiting, and {cost} went by until SYNs were repeated without data."
            ),
        };
        format!("Fast Open from here: {}. {balance}{held}", parts.join("; "))
    }
}

fn destinations(mut networks: Vec<(Network, Attempts)>) -> Vec<Destination> {
    networks.sort_by_key(|(network, attempts)| {
        (Reverse(attempts.all()), network.family, network.bytes.swap_bytes(), network.port)
    });
    let named = networks.iter().map(|(network, attempts)| Destination {
        network: network::of(network.family, network.bytes, Network::BITS),
        port: network.port,
        counts: attempts.into(),
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use tfo_common::{client::ATTEMPT_SLOTS, observed::RttBucket};

    use super::*;
    use crate::model::keys::addresses;

    fn attempts(counts: &[(Attempt, u64)]) -> Attempts {
        let mut attempts = [0; ATTEMPT_SLOTS];
        counts.iter().for_each(|(attempt, count)| attempts[attempt.index()] = *count);
        Attempts(attempts)
    }

    fn network(remote: &str, here: &str, port: u32) -> Network {
        Network::of(&addresses(remote.parse().unwrap(), here.parse().unwrap()).unwrap(), port)
    }

    #[test]
    fn the_sentence_tells_what_was_saved_and_what_it_cost() {
        let says = |counts: &[(Attempt, u64)], lost_us| {
            let mut client = client::Client { lost_us, ..client::Client::EMPTY };
            client.attempts[1] = attempts(counts);
            client.rtt_saved[10] = RttBucket { connections: 1, us: 600 };
            Client { cookies_held: Some(7), ..Client::new(&client, None) }.sentence()
        };
        assert_eq!(says(&[], 0), "No connection from here has used Fast Open yet. Cookies held: 7.");
        assert_eq!(
            says(&[(Attempt::Granted, 2), (Attempt::Withheld, 1)], 0),
            "Fast Open from here: 3 asked for a cookie, and 2 got one. It has saved nothing yet. Cookies held: 7."
        );
        assert_eq!(
            says(&[(Attempt::Accepted, 5), (Attempt::Refused, 1)], 0),
            "Fast Open from here: 6 sent data with the SYN: 5 accepted, 1 refused, 0 lost. It saved 600 us of waiting. \
             Cookies held: 7."
        );
        let text = says(&[(Attempt::Accepted, 5), (Attempt::Lost, 2), (Attempt::Paused, 1)], 2_100_000);
        assert!(text.contains(
            "It saved 600 us of waiting, and 2.1 s went by until SYNs were repeated without data. "
        ));
        assert!(text.contains("; 1 went without, since the kernel pauses Fast Open."), "{text}");
    }

    #[test]
    fn the_busiest_destinations_come_first_and_the_rest_is_counted() {
        let mut networks: Vec<_> = (1..=30)
            .map(|n| (network(&format!("10.0.{n}.1"), "10.1.0.1", 80), attempts(&[(Attempt::Accepted, n)])))
            .collect();
        networks.push((network("2001:db8::9", "2001:db8::1", 443), attempts(&[(Attempt::Lost, 99)])));
        let client = client::Client { destinations: 33, ..client::Client::EMPTY };
        let client = Client::new(&client, Some(networks));
        assert_eq!((client.destinations.len(), client.destinations_forgotten), (31, 2));
        assert_eq!(
            (client.destinations[0].network.as_str(), client.destinations[0].port),
            ("2001:db8::/48", 443)
        );
        assert_eq!(client.destinations[1].network, "10.0.30.0/24");
        let text = client.text();
        assert!(text.contains("and 11 more"), "{text}");
    }
}
