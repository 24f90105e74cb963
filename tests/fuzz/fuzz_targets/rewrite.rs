//! See `tfo_tests::fuzz::rewrite`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tfo_tests::fuzz::rewrite::check(data));
