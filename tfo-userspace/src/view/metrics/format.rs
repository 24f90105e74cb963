//! How metrics are written: OpenMetrics, or the older format of Prometheus, which says the same.

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

    /// What OpenMetrics says in `text`, whole metrics without the end, in this format.
    pub(super) fn of_open_metrics(self, text: String) -> String {
        match self {
            Self::OpenMetrics => text,
            Self::Prometheus => older(&text),
        }
    }
}

/// OpenMetrics as the text format of Prometheus 0.0.4: the samples are the same, and are copied metric by metric. There, a
/// counter's family is called as its samples are, there are no units, and what is an info is a gauge.
fn older(text: &str) -> String {
    let mut older = String::with_capacity(text.len());
    // A line feed in a label is written as `\n`, so this is the beginning of a line.
    for metric in text.strip_prefix("# HELP ").unwrap_or(text).split("\n# HELP ") {
        let (help, rest) = metric.split_once('\n').unwrap_or((metric, ""));
        let (kind, rest) = rest.split_once('\n').unwrap_or((rest, ""));
        let (name, help) = help.split_once(' ').unwrap_or((help, ""));
        let (suffix, kind) = match kind.rsplit(' ').next().unwrap_or_default() {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            kind => ("", kind),
        };
        older += &format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
        let samples =
            if rest.starts_with('#') { rest.split_once('\n').map_or("", |(_, rest)| rest) } else { rest };
        older.push_str(samples);
        if !older.ends_with('\n') {
            older.push('\n');
        }
    }
    older
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_has_the_same_samples() {
        let open_metrics = "# HELP a_bytes What\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{b=\"# HELP \"} 1\n\
            # HELP none Nothing yet\n# TYPE none histogram\n# UNIT none seconds\n\
            # HELP c This tfo\n# TYPE c info\nc_info{d=\"e\"} 1\n\
            # HELP f g\n# TYPE f gauge\nf 2\nf 3\n";
        let prometheus = "# HELP a_bytes_total What\n# TYPE a_bytes_total counter\na_bytes_total{b=\"# HELP \"} 1\n\
            # HELP none Nothing yet\n# TYPE none histogram\n\
            # HELP c_info This tfo\n# TYPE c_info gauge\nc_info{d=\"e\"} 1\n\
            # HELP f g\n# TYPE f gauge\nf 2\nf 3\n";
        assert_eq!(Format::Prometheus.of_open_metrics(open_metrics.to_owned()), prometheus);
        assert_eq!(Format::OpenMetrics.of_open_metrics(open_metrics.to_owned()), open_metrics);
    }
}
