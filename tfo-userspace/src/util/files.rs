//! Files that are replaced as a whole.

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use tempfile::Builder;
use tracing::warn;

/// Opens the file at `path` for reading, where it is a regular one. Another kind could be waited for without end.
pub fn open_regular(path: &Path) -> Result<File> {
    let path_ = path.display();
    // O_NONBLOCK: opening a named pipe does not wait for somebody to write to it.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.with_context(|| format!("cannot open {path_}"))?;
    let kind = file.metadata().with_context(|| format!("cannot examine {path_}"))?.file_type();
    let kind = match kind {
        kind if kind.is_file() => return Ok(file),
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "no regular file",
    };
    bail!("{path_} is {kind}: name a regular file, or give - and the content on standard input")
}

/// Replaces the file at `path` by a new one of `mode`, with what `write` writes: whoever reads it sees the old one or the new
/// one, even after a crash. A symbolic link is replaced, not followed. Where that fails, the old one stays.
pub fn replace(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let path_ = path.display();
    let folder = folder(path);
    let mut file = Builder::new()
        .prefix(&beginning(path)?)
        .suffix(END)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)
        .with_context(|| format!("cannot write {path_}: cannot make a file in {}", folder.display()))?;
    write(file.as_file_mut())
        .and_then(|()| file.as_file().sync_all())
        .and_then(|()| file.persist(path).map_err(|error| error.error))
        .with_context(|| format!("cannot write {path_}"))?;
    // The new name is to outlive a crash, too. It is in force all the same, so this is no failure.
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        warn!("{path_} is written, but may be gone after a power failure: cannot sync its folder: {error}");
    }
    Ok(())
}

/// How the name of a new file, which is to take the place of that at `path`, begins.
pub(crate) fn beginning(path: &Path) -> Result<String> {
    let name =
        path.file_name().with_context(|| format!("cannot write {}: it names no file", path.display()))?;
    Ok(format!(".{}.", name.to_string_lossy()))
}
/// How the name of such a file ends.
pub(crate) const END: &str = ".new";

/// The folder of the file at `path`.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}
