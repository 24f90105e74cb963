//! How metrics are written: OpenMetrics, or the older format of Prometheus, which says the same.
//!
//! prometheus-client is the library for this, and was what we used. It writes every label of every row anew, through a
//! `dyn Write`, and OpenMetrics only: that took half of the time of a scrape with a thousand services, whose rows have the same
//! few labels over and over. Here, they are made once, as [`labels`], and rows are put together from them.

use std::fmt::Write as _;

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, for those who ask for it, as Prometheus does.
    OpenMetrics,
    /// The text format of Prometheus 0.0.4, for everybody else.
    Prometheus,
}

impl Format {
    /// What a client with these `Accept` headers gets.
    pub fn accepted<'a>(mut accept: impl Iterator<Item = &'a str>) -> Self {
        let has_open_metrics = accept.any(|value| value.contains("application/openmetrics-text"));
        if has_open_metrics { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

impl Kind {
    /// Its name, and what the names of its samples end with.
    const fn in_open_metrics(self) -> (&'static str, &'static str) {
        match self {
            Self::Counter => ("counter", "_total"),
            Self::Gauge => ("gauge", ""),
            Self::Histogram => ("histogram", ""),
            Self::Info => ("info", "_info"),
        }
    }
}

/// `a="b",c="d"`, as a row has it between its braces.
pub(super) fn labels(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        let comma = if text.is_empty() { "" } else { "," };
        let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        write!(text, "{comma}{name}=\"{value}\"").expect("writing to a String cannot fail");
    }
    text
}

/// All metrics, as text.
#[derive(Debug)]
pub(super) struct Exposition {
    text: String,
    format: Format,
}

impl Exposition {
    /// Nothing yet, with room for so many bytes: a text that grows is copied.
    pub(super) fn new(format: Format, room: usize) -> Self {
        Self { text: String::with_capacity(room), format }
    }

    /// Begins the metric `name`, whose rows come next. What it is measured in, if in anything, is the end of its name.
    pub(super) fn metric(&mut self, name: &str, kind: Kind, unit: Option<&str>, help: &str) -> Rows<'_> {
        let (type_name, suffix) = kind.in_open_metrics();
        let sample = format!("{name}{suffix}");
        let text = &mut self.text;
        // The older format calls a metric as its samples are called, and knows neither units nor infos.
        match (self.format, unit) {
            (Format::OpenMetrics, Some(unit)) => {
                write!(text, "# HELP {name} {help}\n# TYPE {name} {type_name}\n# UNIT {name} {unit}\n")
            }
            (Format::OpenMetrics, None) => write!(text, "# HELP {name} {help}\n# TYPE {name} {type_name}\n"),
            (Format::Prometheus, _) => {
                let type_name = if kind == Kind::Info { "gauge" } else { type_name };
                write!(text, "# HELP {sample} {help}\n# TYPE {sample} {type_name}\n")
            }
        }
        .expect("writing to a String cannot fail");
        Rows { text, sample }
    }

    /// The whole text.
    pub(super) fn end(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// The rows of one metric.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    text: &'a mut String,
    sample: String,
}

impl Rows<'_> {
    /// A row with all [`labels`] of `sets`, none of which is empty.
    pub(super) fn add(&mut self, sets: &[&str], value: u64) {
        self.begin("", sets);
        self.number(value);
    }

    /// The rows of a histogram: what is in each bucket alone, by the label `le` of its upper bound, and the sum of all.
    pub(super) fn histogram(&mut self, set: &str, buckets: &[(String, u64)], sum: f64) {
        let mut count = 0;
        for (le, in_it) in buckets {
            count += in_it;
            self.begin("_bucket", &[le, set]);
            self.number(count);
        }
        self.begin("_sum", &[set]);
        writeln!(self.text, "{sum}").expect("writing to a String cannot fail");
        self.begin("_count", &[set]);
        self.number(count);
    }

    fn begin(&mut self, suffix: &str, sets: &[&str]) {
        self.text.push_str(&self.sample);
        self.text.push_str(suffix);
        for (place, set) in sets.iter().enumerate() {
            self.text.push(if place == 0 { '{' } else { ',' });
            self.text.push_str(set);
        }
        self.text.push_str(if sets.is_empty() { " " } else { "} " });
    }

    fn number(&mut self, value: u64) {
        self.text.push_str(itoa::Buffer::new().format(value));
        self.text.push('\n');
    }
}
