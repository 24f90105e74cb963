//! Orders of `tfo hide` on an interface, in a file that outlives the controller, its maps and a reboot.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::{
    dataplane::pins::{Bpffs, DEFAULT_BPFFS, remove_if_there},
    kernel::netns,
    model::guards::Hidden,
    util::files::replace,
};

/// Version of the file format. Other versions are refused.
pub const VERSION: u64 = 1;
/// Limit on the bytes that are read. A file has at most 4,096 prefixes and 4,095 names, which take less.
const TOO_LONG: u64 = 1 << 20;

/// Orders of `tfo hide` on one interface. They last until `tfo show`.
#[derive(Debug)]
pub struct OrderFile {
    path: PathBuf,
    hidden: BTreeSet<Hidden>,
}

/// Content of the file, as JSON.
#[derive(Deserialize, Serialize)]
struct Document {
    version: u64,
    hidden: BTreeSet<Hidden>,
}

impl OrderFile {
    /// Opens the order file of `interface` below the folder `state`. Adds the orders that were found `in_maps`, since
    /// an older tfo kept them only there.
    pub fn open(state: &Path, bpffs: &Bpffs, interface: &str, in_maps: Vec<Hidden>) -> Result<Self> {
        let path = path_of(state, bpffs, interface)?;
        let mut file = Self { hidden: read(&path)?, path };
        let before = file.hidden.len();
        file.hidden.extend(in_maps);
        if file.hidden.len() != before {
            file.store()?;
        }
        Ok(file)
    }

    /// Returns the orders.
    pub fn hidden(&self) -> &BTreeSet<Hidden> {
        &self.hidden
    }

    /// Replaces the orders by `hidden`, and returns the earlier ones. [`store`](Self::store) writes them to the file.
    pub fn set(&mut self, hidden: BTreeSet<Hidden>) -> BTreeSet<Hidden> {
        std::mem::replace(&mut self.hidden, hidden)
    }

    /// Writes the file, or removes it if there are no orders. On failure, the old file stays.
    pub fn store(&self) -> Result<()> {
        if self.hidden.is_empty() {
            return self.remove();
        }
        if let Some(dir) = self.path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.with_context(|| format!("cannot make {}, in which orders are kept", dir.display()))?;
        }
        let text = serde_json::to_vec(&Document { version: VERSION, hidden: self.hidden.clone() })?;
        replace(&self.path, 0o600, |file| file.write_all(&text))
    }

    /// Removes the file.
    pub fn remove(&self) -> Result<()> {
        remove_if_there(&self.path)
    }
}

/// Removes the file of `interface`, for which no controller runs.
pub fn forget(state: &Path, bpffs: &Bpffs, interface: &str) -> Result<()> {
    remove_if_there(&path_of(state, bpffs, interface)?)
}

/// Returns the path of the file of `interface`. Interfaces of different network namespaces or BPF file systems may have
/// the same name. So the file's name includes the namespace unless it is the host's, and the file system unless it is
/// the usual one.
fn path_of(state: &Path, bpffs: &Bpffs, interface: &str) -> Result<PathBuf> {
    let mut name = interface.replace('%', "%25").replace('/', "%2f");
    let here = netns::netns()?;
    if let Some(netns) = bpffs.netns() {
        name.push_str(&format!("@{}", netns.replace('%', "%25")));
    } else if fs::metadata("/proc/1/ns/net").is_ok_and(|of_host| of_host.ino() != here) {
        name.push_str(&format!("@{here}"));
    }
    if bpffs.root() != Path::new(DEFAULT_BPFFS) {
        let root = bpffs.root().to_string_lossy().replace('%', "%25").replace('/', "%2f");
        name.push_str(&format!("+{root}"));
    }
    Ok(state.join("orders").join(format!("{name}.json")))
}

/// Reads the orders from the file at `path`. A missing file has none.
fn read(path: &Path) -> Result<BTreeSet<Hidden>> {
    let shown = path.display();
    let advice = "move it away to begin without orders";
    // O_NONBLOCK: opening a named pipe does not wait for a writer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot open the orders in {shown}: {advice}"));
        }
    };
    let found = file.metadata().with_context(|| format!("cannot examine {shown}"))?;
    if !found.is_file() || found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
        bail!(
            "{shown} could be somebody else's (owner {}, mode {:04o}): {advice}",
            found.uid(),
            found.mode() & 0o7777
        );
    }
    let mut text = Vec::new();
    file.take(TOO_LONG).read_to_end(&mut text).with_context(|| format!("cannot read {shown}"))?;
    let document: Document =
        serde_json::from_slice(&text).with_context(|| format!("{shown} is no file of orders: {advice}"))?;
    if document.version != VERSION {
        bail!("{shown} is of version {}, and this tfo reads version {VERSION}: {advice}", document.version);
    }
    Ok(document.hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_outlive_their_controller() {
        let state = tempfile::tempdir().expect("a temporary folder");
        let bpffs = Bpffs::new(Path::new(DEFAULT_BPFFS));
        let open = |in_maps| OrderFile::open(state.path(), &bpffs, "eth0.1", in_maps);
        let mut file = open(Vec::new()).expect("no file yet");
        assert!(file.hidden().is_empty());
        let source = Hidden::Source("192.0.2.0/24".parse().expect("a prefix"));
        let hidden = BTreeSet::from([Hidden::All, Hidden::Service("web".to_owned()), source.clone()]);
        file.set(hidden.clone());
        file.store().expect("the folder is ours");
        assert_eq!(open(Vec::new()).expect("it is there").hidden(), &hidden);
        let mode = fs::metadata(&file.path).expect("it is there").mode();
        assert_eq!(mode & 0o7777, 0o600);
        file.set(BTreeSet::new());
        file.store().expect("the folder is ours");
        assert!(!file.path.exists(), "nothing is hidden");
        // Orders in the maps of an earlier tfo are kept, too.
        assert_eq!(open(vec![source.clone()]).expect("none").hidden(), &BTreeSet::from([source]));
        assert_eq!(open(Vec::new()).expect("it is there").hidden().len(), 1);
    }

    #[test]
    fn files_that_others_could_have_written_are_refused() {
        use std::os::unix::fs::PermissionsExt as _;

        let state = tempfile::tempdir().expect("a temporary folder");
        let path = state.path().join("orders.json");
        let refused = |text: &str, mode| {
            fs::write(&path, text).expect("the folder is ours");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("the file is ours");
            read(&path).is_err()
        };
        assert!(!refused(r#"{"version":1,"hidden":["all"]}"#, 0o600));
        assert!(refused(r#"{"version":1,"hidden":["all"]}"#, 0o666));
        assert!(refused(r#"{"version":2,"hidden":["all"]}"#, 0o600));
        assert!(refused("", 0o600));
    }
}
