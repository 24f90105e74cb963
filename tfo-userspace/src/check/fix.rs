//! `tfo check --fix`: turns Fast Open on, now and at the next boot.

use std::{
    fs::{self, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;
use serde::Serialize;

use crate::kernel::sysctl::{self, CLIENT, SERVER};

const SYSCTL: &str = "net.ipv4.tcp_fastopen";
/// Usual folder of files that set sysctls at boot.
pub const FOLDER: &str = "/etc/sysctl.d";
/// Name of the file that sets it at boot.
const FILE: &str = "30-tcp_fastopen.conf";
/// First line of a file that we create.
const HEAD: &str = "# By `tfo check --fix`: TCP Fast Open for clients (0x1) and servers (0x2).\n";

/// Planned changes. Making a plan changes nothing.
#[derive(Debug)]
pub struct Fix {
    /// New and old value of the sysctl; `None` if it stays as it is.
    mode: Option<(u32, u32)>,
    folder: PathBuf,
    file: Option<NewFile>,
}

#[derive(Debug)]
struct NewFile {
    /// Old content; `None` if there is no file.
    old: Option<String>,
    new: String,
}

/// Change of a sysctl or of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Name of the sysctl, or path of the file.
    pub what: String,
    /// Old value or content; `None` if there was no file.
    pub old: Option<String>,
    /// New value or content.
    pub new: String,
}

impl Fix {
    /// Plans the changes in the calling thread's network namespace, and in `folder`, from which sysctls are set at
    /// boot. The folder has to exist, unless it is [`FOLDER`].
    pub fn plan(folder: &Path) -> Result<Self> {
        if !geteuid().is_root() {
            bail!("setting {SYSCTL} takes root: run it with sudo");
        }
        if folder != Path::new(FOLDER) && !folder.is_dir() {
            let folder = folder.display();
            bail!("there is no folder {folder}: make it, or give --sysctl-dir the one that is read at boot");
        }
        let is = sysctl::read_mode()?;
        let to_be = is | CLIENT | SERVER;
        let path = folder.join(FILE);
        let old = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let file = with_setting(old.as_deref(), to_be).map(|new| NewFile { old, new });
        Ok(Self { mode: (is != to_be).then_some((to_be, is)), folder: folder.to_owned(), file })
    }

    /// Returns the changes, in the order in which they are made.
    pub fn changes(&self) -> Vec<Change> {
        let mode = self.mode.map(|(to_be, is)| Change {
            what: SYSCTL.to_owned(),
            old: Some(is.to_string()),
            new: to_be.to_string(),
        });
        let file = self.file.as_ref().map(|NewFile { old, new }| Change {
            what: self.folder.join(FILE).display().to_string(),
            old: old.clone(),
            new: new.clone(),
        });
        mode.into_iter().chain(file).collect()
    }

    /// Formats the changes for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some((to_be, is)) = self.mode {
            text += &format!("{SYSCTL}: {is} -> {to_be}\n");
        }
        if let Some(NewFile { old, new }) = &self.file {
            let path = self.folder.join(FILE);
            match old {
                None => text += &format!("{}: new\n{}", path.display(), indented("+ ", new)),
                Some(old) => {
                    text += &format!("{}: replaced\n{}", path.display(), indented("- ", old));
                    text += &indented("+ ", new);
                }
            }
        }
        if text.is_empty() { "nothing to fix\n".to_owned() } else { text }
    }

    /// Makes the changes.
    pub fn apply(&self) -> Result<()> {
        if let Some((to_be, _)) = self.mode {
            sysctl::write_mode(to_be)?;
        }
        let Some(NewFile { new, .. }) = &self.file else { return Ok(()) };
        let path = self.folder.join(FILE);
        write(&self.folder, &path, new).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Replaces the file atomically: readers see the old or the new one, even after a crash. The temporary file's name does
/// not end in `.conf`, so that it is not read at boot.
fn write(folder: &Path, path: &Path, text: &str) -> io::Result<()> {
    if folder == Path::new(FOLDER) {
        fs::create_dir_all(folder)?;
    }
    let mut beginning = tempfile::Builder::new();
    let beginning = beginning.prefix(".30-tcp_fastopen.").permissions(Permissions::from_mode(0o644));
    let mut file = beginning.tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(folder)?.sync_all()
}

/// Returns the content of the file that sets these bits exactly once; `None` if the content `old` does so already.
/// Other lines of it stay.
fn with_setting(old: Option<&str>, bits: u32) -> Option<String> {
    let setting = format!("{SYSCTL} = {bits}\n");
    let Some(old) = old else { return Some(format!("{HEAD}{setting}")) };
    let values: Vec<_> = old.lines().filter_map(value).collect();
    if values == [bits.to_string()] {
        return None;
    }
    let others = old.lines().filter(|line| value(line).is_none());
    let mut text: String = others.map(|line| format!("{line}\n")).collect();
    text += &setting;
    Some(text)
}

/// Returns the value that a line of sysctl.d(5) gives to [`SYSCTL`]. Slashes may replace dots, and a `-` before the
/// name ignores failures.
fn value(line: &str) -> Option<&str> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim().trim_start_matches('-').replace('/', ".");
    (name == SYSCTL).then_some(value.trim())
}

fn indented(by: &str, text: &str) -> String {
    text.lines().map(|line| format!("    {by}{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_the_setting_is_kept() {
        for text in ["net.ipv4.tcp_fastopen=3", "# mine\n-net/ipv4/tcp_fastopen = 3 \nnet.core.somaxconn=9\n"]
        {
            assert_eq!(with_setting(Some(text), 3), None, "{text:?}");
        }
    }

    #[test]
    fn what_else_is_in_a_file_stays() {
        let text = "# mine\nnet.core.somaxconn=9\nnet.ipv4.tcp_fastopen = 1\nnet.ipv4.tcp_fastopen_key = x\n";
        let expected =
            "# mine\nnet.core.somaxconn=9\nnet.ipv4.tcp_fastopen_key = x\nnet.ipv4.tcp_fastopen = 1027\n";
        assert_eq!(with_setting(Some(text), 1027).as_deref(), Some(expected));
        // The last line counts, even if the first is right.
        let twice = "net.ipv4.tcp_fastopen=3\nnet.ipv4.tcp_fastopen=1\n";
        assert_eq!(with_setting(Some(twice), 3).as_deref(), Some("net.ipv4.tcp_fastopen = 3\n"));
    }

    #[test]
    fn a_comment_sets_nothing() {
        assert_eq!(value("# net.ipv4.tcp_fastopen = 3"), None);
        assert_eq!(value("net.ipv4.tcp_fastopen = 3"), Some("3"));
        assert!(with_setting(Some("# net.ipv4.tcp_fastopen = 3"), 3).is_some());
    }
}
