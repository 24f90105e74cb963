//! See `tfo_tests::fuzz::decide`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tfo_tests::fuzz::decide::check(data));
