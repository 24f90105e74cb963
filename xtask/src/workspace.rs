//! Paths of the workspace, and running of commands.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, ErrorKind},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Target that the XDP program is compiled for: BPF in the byte order of the host.
pub(crate) const EBPF_TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Returns the root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Returns the folder of the tools that `cargo xtask setup` brings.
///
/// It does not follow the target directory: `.cargo/config.toml` and `tfo-userspace/build.rs` name it, too.
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}

/// Returns cargo's target directory: the one that this program was built into.
///
/// So it follows `CARGO_TARGET_DIR`, `CARGO_BUILD_TARGET` and their configuration, without asking cargo again.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("cannot find the path of xtask itself")?;
    let dir =
        exe.ancestors().nth(2).with_context(|| format!("{} is in no target directory", exe.display()))?;
    Ok(dir.to_owned())
}

/// Returns a command that runs in the root of the workspace.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// Returns a command for the cargo that runs this task, in the root of the workspace.
pub(crate) fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command to its end; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", describe(command)))?;
    ensure!(status.success(), "`{}` failed ({status})", describe(command));
    Ok(())
}

/// Runs a command to its end and returns what it wrote to its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start `{}`", describe(command)))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}` failed ({}): {}", describe(command), output.status, stderr.trim());
    String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote no UTF-8", describe(command)))
}

/// Runs a command and hands over each line of its standard output as it comes.
pub(crate) fn for_each_line(command: &mut Command, mut read: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut run = || {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().expect("stdout was just piped");
        for line in BufReader::new(stdout).split(b'\n') {
            read(&String::from_utf8_lossy(&line?));
        }
        child.wait()
    };
    let outcome = run();
    outcome.with_context(|| format!("cannot run `{}`", describe(command)))
}

/// Returns a command as one would type it, with its program's name only.
pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> = [name].into_iter().chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// Whether a program of this name is in `PATH`.
pub(crate) fn is_installed(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Whether this process may load programs into the kernel and create namespaces.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Announces a step that takes time or changes something.
pub(crate) fn step(what: &str) {
    eprintln!("xtask: {what}");
}

/// Makes an empty folder, and removes an old one.
pub(crate) fn empty_dir(path: &Path) -> Result<()> {
    remove_dir(path)?;
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

/// Removes a folder and everything in it, if it is there.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    ignore_missing(fs::remove_dir_all(path)).with_context(|| format!("cannot remove {}", path.display()))
}

/// Moves a finished file or folder to its place.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

/// Turns the error for a missing file into success.
pub(crate) fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_the_workspace() {
        assert!(root().join("rust-toolchain.toml").is_file());
    }

    #[test]
    fn a_failed_command_is_named() {
        let err = run(&mut command("false")).unwrap_err();
        assert_eq!(err.to_string(), "`false` failed (exit status: 1)");
    }

    #[test]
    fn a_missing_program_is_named() {
        let err = run(command("tfo-no-such-program").arg("x")).unwrap_err();
        assert_eq!(err.to_string(), "cannot start `tfo-no-such-program x`");
        assert!(!is_installed("tfo-no-such-program"));
        assert!(is_installed("sh"));
    }

    #[test]
    fn a_command_is_described_without_its_folder() {
        assert_eq!(describe(Command::new("/usr/bin/cargo").args(["test", "--doc"])), "cargo test --doc");
    }
}
