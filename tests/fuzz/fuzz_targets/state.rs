//! See `tfo_tests::fuzz::state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tfo_tests::fuzz::state::check(data));
