//! Library of the `tfo` command. It loads and attaches the XDP program, keeps the program's keys in step with the
//! kernel, and shows the counters. Modules are public for the tests, which use the same code.
//!
//! The modules are layers, from the top down: each knows only those below it. `cargo xtask lint` checks that.

// A function fits on a screen: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::too_many_lines))]

pub mod cli;

pub mod check;
pub mod lab;

pub mod daemon;

pub mod view;

pub mod control;

pub mod fleet;

pub mod config;

pub mod keys;

pub mod dataplane;

pub mod kernel;

pub mod model;

pub mod util;
