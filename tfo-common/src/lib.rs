//! Code that the XDP program, the controller and the tests share: the journey of a packet, and the layout of the maps.
//!
//! A frame passes five steps:
//!
//! ```text
//! frame --parse--> Segment --classify--> Class --decide--> Verdict --count--> act
//! ```
//!
//! | step | module | task |
//! |---|---|---|
//! | parse | [`parse`] | turns bytes into a [`Segment`](segment::Segment): copied facts, never pointers |
//! | classify | [`class`] | finds the kind of SYN, with the keys of a [`KeyRing`](keyring::KeyRing) |
//! | decide | [`policy`] | decides by the class, the policy of the service and the answers of its guards |
//! | count | [`counters`] | counts each packet once |
//! | act | `tfo-ebpf`, [`rewrite`] | changes or drops the packet: no other step may |
//!
//! The crate is `no_std`, without `unsafe`, and generic over the [`Bytes`](bytes::Bytes) it reads. So the kernel runs
//! the very code that the tests prove on the host.
// Finds each `match` in which a new class, verdict or reason would go unnoticed.
#![warn(clippy::wildcard_enum_match_arm)]
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
mod named;

pub mod answer;
pub mod bytes;
pub mod carried;
pub mod class;
pub mod client;
pub mod cookie;
pub mod counters;
pub mod description;
pub mod filter;
pub mod info;
pub mod keyring;
mod layout;
pub mod limit;
pub mod listener;
pub mod names;
pub mod observed;
pub mod parse;
pub mod policy;
pub mod ports;
pub mod request;
pub mod rewrite;
pub mod sample;
pub mod segment;
pub mod service;
pub mod table;
pub mod verdict;
