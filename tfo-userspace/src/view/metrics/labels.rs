//! Labels that are put together once.
//!
//! Of a thousand services, each has the same few labels in all of its rows, which prometheus-client would write anew for each row,
//! in four pieces and more: that took most of the time of the text. It writes the name of a label as it is given, and a value
//! only when asked to; so several labels with their values are given as one name.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabel, LabelEncoder};

/// Labels that many rows have, as they stand in each: `a="b",c="d"`.
pub(super) struct Labels(String);

impl Labels {
    /// Those names and values, in that order.
    pub(super) fn new(pairs: &[(&str, &str)]) -> Self {
        let mut labels = String::new();
        for (name, value) in pairs {
            if !labels.is_empty() {
                labels.push(',');
            }
            labels.extend([name, "=\""]);
            for letter in value.chars() {
                match letter {
                    '\n' => labels.push_str(r"\n"),
                    '\\' | '"' => labels.extend(['\\', letter]),
                    _ => labels.push(letter),
                }
            }
            labels.push('"');
        }
        Self(labels)
    }
}

impl EncodeLabel for &Labels {
    fn encode(&self, mut encoder: LabelEncoder<'_>) -> fmt::Result {
        encoder.encode_label_key()?.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        collector::Collector,
        encoding::{DescriptorEncoder, text},
        metrics::MetricType,
        registry::Registry,
    };

    use super::*;

    /// Labels that are put together once are written as the library writes its own.
    #[test]
    fn labels_are_written_alike() {
        #[derive(Debug)]
        struct Two([(&'static str, &'static str); 2], bool);

        impl Collector for Two {
            fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
                let mut family = encoder.encode_descriptor("a", "b", None, MetricType::Gauge)?;
                let [first, second] = self.0.map(|pair| Labels::new(&[pair]));
                if self.1 {
                    family.encode_family(&[&first, &second])?.encode_gauge(&1_u64)
                } else {
                    family.encode_family(&self.0)?.encode_gauge(&1_u64)
                }
            }
        }

        let [prepared, by_the_library] = [true, false].map(|is_prepared| {
            let mut registry = Registry::default();
            registry.register_collector(Box::new(Two([("c", "d\\e\"f\ng"), ("h", "")], is_prepared)));
            let mut text = String::new();
            text::encode(&mut text, &registry).expect("writing to a String cannot fail");
            text
        });
        assert_eq!(prepared, by_the_library);
        assert!(prepared.contains("a{c="), "{prepared}");
    }
}
