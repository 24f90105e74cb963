//! The `tfo` command: what it takes, what its subcommands do, and the status with which it exits.

pub mod args;
pub mod commands;
pub mod exit;
