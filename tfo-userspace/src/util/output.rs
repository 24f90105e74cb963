//! Standard output. A failed write, for example on a full disk, is an error.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Version of the JSON that commands print: of the meaning of its fields. A new field does not raise it, since readers
/// ignore fields that they don't know. A field that goes, or that means something else, does.
pub const JSON_VERSION: u32 = 1;

/// JSON object with its version as the first field.
#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    object: &'a T,
}

/// Writes `text` to standard output, and ends its last line.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    write!(out, "{text}{end}").and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Returns `object` as one line of JSON, with the field `version`. All JSON that a command prints is made here. Fails if
/// it is no object with named fields.
pub fn json(object: &impl Serialize) -> Result<String> {
    serde_json::to_string(&Versioned { version: JSON_VERSION, object }).context("cannot write it as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_comes_first() {
        let object = serde_json::json!({"b": [1], "a": null});
        assert_eq!(json(&object).expect("an object"), r#"{"version":1,"a":null,"b":[1]}"#);
        assert!(json(&[1]).is_err(), "a list has no place for a version");
    }
}
