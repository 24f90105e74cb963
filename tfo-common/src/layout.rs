//! The layout that kernel and user space agree on, checked when either is compiled.
//!
//! A change here needs a higher [`RELEASED_LAYOUT`], once between two releases. Readers refuse another version instead
//! of misreading it. Only `dataplane/carry.rs` of the controller also reads version 6, that of tfo 0.1.

use core::mem::{offset_of, size_of};

use crate::{
    carried::Carried,
    class::Class,
    client::{ATTEMPT_SLOTS, Attempt, Attempts, Client, Network},
    cookie::ExpandedKey,
    counters::{Cell, MALFORMED_SLOTS, Sampled, Tally, UNSUPPORTED_SLOTS, VERDICT_SLOTS},
    filter::SourceFilter,
    info::{Info, RELEASED_LAYOUT},
    keyring::{KeyRing, KeyStore, SLOTS, TRACKS},
    limit::Limit,
    observed::{Connection, Event, Outcomes, Pending, Prefix, PrefixTally, Subject, Watch},
    parse::{Malformed, Unsupported},
    policy::{GUARD_SLOTS, Guard, Policy},
    sample::{Budget, Sampler, Samplers},
    segment::Family,
    service::Service,
    table::{Row, SEATS},
    verdict::Verdict,
};

const _: () = {
    assert!(RELEASED_LAYOUT == 7);

    assert!(size_of::<ExpandedKey>() == 32);
    assert!(offset_of!(KeyRing, present) == 8);
    assert!(offset_of!(KeyRing, slots) == 16);
    assert!(offset_of!(KeyRing, since) == 16 + 11 * 32);
    assert!(offset_of!(KeyRing, base) == 16 + 11 * 40);
    assert!(offset_of!(KeyRing, tracks) == 16 + 11 * 48);
    assert!(size_of::<KeyRing>() == 1024);
    assert!(offset_of!(KeyStore, confirmed_ns) == 8);
    assert!(offset_of!(KeyStore, domains) == 16 && offset_of!(KeyStore, port) == 24);
    assert!(offset_of!(KeyStore, rings) == 1024);
    assert!(size_of::<KeyStore>() == 4096);

    assert!(size_of::<Limit>() == 16);
    assert!(offset_of!(Policy, fair) == 24);
    assert!(offset_of!(Policy, shed) == 24 + 16 + 24);
    assert!(size_of::<Policy>() == 24 + 16 + 24 + 2 * 16 + 24 + 8);
    assert!(size_of::<Row>() == 16 * SEATS);
    assert!(size_of::<SourceFilter>() == 2 * (1 << 12) / 8);

    // Two of them fill a cache line, and none crosses into the next, if the kernel aligns its per-CPU memory so.
    assert!(size_of::<Sampled<Tally>>() == 32);
    assert!(offset_of!(Sampled<Tally>, due) == 24);
    assert!(size_of::<Sampled<u64>>() == 16);
    assert!(offset_of!(Cell, malformed) == 2 * 8 * 8 * 32);
    assert!(offset_of!(Cell, unsupported) == 2 * 8 * 8 * 32 + 16 * 16);
    assert!(offset_of!(Cell, hits) == 2 * 8 * 8 * 32 + 16 * 16 + 8 * 16);
    assert!(size_of::<Cell>() == 2 * 8 * 8 * 32 + 16 * 16 + 8 * 16 + 16 * 8 + 8 * 16 + 8 * 8);
    assert!(size_of::<Sampler>() == 24);
    assert!(size_of::<Samplers>() == (2 * 8 * 8 + 16 + 8) * 24);

    assert!(size_of::<Service>() == 32);
    assert!(offset_of!(Outcomes, rtt_saved) == 48);
    assert!(size_of::<Outcomes>() == 48 + 32 * 16);
    assert!(size_of::<Connection>() == 40);
    assert!(size_of::<Pending>() == 16);
    assert!(size_of::<Prefix>() == 16);
    assert!(size_of::<PrefixTally>() == 24 + 8 * 8 + 8);
    assert!(size_of::<Budget>() == 8 + 2 * 16);
    assert!(size_of::<Watch>() == 40 + 5 * 8 + 24 + 2 * 8 + 24 + 40 + 3 * 8);
    assert!(offset_of!(Carried, outcomes) == size_of::<Cell>());
    assert!(offset_of!(Carried, watch) == size_of::<Cell>() + size_of::<Outcomes>());
    assert!(offset_of!(Carried, client) == size_of::<Cell>() + size_of::<Outcomes>() + size_of::<Watch>());
    assert!(size_of::<Carried>() == offset_of!(Carried, client) + size_of::<Client>());
    assert!(size_of::<Attempts>() == 8 * 8);
    assert!(offset_of!(Client, rtt_saved) == 2 * 8 * 8 + 2 * 8);
    assert!(size_of::<Client>() == 2 * 8 * 8 + 2 * 8 + 32 * 16);
    assert!(size_of::<Network>() == 16);
    assert!(offset_of!(Subject, connection) == 8);
    assert!(size_of::<Subject>() == 56);
    assert!(offset_of!(Event, head) == 72);
    assert!(size_of::<Event>() == 72 + 128);

    assert!(offset_of!(Info, netns) == 16);
    assert!(offset_of!(Info, since_unix_ns) == 24);
    assert!(offset_of!(Info, wanted) == 56);
    assert!(size_of::<Info>() == 96);

    assert!(TRACKS.is_power_of_two() && TRACKS >= SLOTS + 3);
    // Cell::count_syn, Cell::count_fault and Samplers::of mask their indices.
    assert!(Family::COUNT.is_power_of_two());
    assert!(Class::COUNT.is_power_of_two());
    assert!(VERDICT_SLOTS.is_power_of_two() && Verdict::COUNT <= VERDICT_SLOTS);
    assert!(ATTEMPT_SLOTS.is_power_of_two() && Attempt::COUNT <= ATTEMPT_SLOTS);
    // `EventGuard` has three bits for a guard, counted from one.
    assert!(Class::COUNT <= 32 && Guard::COUNT < GUARD_SLOTS);
    assert!(MALFORMED_SLOTS.is_power_of_two() && Malformed::COUNT <= MALFORMED_SLOTS);
    assert!(UNSUPPORTED_SLOTS.is_power_of_two() && Unsupported::COUNT <= UNSUPPORTED_SLOTS);
};
