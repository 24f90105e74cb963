//! See `tfo_tests::fuzz::keyring`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tfo_tests::fuzz::keyring::check(data));
