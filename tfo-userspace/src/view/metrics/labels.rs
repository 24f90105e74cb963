//! Labels that are encoded once and used in many rows.
//!
//! All rows of a service have the same few labels. prometheus-client would encode them again for each row, in four
//! pieces and more, which took most of the time with a thousand services. It writes the name of a label unchanged, and
//! writes a value only if asked to. So several labels with their values are passed to it as one name.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabel, LabelEncoder};

/// Encoded labels of many rows: `a="b",c="d"`.
pub(super) struct Labels(String);

impl Labels {
    /// Encodes names and values, in this order.
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

    /// Labels have the same text as those that the library encodes.
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
