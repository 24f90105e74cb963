//! Page of `tfo report`: one HTML file that needs no scripts and no network.

pub mod page;
pub mod plot;

use std::time::Duration;

use crate::{
    fleet::feed::State,
    view::{
        counters::Report,
        history::{SAMPLE_INTERVAL, Sample, rate},
        key_listing::Listing,
    },
};

/// Contents of the page for one interface.
pub struct Section {
    /// Counters of the interface.
    pub report: Report,
    /// Keys in the map, by role.
    pub keys: Listing,
    /// State of this host in its fleet; `None` if the keys do not come from etcd.
    pub fleet: Option<State>,
    /// Samples of the last hour.
    pub hour: Hour,
}

/// Samples of the last hour, or since the controller started if that is shorter.
#[derive(Debug)]
pub struct Hour(Vec<Sample>);

/// Points of an unbroken curve: a time in seconds from now (negative), and a rate.
pub type Run = Vec<(f64, f64)>;

impl Hour {
    /// Takes the controller's samples, oldest first.
    pub fn new(mut samples: Vec<Sample>) -> Self {
        // The last sample was taken for this request. Right after another, it gives a rate over almost no time.
        if let [_, .., before, last] = &samples[..]
            && elapsed(before, last) < SAMPLE_INTERVAL / 2
        {
            samples.remove(samples.len() - 2);
        }
        Self(samples)
    }

    /// Returns the age of the oldest sample.
    pub fn span(&self) -> Duration {
        self.0.first().map_or(Duration::ZERO, |sample| Duration::from_millis(sample.age_ms))
    }

    /// Returns the latest sample.
    pub fn latest(&self) -> Option<&Sample> {
        self.0.last()
    }

    /// Returns the increase of the counter `of` over all samples. An interval in which it was reset adds nothing.
    pub fn gain(&self, of: impl Fn(&Sample) -> Option<u64>) -> u64 {
        let gains = self.0.windows(2).filter_map(|pair| of(&pair[1])?.checked_sub(of(&pair[0])?));
        gains.sum()
    }

    /// Returns the rates per second of the counter `of`. Each interval without a known rate begins a new run.
    pub fn runs(&self, of: impl Fn(&Sample) -> Option<u64>) -> Vec<Run> {
        let mut runs = vec![Run::new()];
        for pair in self.0.windows(2) {
            let [earlier, later] = [&pair[0], &pair[1]];
            let both = of(earlier).zip(of(later));
            match both.and_then(|(before, after)| rate(before, after, elapsed(earlier, later))) {
                Some(rate) => {
                    let moment = (-(later.age_ms as f64) / 1000.0, rate);
                    runs.last_mut().expect("there is one from the beginning").push(moment);
                }
                None => runs.push(Run::new()),
            }
        }
        runs.retain(|run| !run.is_empty());
        runs
    }
}

fn elapsed(earlier: &Sample, later: &Sample) -> Duration {
    Duration::from_millis(earlier.age_ms.saturating_sub(later.age_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::history::Totals;

    fn hour(samples: &[(u64, u64)]) -> Hour {
        let sample = |(age_ms, malformed): &(u64, u64)| Sample {
            age_ms: *age_ms,
            totals: Totals { malformed: *malformed, ..Totals::default() },
            kernel: None,
        };
        Hour::new(samples.iter().map(sample).collect())
    }

    fn malformed(sample: &Sample) -> Option<u64> {
        Some(sample.totals.malformed)
    }

    #[test]
    fn a_count_that_began_anew_is_a_gap() {
        let hour = hour(&[(20_000, 10), (15_000, 20), (10_000, 5), (5_000, 15), (0, 16)]);
        assert_eq!(hour.runs(malformed), [vec![(-15.0, 2.0)], vec![(-5.0, 2.0), (0.0, 0.2)]]);
        assert_eq!(hour.gain(malformed), 10 + 10 + 1);
        assert_eq!(hour.runs(|_| None), Vec::<Run>::new());
        assert_eq!(hour.span(), Duration::from_secs(20));
    }

    #[test]
    fn the_last_rate_is_never_of_an_instant() {
        assert_eq!(hour(&[(5_010, 0), (10, 10), (0, 12)]).runs(malformed), [[(0.0, 12.0 / 5.01)]]);
        // Of only two samples, none is left out.
        assert_eq!(hour(&[(1000, 0), (0, 12)]).runs(malformed), [[(0.0, 12.0)]]);
        assert_eq!(hour(&[]).gain(malformed), 0);
    }
}
