//! Commands on this machine, and what they leave on it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::programs::loaded_programs;

/// Longest wait for an expected event. The processor is emulated.
const PATIENCE: Duration = Duration::from_secs(300);

/// File of the names that were there before tfo. It is also the sign of the second boot.
const NAMES: &str = "/var/lib/operator/names";

/// Runs a line of the shell, and returns its outcome.
pub(crate) fn outcome(line: &str) -> Result<Output> {
    let mut sh = Command::new("sh");
    sh.args(["-c", line]).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    sh.output().with_context(|| format!("cannot start `{line}`"))
}

/// Runs a line of the shell, which has to succeed. Returns what it wrote to its standard output.
pub(crate) fn run(line: &str) -> Result<String> {
    let Output { status, stdout, stderr } = outcome(line)?;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if !status.success() {
        bail!("`{line}` failed ({status}): {}{}", stdout.trim(), stderr.trim());
    }
    Ok(stdout.trim().to_owned())
}

/// Waits until `look` succeeds. Its last error says what is missing.
pub(crate) fn eventually<T>(look: impl Fn() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Err(_) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(200)),
            done => return done,
        }
    }
}

/// Whether this is the boot after the first.
pub(crate) fn was_rebooted() -> bool {
    Path::new(NAMES).exists()
}

/// Notes the names of all files.
pub(crate) fn note_names() -> Result<()> {
    let names = names()?.into_iter().collect::<Vec<_>>().join("\n");
    fs::create_dir_all(Path::new(NAMES).parent().context("it has a folder")?)?;
    fs::write(NAMES, names).with_context(|| format!("cannot write {NAMES}"))
}

/// Returns what tfo has left on this machine: files that were not there before it, and programs in the kernel.
pub(crate) fn leftovers() -> Result<Vec<String>> {
    let before = fs::read_to_string(NAMES)?;
    let before: BTreeSet<_> = before.lines().collect();
    let mut left: Vec<_> = names()?.into_iter().filter(|name| !before.contains(name.as_str())).collect();
    for program in loaded_programs() {
        let program = program.context("cannot list the programs in the kernel")?;
        let name = program.name_as_str().unwrap_or_default().to_owned();
        if name.starts_with("tfo_") {
            left.push(format!("program {name}"));
        }
    }
    Ok(left)
}

/// Returns the names of all files below /etc and /usr, and elsewhere of those that could be tfo's.
fn names() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for folder in ["/etc", "/usr", "/opt", "/var", "/run", "/sys/fs/bpf"] {
        let everything = matches!(folder, "/etc" | "/usr" | "/opt");
        walk(Path::new(folder), &mut |path| {
            let name = path.display().to_string();
            if everything || name.contains("tfo") || name.contains("fastopen") {
                names.insert(name);
            }
        })?;
    }
    Ok(names)
}

/// Passes the path of each file and folder below `folder` to `see`. Links are not followed.
fn walk(folder: &Path, see: &mut dyn FnMut(&Path)) -> Result<()> {
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // What vanishes meanwhile, as below /run, is not there.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            see(&entry.path());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}
