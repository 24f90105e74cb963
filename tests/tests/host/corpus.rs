//! Replay of the fuzz targets' corpus: files that the fuzzer has found, and earlier faults.

use std::{collections::BTreeSet, fs, panic::catch_unwind, path::Path};

use tfo_common::{
    parse::{LinkLayer, Malformed, Unsupported, parse},
    segment::{Family, FastOpen},
};
use tfo_tests::fuzz::TARGETS;

/// Reads the files of a target's folder: name and content.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .map(|entry| {
            let path = entry.expect("the folder can be listed").path();
            let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("the file can be read"))
        })
        .collect()
}

/// Returns the names in a folder, without extensions.
fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("it can be listed");
    let stem = |path: &Path| path.file_stem().expect("it has a name").to_string_lossy().into_owned();
    entries.map(|entry| stem(&entry.expect("it can be listed").path())).collect()
}

#[test]
fn no_file_of_the_corpus_fails() {
    let mut failed = Vec::new();
    for target in TARGETS {
        let files = corpus(target.name);
        println!("{}: {} files", target.name, files.len());
        assert!(!files.is_empty(), "{} has no corpus", target.name);
        for (name, content) in files {
            // The panic has printed the fault already.
            if catch_unwind(|| (target.check)(&content)).is_err() {
                failed.push(format!("tests/corpus/{}/{name}", target.name));
            }
        }
    }
    assert!(failed.is_empty(), "these fail:\n{}", failed.join("\n"));
}

#[test]
fn no_seed_fails() {
    for target in TARGETS {
        (target.seeds)().iter().for_each(|seed| (target.check)(seed));
    }
}

#[test]
fn every_target_is_fuzzed_and_has_a_corpus() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(targets.len(), TARGETS.len());
    assert_eq!(names("fuzz/fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
}

/// The corpus must cover every outcome of a frame.
#[test]
fn the_frames_of_the_corpus_are_of_every_kind() {
    let mut kinds = BTreeSet::new();
    for (_, frame) in corpus("frame") {
        for link in LinkLayer::ALL {
            match parse(frame.as_slice(), *link) {
                Err(fault) => _ = kinds.insert(fault.name()),
                Ok(None) => _ = kinds.insert("not a SYN"),
                Ok(Some(segment)) => {
                    kinds.insert(segment.addresses.family.name());
                    kinds.insert(match segment.fast_open {
                        FastOpen::Absent => "absent",
                        FastOpen::Ignored => "ignored",
                        FastOpen::Request => "request",
                        FastOpen::Cookie(_) => "cookie",
                        FastOpen::BadLength => "bad length",
                    });
                }
            }
        }
    }
    let expected = Malformed::COUNT + Unsupported::COUNT + 1 + Family::COUNT + 5;
    assert_eq!(kinds.len(), expected, "{kinds:#?}");
}
