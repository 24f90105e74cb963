//! Connections that this host began with Fast Open, as the sock_ops program counts them.

use crate::{
    observed::{RTT_BUCKETS, RttBucket},
    segment::{Addresses, Family},
};

/// Number of destinations that are remembered. The one not seen for longest makes room.
///
/// An entry takes some 140 bytes, so all of them take 0.6 MB. Programs that use Fast Open as clients are proxies,
/// which have few destinations, and resolvers, which have some thousand networks of name servers.
pub const DESTINATIONS: usize = 1 << 12;
/// Number of places for counts by [`Attempt`]. It is a power of two, so that a mask keeps an index in bounds.
pub const ATTEMPT_SLOTS: usize = 8;

named! {
    /// End of the handshake of a connection from here, for which a program wanted Fast Open.
    ///
    /// `tcp_rcv_fastopen_synack` in net/ipv4/tcp_input.c makes the same distinctions for tcpi_fastopen_client_fail and for
    /// its counters.
    pub enum Attempt {
        /// The SYN asked for a cookie (RFC 7413, 4.1.1), and the SYN-ACK brought one.
        Granted = "granted",
        /// The SYN asked for a cookie, and none came.
        Withheld = "withheld",
        /// The SYN had data, and the SYN-ACK acknowledged it: TCPFastOpenActive.
        Accepted = "accepted",
        /// The SYN had data, and the first SYN-ACK acknowledged the SYN only. The data was sent again:
        /// TCPFastOpenActiveFail, `TFO_DATA_NOT_ACKED`.
        Refused = "refused",
        /// The SYN had data, and was repeated without it after a time-out. The data was sent again: TCPFastOpenActiveFail,
        /// `TFO_SYN_RETRANSMITTED`.
        Lost = "lost",
        /// The SYN had no option and no data. The kernel pauses Fast Open after losses (`tcp_fastopen_active_should_disable`).
        Paused = "paused",
    }
}

impl Attempt {
    /// Returns what became of a connection, from its state when the SYN-ACK has been read.
    ///
    /// `had_option` and `had_data` tell what the first SYN had, and `is_acknowledged` whether the SYN-ACK acknowledged all
    /// that was sent. `repeats` is the number of repeated segments, and `has_cookie` tells whether the SYN-ACK had a cookie.
    #[inline(always)]
    pub fn of(
        had_option: bool,
        had_data: bool,
        is_acknowledged: bool,
        repeats: u32,
        has_cookie: impl FnOnce() -> bool,
    ) -> Self {
        match (had_data, is_acknowledged, repeats) {
            (true, true, _) => Self::Accepted,
            (true, false, 0) => Self::Refused,
            (true, false, _) => Self::Lost,
            (false, ..) if !had_option => Self::Paused,
            (false, ..) if has_cookie() => Self::Granted,
            (false, ..) => Self::Withheld,
        }
    }
}

/// Counts by [`Attempt`] index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Attempts(pub [u64; ATTEMPT_SLOTS]);

impl Attempts {
    /// Counts that are all zero.
    pub const NONE: Self = Self([0; ATTEMPT_SLOTS]);

    /// Returns the number of connections that ended in one of `attempts`.
    pub fn sum(&self, attempts: &[Attempt]) -> u64 {
        attempts.iter().map(|attempt| self.0[attempt.index()]).sum()
    }

    /// Returns the number of all connections.
    pub fn all(&self) -> u64 {
        self.sum(Attempt::ALL)
    }

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, count)| *sum += count);
    }
}

/// Counts of all connections of the network namespace. Several CPUs add to them at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Client {
    /// Connections, by [`Family`] index.
    pub attempts: [Attempts; Family::COUNT],
    /// Time from the first SYN to the SYN-ACK of the connections that are [`Attempt::Lost`], in microseconds.
    pub lost_us: u64,
    /// Number of destinations that were put into their map. Those that are no longer in it had to make room.
    pub destinations: u64,
    /// Round trips that the accepted connections did not wait for, by [`rtt_bucket`](crate::observed::rtt_bucket).
    pub rtt_saved: [RttBucket; RTT_BUCKETS],
}

