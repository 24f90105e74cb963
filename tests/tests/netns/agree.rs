//! Short run of `cargo xtask agree`.

use tfo_tests::{
    agree::{Options, run},
    random::seed,
};

#[test]
fn kernel_and_host_agree_on_spoilt_frames() {
    let seed = seed("50000 spoilt frames");
    let seen = run(&Options { frames: 50_000, seed, time: None }).unwrap_or_else(|found| panic!("{found}"));
    let missing = seen.missing();
    assert!(missing.is_empty(), "no frame was seen of {missing:?}");
    assert!(
        seen.frames == 50_000 && seen.compared > 45_000,
        "{} frames, {} compared",
        seen.frames,
        seen.compared
    );
}
