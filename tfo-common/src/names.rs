//! The names that the kernel knows our program and maps by, at most 15 characters each.
//!
//! In `tfo-ebpf` the identifier of the static or function is the name; loading fails at once where the two differ.

/// The XDP program.
pub const PROGRAM: &str = "tfo_ingress";
/// The one that protects services.
pub const SHIELD_PROGRAM: &str = "tfo_shield";
/// The sock_ops program.
pub const OUTCOMES_PROGRAM: &str = "tfo_outcomes";
/// [`Cell`](crate::counters::Cell) for each service and CPU.
pub const COUNTERS: &str = "TFO_COUNTERS";
/// [`Samplers`](crate::sample::Samplers) for each service and CPU.
pub const SAMPLERS: &str = "TFO_SAMPLERS";
/// [`KeyStore`](crate::keyring::KeyStore).
pub const KEYS: &str = "TFO_KEYS";
/// [`Info`](crate::info::Info).
pub const INFO: &str = "TFO_INFO";
/// [`Service`](crate::service::Service) for each service.
pub const SERVICES: &str = "TFO_SERVICES";
/// The index of its service for each port.
pub const PORTS: &str = "TFO_PORTS";
/// [`Watch`](crate::observed::Watch) for each CPU.
pub const WATCH: &str = "TFO_WATCH";
/// [`PrefixTally`](crate::observed::PrefixTally) by [`Prefix`](crate::observed::Prefix).
pub const PREFIXES: &str = "TFO_PREFIXES";
/// [`Pending`](crate::observed::Pending) by [`Connection`](crate::observed::Connection).
pub const PENDING: &str = "TFO_PENDING";
/// [`Outcomes`](crate::observed::Outcomes) for each service.
pub const OUTCOMES: &str = "TFO_OUTCOMES";
/// [`Carried`](crate::carried::Carried) for each service.
pub const CARRIED: &str = "TFO_CARRIED";
/// The ring of [`Event`](crate::observed::Event)s.
pub const EVENTS: &str = "TFO_EVENTS";
/// [`Policy`](crate::policy::Policy) for each service.
pub const POLICIES: &str = "TFO_POLICIES";
/// The index of its service for each [`address_key`](crate::service::address_key), the longest that fits.
pub const ADDRESSES: &str = "TFO_ADDRESSES";
/// The prefixes of sources that are hidden by order, by [`hidden_key`](crate::policy::hidden_key).
pub const HIDDEN: &str = "TFO_HIDDEN";
/// [`Row`](crate::policy::Row)s of sources: how much of their share of good cookies they have used.
pub const SOURCES: &str = "TFO_SOURCES";
/// The same of unknown cookies.
pub const FORGERS: &str = "TFO_FORGERS";
/// Until when all that there may be of unknown cookies is used up, for each service.
pub const UNKNOWN: &str = "TFO_UNKNOWN";
/// [`Row`](crate::policy::Row)s of SYNs that have become connections.
pub const REPLAYS: &str = "TFO_REPLAYS";
/// The global that tells the last row of [`SOURCES`] and of [`FORGERS`].
pub const LAST_SOURCE_ROW: &str = "TFO_LAST_SOURCE_ROW";
/// The global that tells the last row of [`REPLAYS`].
pub const LAST_REPLAY_ROW: &str = "TFO_LAST_REPLAY_ROW";
/// The global with what [`Tag`](crate::policy::Tag)s are made with.
pub const SEED: &str = "TFO_SEED";
/// The global that tells whether any port has a service.
pub const HAS_SERVICES: &str = "TFO_HAS_SERVICES";
/// The global that tells the cookie of the network namespace whose connections count.
pub const NETNS: &str = "TFO_NETNS";
/// The global that tells which [`LinkLayer`](crate::parse::LinkLayer) frames begin with.
pub const LINK_LAYER: &str = "TFO_LINK_LAYER";
/// The global that tells the [`Mode`](crate::verdict::Mode).
pub const MODE: &str = "TFO_MODE";
/// aya-log's global: the highest level that is logged, 0 for none.
pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";

const _: () = {
    let names = [
        PROGRAM,
        SHIELD_PROGRAM,
        OUTCOMES_PROGRAM,
        COUNTERS,
        SAMPLERS,
        KEYS,
        INFO,
        SERVICES,
        PORTS,
        WATCH,
        PREFIXES,
        PENDING,
        OUTCOMES,
        CARRIED,
        EVENTS,
        POLICIES,
        ADDRESSES,
        HIDDEN,
        SOURCES,
        FORGERS,
        UNKNOWN,
        REPLAYS,
    ];
    let mut i = 0;
    while i < names.len() {
        assert!(names[i].len() <= 15);
        i += 1;
    }
};