impl Client {
    /// Counts that are all zero.
    pub const EMPTY: Self = Self {
        attempts: [Attempts::NONE; Family::COUNT],
        lost_us: 0,
        destinations: 0,
        rtt_saved: [RttBucket { connections: 0, us: 0 }; RTT_BUCKETS],
    };

    /// Adds the counts of other connections.
    pub fn add(&mut self, other: &Self) {
        let Self { attempts, lost_us, destinations, rtt_saved } = other;
        self.attempts.iter_mut().zip(attempts).for_each(|(sum, family)| sum.add(family));
        self.lost_us += lost_us;
        self.destinations += destinations;
        for (sum, bucket) in self.rtt_saved.iter_mut().zip(rtt_saved) {
            sum.connections += bucket.connections;
            sum.us += bucket.us;
        }
    }
}

/// Network and port that connections go to: of an IPv4 address the first three bytes (/24), of an IPv6 address the first
/// six (/48), which is what a site usually has (RFC 6177).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Network {
    /// Bytes of the prefix, in the order of a little-endian word, with zeros behind them.
    pub bytes: u64,
    /// [`Family`] index.
    pub family: u32,
    /// Port, in host byte order.
    pub port: u32,
}

impl Network {
    /// Number of bits of the prefix, by [`Family`] index.
    pub const BITS: [u8; Family::COUNT] = [24, 48];

    /// Returns the network of the source of `addresses`: the remote end, in the direction of the SYN-ACK.
    #[inline(always)]
    pub const fn of(addresses: &Addresses, port: u32) -> Self {
        let family = addresses.family.index();
        let mask = match addresses.family {
            Family::Ipv4 => (1 << Self::BITS[0]) - 1,
            Family::Ipv6 => (1 << Self::BITS[1]) - 1,
        };
        Self { bytes: addresses.words[0] & mask, family: family as u32, port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_decides_before_the_option() {
        let of = |option, data, acknowledged, repeats, cookie| {
            Attempt::of(option, data, acknowledged, repeats, || cookie)
        };
        // A host may also send data without a cookie, and so without the option (`TFO_CLIENT_NO_COOKIE`).
        for option in [false, true] {
            for cookie in [false, true] {
                assert_eq!(of(option, true, true, 0, cookie), Attempt::Accepted);
                assert_eq!(of(option, true, true, 1, cookie), Attempt::Accepted, "a late SYN-ACK");
                assert_eq!(of(option, true, false, 0, cookie), Attempt::Refused);
                assert_eq!(of(option, true, false, 2, cookie), Attempt::Lost);
            }
        }
        assert_eq!(of(true, false, true, 0, true), Attempt::Granted);
        assert_eq!(of(true, false, true, 1, false), Attempt::Withheld);
        assert_eq!(of(false, false, true, 0, false), Attempt::Paused);
    }

    #[test]
    fn a_network_has_no_bits_of_the_host() {
        let all = |family| Addresses { family, words: [u64::MAX; 4] };
        let v4 = Network::of(&all(Family::Ipv4), 443);
        assert_eq!((v4.bytes, v4.family, v4.port), (0xff_ffff, 0, 443));
        assert_eq!(Network::of(&all(Family::Ipv6), 443).bytes, 0xffff_ffff_ffff);
    }

    #[test]
    fn counts_add_up() {
        let mut attempts = Attempts::NONE;
        attempts.0[Attempt::Lost.index()] = 2;
        let mut client = Client { attempts: [attempts; 2], lost_us: 7, destinations: 1, ..Client::EMPTY };
        client.rtt_saved[3] = RttBucket { connections: 1, us: 5 };
        let mut sum = client;
        sum.add(&client);
        assert_eq!((sum.attempts[1].all(), sum.lost_us, sum.destinations), (4, 14, 2));
        assert_eq!(sum.rtt_saved[3], RttBucket { connections: 2, us: 10 });
        assert_eq!(sum.attempts[0].sum(&[Attempt::Accepted]), 0);
    }
}
