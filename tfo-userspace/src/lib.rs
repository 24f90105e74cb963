//! The controller: loads and attaches the XDP program, keeps its keys in step with the kernel, and shows what it
//! counts. The binary is `tfo`; the modules are public so that the tests drive the same code.
//!
//! The modules are layers, in this order: each knows only those below it. `cargo xtask lint` sees to it.

// A function fits on a screen: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::too_many_lines))]

pub mod cli;

pub mod check;
pub mod lab;

pub mod daemon;

pub mod view;

pub mod control;

pub mod config;

pub mod keys;

pub mod dataplane;

pub mod kernel;

pub mod model;

pub mod util;
