//! Formats of metrics: OpenMetrics, and the older text format of Prometheus with the same samples.

/// Format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, for clients that ask for it, as Prometheus does.
    OpenMetrics,
    /// Text format 0.0.4 of Prometheus, for all other clients.
    Prometheus,
}

impl Format {
    /// Returns the format for a client with these `Accept` headers.
    pub fn accepted<'a>(mut accept: impl Iterator<Item = &'a str>) -> Self {
        let has_open_metrics = accept.any(|value| value.contains("application/openmetrics-text"));
        if has_open_metrics { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Returns the `Content-Type` of the format.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Converts OpenMetrics to this format. `text` has whole metrics and no `# EOF`.
    pub(super) fn convert(self, text: String) -> String {
        match self {
            Self::OpenMetrics => text,
            Self::Prometheus => to_prometheus(&text),
        }
    }
}

/// Converts OpenMetrics to the text format 0.0.4 of Prometheus, metric by metric. Samples are copied unchanged. In the
/// older format, a counter's family has the name of its samples, there are no units, and an info is a gauge.
fn to_prometheus(text: &str) -> String {
    let mut prometheus = String::with_capacity(text.len());
    // Labels have line feeds escaped, so this matches only at the beginning of a line.
    for metric in text.strip_prefix("# HELP ").unwrap_or(text).split("\n# HELP ") {
        let (help, rest) = metric.split_once('\n').unwrap_or((metric, ""));
        let (kind, rest) = rest.split_once('\n').unwrap_or((rest, ""));
        let (name, help) = help.split_once(' ').unwrap_or((help, ""));
        let (suffix, kind) = match kind.rsplit(' ').next().unwrap_or_default() {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            kind => ("", kind),
        };
        prometheus += &format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
        let samples =
            if rest.starts_with('#') { rest.split_once('\n').map_or("", |(_, rest)| rest) } else { rest };
        prometheus.push_str(samples);
        if !prometheus.ends_with('\n') {
            prometheus.push('\n');
        }
    }
    prometheus
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
        assert_eq!(Format::Prometheus.convert(open_metrics.to_owned()), prometheus);
        assert_eq!(Format::OpenMetrics.convert(open_metrics.to_owned()), open_metrics);
    }
}
