//! Tier 1: tests on the host, without root. A program of one tier is linked once, and its tests run side by side.

mod cases;
mod cookie;
mod corpus;
mod counters;
mod keyring;
mod kubernetes;
mod observed;
mod options;
mod parser;
mod policy;
mod request;
mod rewrite;
