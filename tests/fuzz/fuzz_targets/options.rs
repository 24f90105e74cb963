//! See `tfo_tests::fuzz::options`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tfo_tests::fuzz::options::check(data));
