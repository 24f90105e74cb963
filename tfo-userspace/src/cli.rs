//! The `tfo` command: its arguments, subcommands and exit statuses.

pub mod args;
pub mod commands;
pub mod exit;
