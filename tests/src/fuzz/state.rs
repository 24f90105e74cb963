//! Random state files: each is refused without showing its keys, or is the same after being written and read again.

use std::path::Path;

use serde_json::Value;
use tfo_userspace::{
    keys::state::{REMEMBERED, State},
    model::keys::parse_key,
};

use super::keys::plain;

/// Checks one file.
pub fn check(text: &[u8]) {
    let state = read(text);
    let Ok(value) = serde_json::from_slice::<Value>(text) else {
        return assert!(state.is_none(), "it is no JSON");
    };
    // The same in plain form: JSON can say a thing twice or in other ways.
    let plain = serde_json::to_vec(&value).expect("it was JSON");
    let expected = keys(&value);
    let found = read(&plain);
    assert!(found.as_ref().map(entries) == expected);
    if let Some(state) = state {
        assert!(Some(entries(&state)) == expected);
        assert_eq!(state.is_purging(), value["purge"] == true);
        let written = state.text().expect("it can be written");
        let again = read(&written).expect("what was written can be read");
        assert!(again.keys() == state.keys() && again.is_purging() == state.is_purging());
    }
}

/// Returns small state files, good and bad.
pub fn seeds() -> Vec<Vec<u8>> {
    let one = r#"{"key":"a0bf63f7-ed803d81-cd641d30-cebc4a90","made":1700000000}"#;
    let two = r#"{"key":"1-2-3-4","made":0}"#;
    let file = |keys: &[&str], rest| format!(r#"{{"version":1,"keys":[{}]{rest}}}"#, keys.join(",")).into();
    vec![
        file(&[], ""),
        file(&[one], ""),
        file(&[one, two], r#","purge":true"#),
        file(&[two; REMEMBERED], r#","purge":false"#),
        file(&[one; REMEMBERED + 1], ""),
        file(&[r#"{"key":"0-0-0-0","made":5}"#], ""),
        file(&[r#"["1-2-3-4",5]"#], r#","other":[null,-1,1e9,"x"]"#),
        br#"{"version":2}"#.to_vec(),
    ]
}

fn read(text: &[u8]) -> Option<State> {
    State::parse(text, Path::new("keys.json"))
        .inspect_err(|error| super::keys::assert_shows_no_key(&format!("{error:#}")))
        .ok()
}

/// Returns each key as text, with the time at which it was made.
fn entries(state: &State) -> Vec<(String, u64)> {
    assert!(state.keys().iter().all(|made| !made.key.is_zero()));
    state.keys().iter().map(|made| (plain(made.key), made.made)).collect()
}

/// Returns the same from JSON text if that is a state file, independently of the code under test.
fn keys(value: &Value) -> Option<Vec<(String, u64)>> {
    let file = value.as_object()?;
    let is_known = file.keys().all(|name| ["version", "keys", "purge"].contains(&name.as_str()));
    let is_right = file.get("version")?.as_u64() == Some(1)
        && file.get("purge").is_none_or(Value::is_boolean)
        && (1..=REMEMBERED).contains(&file.get("keys")?.as_array()?.len());
    if !is_known || !is_right {
        return None;
    }
    value["keys"].as_array()?.iter().map(entry).collect()
}

fn entry(value: &Value) -> Option<(String, u64)> {
    let (key, made) = match value {
        Value::Object(entry) if entry.len() == 2 => (entry.get("key")?, entry.get("made")?),
        // serde also accepts an array of a struct's fields, in their order.
        Value::Array(entry) if entry.len() == 2 => (&entry[0], &entry[1]),
        _ => return None,
    };
    let key = parse_key(key.as_str()?).filter(|key| !key.is_zero())?;
    Some((plain(key), made.as_u64()?))
}
