//! What the XDP program, the controller and the tests share: one packet's journey, and the layout of the maps.
//!
//! A frame goes one way, through five verbs:
//!
//! ```text
//! frame --parse--> Segment --classify--> Class --decide--> Verdict --count--> act
//! ```
//!
//! | verb | where | what it does |
//! |---|---|---|
//! | parse | [`parse`] | bytes to a [`Segment`](segment::Segment): copied facts, never pointers |
//! | classify | [`class`] | which kind of SYN this is, with the keys of a [`KeyRing`](keyring::KeyRing) |
//! | decide | [`policy`] | a pure function of values: what is to be done with it |
//! | count | [`counters`] | once for each SYN, at the one exit |
//! | act | `tfo-ebpf` | the only place that may write to a packet |
//!
//! The first three live here: `no_std`, without `unsafe`, generic over the [`Bytes`](bytes::Bytes) they read, so
//! that the kernel runs the very code that the tests prove on the host.
// Whoever adds a class, a verdict or a reason is led to all that decides by one.
#![warn(clippy::wildcard_enum_match_arm)]
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
mod named;

pub mod bytes;
pub mod carried;
pub mod class;
pub mod cookie;
pub mod counters;
pub mod description;
pub mod info;
pub mod keyring;
mod layout;
pub mod names;
pub mod observed;
pub mod parse;
pub mod policy;
pub mod rewrite;
pub mod sample;
pub mod segment;
pub mod service;
pub mod verdict;
