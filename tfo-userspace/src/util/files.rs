//! Regular files: opened safely, and replaced atomically.

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use tempfile::Builder;
use tracing::warn;

/// Opens the regular file at `path` for reading. Other kinds are refused, since reading them could block for ever.
pub fn open_regular(path: &Path) -> Result<File> {
    let path_ = path.display();
    // With O_NONBLOCK, opening a named pipe does not wait for a writer.
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

/// Replaces the file at `path` by a new one with permissions `mode`, which `write` fills. A reader sees either the old
/// file or the whole new one, even after a crash. A symbolic link is replaced, not followed. On an error, the old file
/// stays.
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
    // The sync makes the new name survive a power failure. Without it the file is replaced all the same, so this is no
    // error.
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        warn!("{path_} is written, but may be gone after a power failure: cannot sync its folder: {error}");
    }
    Ok(())
}

/// Prefix of the name of a temporary file that will replace the file at `path`.
pub(crate) fn beginning(path: &Path) -> Result<String> {
    let name =
        path.file_name().with_context(|| format!("cannot write {}: it names no file", path.display()))?;
    Ok(format!(".{}.", name.to_string_lossy()))
}

/// Suffix of the name of a temporary file.
pub(crate) const END: &str = ".new";

/// Returns the folder of the file at `path`.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}
