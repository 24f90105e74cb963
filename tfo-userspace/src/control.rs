//! Requests to a running controller: `tfo keys rotate`, `tfo reload`, `tfo hide`, `tfo events` and so on.
//!
//! Each interface has a Unix socket below [`FOLDER`]. Only root can enter that folder, so nobody else can take the
//! socket's name or send requests. Root of a container can't either, unless the folder is mounted there. The socket's
//! name is made from the identity of the pin folder, so a request reaches the controller of that folder in any network
//! namespace and BPF file system.

pub mod client;
pub mod protocol;
pub mod server;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::Result;
pub use client::send;
pub use protocol::Request;
pub use server::{PendingRequest, Reply, Server};

use crate::dataplane::pins::Pins;

/// Folder of the sockets, which is the usual one of a service called tfo (`RuntimeDirectory=`, systemd.exec(5)).
pub const FOLDER: &str = "/run/tfo";

/// Error of a command for which no program or controller runs. It holds the message.
#[derive(Debug)]
pub struct NotRunning(pub String);

impl fmt::Display for NotRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotRunning {}

/// Returns the path of the socket of the controller of `pins`.
pub fn socket(pins: &Pins) -> Result<PathBuf> {
    let (file_system, inode) = pins.identity()?;
    Ok(Path::new(FOLDER).join(format!("{file_system:x}-{inode:x}.sock")))
}
