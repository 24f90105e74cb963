//! The controller: loads and attaches the XDP program, keeps its keys in step with the kernel, and shows what it
//! counts. The binary is `tfo`; the modules are public so that the tests drive the same code.

pub mod cli;
pub mod cmd;
pub mod controller;
pub mod counters;
pub mod datapath;
pub mod error;
pub mod interface;
pub mod kernel;
pub mod keys;
pub mod lab;
pub mod pins;
pub mod screen;
pub mod signals;
