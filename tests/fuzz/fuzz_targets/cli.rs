//! See `tfo_tests::fuzz::cli`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tfo_tests::fuzz::cli::check(data));
