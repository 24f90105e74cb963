//! Waiting time that Fast Open saved: one round trip for each accepted connection.

use serde::Serialize;
use tfo_common::observed::{RTT_BUCKETS, RttBucket};

/// Round trips that accepted connections saved.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RttSaved {
    /// Number of connections whose handshake has ended.
    pub connections: u64,
    /// Sum of their round trips, in seconds.
    pub seconds: f64,
    /// Round trips by length, without the empty buckets.
    pub buckets: Vec<Bucket>,
}

/// Round trips of similar length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// Upper bound in microseconds, a power of two. Round trips are shorter than it, and not shorter than half of it.
    pub below_us: u64,
    /// Number of round trips.
    pub connections: u64,
    /// Sum of the round trips, in seconds.
    pub seconds: f64,
}

impl RttSaved {
    /// Reads the saved round trips from the buckets of a map.
    pub fn new(buckets: &[RttBucket; RTT_BUCKETS]) -> Self {
        let mut saved = Self::default();
        for (power, RttBucket { connections, us }) in buckets.iter().enumerate() {
            if *connections > 0 {
                let seconds = *us as f64 / 1e6;
                saved.put(Bucket { below_us: 1 << power, connections: *connections, seconds });
            }
        }
        saved
    }

    /// Adds the round trips of `other`.
    pub fn add(&mut self, other: &Self) {
        other.buckets.iter().for_each(|bucket| self.put(*bucket));
    }

    fn put(&mut self, bucket: Bucket) {
        self.connections += bucket.connections;
        self.seconds += bucket.seconds;
        match self.buckets.binary_search_by_key(&bucket.below_us, |bucket| bucket.below_us) {
            Ok(at) => {
                self.buckets[at].connections += bucket.connections;
                self.buckets[at].seconds += bucket.seconds;
            }
            Err(at) => self.buckets.insert(at, bucket),
        }
    }

    /// Estimates the median round trip, in seconds, as the mean of its bucket.
    pub fn median(&self) -> Option<f64> {
        let mut left = self.connections.div_ceil(2);
        let is_in = |bucket: &&Bucket| {
            let is_in = left <= bucket.connections;
            left = left.saturating_sub(bucket.connections);
            is_in
        };
        let bucket = self.buckets.iter().find(is_in)?;
        (bucket.connections > 0).then(|| bucket.seconds / bucket.connections as f64)
    }
}

/// Writes a time in a suitable unit, from microseconds to hours.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 3600.0 => format!("{s:.1} s"),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_mean_of_its_bucket() {
        let mut buckets = [RttBucket::default(); RTT_BUCKETS];
        assert_eq!(RttSaved::new(&buckets).median(), None);
        buckets[4] = RttBucket { connections: 2, us: 20 };
        buckets[14] = RttBucket { connections: 3, us: 30_000 };
        let mut saved = RttSaved::new(&buckets);
        assert_eq!((saved.connections, saved.median()), (5, Some(0.01)));
        buckets[14] = RttBucket { connections: 0, us: 0 };
        saved.add(&RttSaved::new(&buckets));
        assert_eq!((saved.connections, saved.buckets.len()), (7, 2));
        assert_eq!(saved.median(), Some(0.00001));
    }
}
