//! See `tfo_tests::fuzz::frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tfo_tests::fuzz::frame::check(data));
