//! `tfo report`: what Fast Open does here, as one page that needs nothing else.

pub mod page;
pub mod plot;

use std::time::Duration;

use crate::view::{
    counters::Report,
    history::{EVERY, Sample, rate},
    key_listing::Listing,
};

/// What the page says of one interface.
pub struct Section {
    /// The counters.
    pub report: Report,
    /// The keys, by their roles.
    pub keys: Listing,
    /// The last hour.
    pub hour: Hour,
}

/// The last hour, or as much of it as the controller has seen.
#[derive(Debug)]
pub struct Hour(Vec<Sample>);

/// Moments, in seconds from now (so they are negative), and a rate at each.
pub type Run = Vec<(f64, f64)>;

impl Hour {
    /// That of the controller's samples, oldest first.
    pub fn new(mut samples: Vec<Sample>) -> Self {
        // The last one was taken when it was asked for. Right after another one, it would make a rate of next to nothing.
        if let [_, .., before, last] = &samples[..]
            && elapsed(before, last) < EVERY / 2
        {
            samples.remove(samples.len() - 2);
        }
        Self(samples)
    }

    /// How far back it goes.
    pub fn span(&self) -> Duration {
        self.0.first().map_or(Duration::ZERO, |sample| Duration::from_millis(sample.age_ms))
    }

    /// The latest sample.
    pub fn latest(&self) -> Option<&Sample> {
        self.0.last()
    }

    /// What `of` has counted in all of it; what happened while it began anew is missing.
    pub fn gain(&self, of: impl Fn(&Sample) -> Option<u64>) -> u64 {
        let gains = self.0.windows(2).filter_map(|pair| of(&pair[1])?.checked_sub(of(&pair[0])?));
        gains.sum()
    }

    /// The rates of what `of` counts, in a second; a new run wherever it is not known in between.
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
        // With two, there is nothing better.
        assert_eq!(hour(&[(1000, 0), (0, 12)]).runs(malformed), [[(0.0, 12.0)]]);
        assert_eq!(hour(&[]).gain(malformed), 0);
    }
}
