//! Names of the eBPF programs, maps and globals. The kernel allows at most 15 characters for a program or a map.
//!
//! In `tfo-ebpf`, the identifier of the static or function is the name. Loading fails at once if the two differ.

/// The XDP program of the modes `observe` and `accelerate`.
pub const PROGRAM: &str = "tfo_ingress";
/// The XDP program of mode `shield`, which protects services.
pub const SHIELD_PROGRAM: &str = "tfo_shield";
/// The program that hands out portable cookies, for packets that leave.
pub const EGRESS_PROGRAM: &str = "tfo_egress";
/// The sock_ops program.
pub const OUTCOMES_PROGRAM: &str = "tfo_outcomes";
/// The sock_ops program that also counts connections from here.
pub const BOTH_ENDS_PROGRAM: &str = "tfo_both_ends";
/// The program that walks the listening sockets, in an object of its own.
pub const LISTENERS_PROGRAM: &str = "tfo_listeners";
/// The program that reads the keys of listeners that have their own, in the object of [`LISTENERS_PROGRAM`].
pub const LISTENER_KEYS_PROGRAM: &str = "tfo_listen_keys";
/// Global with the [`Places`](crate::listener::Places) of the fields of sockets.
pub const PLACES: &str = "TFO_PLACES";
/// Map of a [`Cell`](crate::counters::Cell) for each service and CPU.
pub const COUNTERS: &str = "TFO_COUNTERS";
/// Map of [`Samplers`](crate::sample::Samplers) for each service and CPU.
pub const SAMPLERS: &str = "TFO_SAMPLERS";
/// Map of the [`KeyStore`](crate::keyring::KeyStore)s.
pub const KEYS: &str = "TFO_KEYS";
/// Map of the [`Info`](crate::info::Info).
pub const INFO: &str = "TFO_INFO";
/// Map of a [`Service`](crate::service::Service) for each service.
pub const SERVICES: &str = "TFO_SERVICES";
/// Map from a port to the index of its service.
pub const PORTS: &str = "TFO_PORTS";
/// Map of a [`Watch`](crate::observed::Watch) for each CPU.
pub const WATCH: &str = "TFO_WATCH";
/// Map from a [`Prefix`](crate::observed::Prefix) to its [`PrefixTally`](crate::observed::PrefixTally).
pub const PREFIXES: &str = "TFO_PREFIXES";
/// Map from a [`Connection`](crate::observed::Connection) to its [`Pending`](crate::observed::Pending).
pub const PENDING: &str = "TFO_PENDING";
/// Map of [`Outcomes`](crate::observed::Outcomes) for each service.
pub const OUTCOMES: &str = "TFO_OUTCOMES";
/// Map of the [`Client`](crate::client::Client).
pub const CLIENT: &str = "TFO_CLIENT";
/// Map from a [`Network`](crate::client::Network) to its [`Attempts`](crate::client::Attempts).
pub const NETWORKS: &str = "TFO_NETWORKS";
/// Storage of the sockets that begin with Fast Open from here: the time of their SYN, in nanoseconds of CLOCK_MONOTONIC.
pub const CALLERS: &str = "TFO_CALLERS";
/// Map of [`Carried`](crate::carried::Carried) for each service.
pub const CARRIED: &str = "TFO_CARRIED";
/// Ring buffer of [`Event`](crate::observed::Event)s.
pub const EVENTS: &str = "TFO_EVENTS";
/// Map of a [`Policy`](crate::policy::Policy) for each service.
pub const POLICIES: &str = "TFO_POLICIES";
/// Map from an [`address_key`](crate::service::address_key) to the index of its service, by longest prefix.
pub const ADDRESSES: &str = "TFO_ADDRESSES";
/// Map of the source prefixes that are hidden by order, by [`hidden_key`](crate::policy::hidden_key).
pub const HIDDEN: &str = "TFO_HIDDEN";
/// Map of the [`SourceFilter`](crate::filter::SourceFilter) in front of [`HIDDEN`].
pub const HIDE_FILTER: &str = "TFO_HIDE_FILTER";
/// Map of [`Row`](crate::table::Row)s of sources, with their use of the rate limit for good cookies.
pub const SOURCES: &str = "TFO_SOURCES";
/// Map of [`Row`](crate::table::Row)s of sources, with their use of the rate limit for unknown cookies.
pub const FORGERS: &str = "TFO_FORGERS";
/// Map of the state of the rate limit for all unknown cookies, for each service.
pub const UNKNOWN: &str = "TFO_UNKNOWN";
/// Storage of the sockets that began with Fast Open: the first sequence number of their client.
pub const CHILDREN: &str = "TFO_CHILDREN";
/// Map of [`Row`](crate::table::Row)s of SYNs whose connections have ended.
pub const REPLAYS: &str = "TFO_REPLAYS";
/// Map of the [`Host`](crate::answer::Host), whose facts decide on answers.
pub const HOST: &str = "TFO_HOST";
/// Map of the flags of local ports ([`ports`](crate::ports)), in words.
pub const LISTENING: &str = "TFO_LISTENING";
/// Global that tells whether any service has the data of its SYNs compared.
pub const COMPARES_DATA: &str = "TFO_COMPARES_DATA";
/// Global that tells whether any service may have its SYNs answered.
pub const ANSWERS: &str = "TFO_ANSWERS";
/// Global that tells whether frames may lie in several buffers.
pub const MULTI_BUFFER: &str = "TFO_MULTI_BUFFER";
/// Global with the number of jiffies in a second.
pub const HZ: &str = "TFO_HZ";
/// The program that marks a listener, in the object of [`LISTENERS_PROGRAM`].
pub const MARK_PROGRAM: &str = "tfo_mark";
/// Map of [`Row`](crate::table::Row)s of [`Request`](crate::request::Request)s.
pub const REQUESTS: &str = "TFO_REQUESTS";
/// Global with the index of the last row of [`SOURCES`] and of [`FORGERS`].
pub const LAST_SOURCE_ROW: &str = "TFO_LAST_SOURCE_ROW";
/// Global with the index of the last row of [`REPLAYS`].
pub const LAST_REPLAY_ROW: &str = "TFO_LAST_REPLAY_ROW";
/// Global with the index of the last row of [`REQUESTS`].
pub const LAST_REQUEST_ROW: &str = "TFO_LAST_REQUEST_ROW";
/// Global with the number of searches in vain that [`Searches`](crate::keyring::Searches) allows in a jiffy.
pub const SEARCHES_PER_JIFFY: &str = "TFO_SEARCHES_PER_JIFFY";
/// Global with the [`Seed`](crate::table::Seed) of tags.
pub const SEED: &str = "TFO_SEED";
/// Global that tells whether any service has portable cookies.
pub const HAS_PORTABLE: &str = "TFO_HAS_PORTABLE";
/// Global that tells whether any port has a service.
pub const HAS_SERVICES: &str = "TFO_HAS_SERVICES";
/// Global with the cookie of the network namespace whose connections count.
pub const NETNS: &str = "TFO_NETNS";
/// Global with the [`LinkLayer`](crate::parse::LinkLayer) of the interface.
pub const LINK_LAYER: &str = "TFO_LINK_LAYER";
/// Global with the [`Mode`](crate::verdict::Mode).
pub const MODE: &str = "TFO_MODE";
/// Global of aya-log with the highest level that is logged, or 0 to log nothing.
pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";

const _: () = {
    let names = [
        PROGRAM,
        SHIELD_PROGRAM,
        OUTCOMES_PROGRAM,
        BOTH_ENDS_PROGRAM,
        EGRESS_PROGRAM,
        LISTENERS_PROGRAM,
        LISTENER_KEYS_PROGRAM,
        COUNTERS,
        SAMPLERS,
        KEYS,
        INFO,
        SERVICES,
        PORTS,
        WATCH,
        PREFIXES,
        PENDING,
        CHILDREN,
        OUTCOMES,
        CARRIED,
        EVENTS,
        POLICIES,
        ADDRESSES,
        HIDDEN,
        HIDE_FILTER,
        SOURCES,
        FORGERS,
        UNKNOWN,
        REPLAYS,
        HOST,
        LISTENING,
        MARK_PROGRAM,
        REQUESTS,
        CLIENT,
        NETWORKS,
        CALLERS,
    ];
    let mut i = 0;
    while i < names.len() {
        assert!(names[i].len() <= 15);
        i += 1;
    }
};
