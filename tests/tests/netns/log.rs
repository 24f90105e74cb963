//! Log of `tfo run` in each of its formats and levels.

use nix::sys::signal::Signal;
use serde_json::Value;
use tfo_tests::netns::{Running, failure, ip, sandbox, tfo};

/// Returns the log of a `tfo run ARGS` under `env ENVIRONMENT` that attaches and ends.
fn logged(environment: &[&str], args: &[&str]) -> String {
    let mut log = String::new();
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let running =
            Running::start_under(&[&["env"], environment].concat(), &[&["-i", "v0"], args].concat());
        log = running.end(Signal::SIGINT);
    });
    log
}

#[test]
fn text_is_for_people() {
    let log = logged(&[], &[]);
    let line = log.lines().find(|line| line.contains("v0: attached in native mode"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    let (time, rest) = line.split_once("  INFO ").unwrap_or_else(|| panic!("{line}"));
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{line}");
    assert_eq!(rest, "v0: attached in native mode");
}

#[test]
fn json_is_for_programs() {
    let log = logged(&[], &["--log-format", "json"]);
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let is_it = |line: &&Value| line["message"] == "v0: attached in native mode";
    let line = lines.iter().find(is_it).unwrap_or_else(|| panic!("{log}"));
    assert_eq!(line["level"], "INFO");
    assert!(line["timestamp"].as_str().is_some_and(|time| time.parse::<jiff::Timestamp>().is_ok()), "{line}");
}

/// Lines for sd-daemon(3) begin with the number of their level, and have no time.
#[test]
fn the_journal_gets_levels() {
    let log = logged(&[], &["--log-format", "journald"]);
    assert!(log.lines().any(|line| line == "<6>v0: attached in native mode"), "{log}");
    assert!(log.lines().all(|line| line.starts_with('<')), "{log}");
}

#[test]
fn the_environment_decides_what_is_logged() {
    assert_eq!(logged(&["RUST_LOG=error"], &["-v"]), "");
    assert!(logged(&["RUST_LOG=error,tfo=info"], &[]).contains("  INFO v0: attached"));
    // RUST_LOG applies to libraries, too, which log much.
    assert!(!logged(&[], &["-v"]).contains(" DEBUG "));
    assert!(logged(&["RUST_LOG=debug"], &[]).contains(" DEBUG "));
}

#[test]
fn invalid_filters_are_refused() {
    let output = std::process::Command::new(tfo_tests::netns::binary())
        .args(["listeners"])
        .env("RUST_LOG", "tfo=loud")
        .output()
        .expect("tfo can be started");
    let (status, error) = failure(&output);
    assert_eq!(status, Some(1), "{error}");
    assert!(error.starts_with("error: RUST_LOG is \"tfo=loud\": give it a level"), "{error}");
    let output = tfo(&["--log-format", "xml", "listeners"]);
    assert_eq!(failure(&output).0, Some(2));
}
