//! Case table on the host.

use std::collections::HashSet;

use tfo_common::{parse::parse, policy::Policy, verdict::Mode};
use tfo_tests::{
    cases::{all, rows, uncovered},
    host,
};

#[test]
fn every_case_is_counted_as_expected() {
    let mut wrong = Vec::new();
    for case in all() {
        let counted = host::count(&case.frame, case.link, &Policy::of_mode(Mode::Observe), &case.keys.ring());
        let expected = case.expected.counters();
        if counted != expected {
            let (counted, expected) = (rows(&counted), rows(&expected));
            wrong.push(format!("{}: counted {counted:?}, expected {expected:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} cases are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Both parsers find the signatures that the names of the cases tell.
#[test]
fn signatures_are_found() {
    let mut found = 0;
    for case in all() {
        let parsed = matches!(parse(&case.frame[..], case.link), Ok(Some(segment)) if segment.is_signed);
        assert_eq!(parsed, case.is_signed(), "{}", case.name);
        if case.name.starts_with("signed: ") || case.name.starts_with("nearly signed: ") {
            assert_eq!(parsed, case.name.starts_with("signed: "), "{}", case.name);
        }
        found += u64::from(parsed);
    }
    assert!(found > 100, "{found} signed SYNs");
}

#[test]
fn names_are_unique() {
    let mut seen = HashSet::new();
    for case in all() {
        assert!(seen.insert(case.name.clone()), "two cases are named {:?}", case.name);
    }
}

#[test]
fn the_table_covers_every_outcome() {
    let missing = uncovered(&all());
    assert!(missing.is_empty(), "no case for {missing:#?}");
}
