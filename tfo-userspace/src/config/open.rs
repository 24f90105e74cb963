//! Opening of the configuration file.

use std::{
    fs::{self, File, Metadata},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::{Result, bail};
use nix::unistd::geteuid;

/// Opens the file. Fails if it is no regular file, belongs to another user than root and ours, or can be written by
/// anybody.
pub(super) fn open(path: &Path) -> Result<File> {
    // The type is checked before opening, too, since opening some devices has side effects.
    ensure_regular(&fs::metadata(path)?)?;
    // O_NONBLOCK: if a FIFO has replaced the file since, opening it does not block.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    ensure_regular(&metadata)?;
    let (user, path) = (geteuid(), path.display());
    if metadata.uid() != 0 && metadata.uid() != user.as_raw() {
        bail!("it belongs to user {}, who could change it: `chown root {path}`", metadata.uid());
    }
    if metadata.mode() & 0o002 != 0 {
        bail!("anybody may write to it: `chmod o-w {path}`");
    }
    Ok(file)
}

/// Fails unless the file is a regular file.
fn ensure_regular(metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    bail!("it is {kind}: give --config a regular file")
}
