//! The names that the kernel knows our program and maps by, at most 15 characters each.
//!
//! In `tfo-ebpf` the identifier of the static or function is the name; loading fails at once where the two differ.

/// The XDP program.
pub const PROGRAM: &str = "tfo_ingress";
/// [`Counters`](crate::counters::Counters) for each CPU.
pub const COUNTERS: &str = "TFO_COUNTERS";
/// [`KeyStore`](crate::keyring::KeyStore).
pub const KEYS: &str = "TFO_KEYS";
/// [`Info`](crate::info::Info).
pub const INFO: &str = "TFO_INFO";
/// The global that tells which [`LinkLayer`](crate::parse::LinkLayer) frames begin with.
pub const LINK_LAYER: &str = "TFO_LINK_LAYER";
/// The global that tells the [`Mode`](crate::verdict::Mode).
pub const MODE: &str = "TFO_MODE";
/// aya-log's global: the highest level that is logged, 0 for none.
pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";

const _: () = {
    let names = [PROGRAM, COUNTERS, KEYS, INFO, LINK_LAYER, MODE, LOG_LEVEL];
    let mut i = 0;
    while i < names.len() {
        assert!(names[i].len() <= 15);
        i += 1;
    }
};
