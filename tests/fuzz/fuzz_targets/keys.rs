//! See `tfo_tests::fuzz::keys`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tfo_tests::fuzz::keys::check(data));
