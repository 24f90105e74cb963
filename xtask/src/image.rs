//! `cargo xtask image`: a container image with nothing in it but `tfo` and the libraries that it links to.
//!
//! Its binary is the one that is tested and packaged, so there is no build for another target. umoci writes the image, and
//! no container engine is needed. The same binary and libraries make the same image, bit by bit.

use std::{
    env::consts::ARCH,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build, libraries,
    packages::{self, Program},
    workspace::{command, empty_dir, root, run, step, target_dir},
};

/// Programs that make the image.
pub(crate) const FOR_IMAGES: [Program; 2] = [("umoci", "umoci"), ("strip", "binutils")];
/// Path of `tfo` in the image.
const BINARY: &str = "usr/bin/tfo";
/// Folders that a container has for mounts, so that `docker run --volume` finds them.
const FOLDERS: [&str; 3] = ["etc/tfo", "run/tfo", "var/lib/tfo"];
/// Folder of licences in the image.
const LICENCES: &str = "usr/share/doc/tfo";
/// Texts of licences: our own, and those of the libraries where Debian has them.
const LICENCE_FILES: [(&str, &str); 4] = [
    ("LICENSE-APACHE", "LICENSE-APACHE"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    ("/usr/share/doc/libc6/copyright", "libc6.copyright"),
    ("/usr/share/doc/libgcc-s1/copyright", "libgcc-s1.copyright"),
];
/// Time of everything in the image. The time of the build would make each image another one.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Arguments of `cargo xtask image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Binary to put into the image; without it, `tfo` is built with optimizations
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Folder that is emptied and gets the image: `layout` (an OCI layout) and `tfo.tar` (the same as an archive)
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Makes the image.
pub(crate) fn image(args: &Args) -> Result<()> {
    packages::ensure(&FOR_IMAGES)?;
    let binary = match &args.binary {
        Some(binary) => binary.canonicalize().with_context(|| format!("there is no {}", binary.display()))?,
        None => build::build(&build::Args::default())?,
    };
    let folder = match &args.output {
        Some(folder) => folder.clone(),
        None => target_dir()?.join("image"),
    };
    empty_dir(&folder)?;
    let folder = folder.canonicalize()?;
    let files = folder.join("rootfs");
    stage(&binary, &files)?;
    let layout = folder.join("layout");
    write(&files, &layout)?;
    let archive = folder.join("tfo.tar");
    run(command("tar")
        .args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"])
        // Whatever the umask is.
        .arg("--mode=u=rwX,go=rX")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(&layout)
        .arg("."))?;
    fs::remove_dir_all(&files).with_context(|| format!("cannot remove {}", files.display()))?;
    step(&format!("the image {} is {}", name(), archive.display()));
    Ok(())
}

/// Returns the name and tag of the image, as the manifests in dist/kubernetes have it.
fn name() -> String {
    format!("tfo:{}", env!("CARGO_PKG_VERSION"))
}

/// Puts all files of the image below `files`.
fn stage(binary: &Path, files: &Path) -> Result<()> {
    let tfo = files.join(BINARY);
    for folder in FOLDERS.map(|folder| files.join(folder)).iter().map(PathBuf::as_path).chain(tfo.parent()) {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    run(command("strip").arg("-o").arg(&tfo).arg(binary))?;
    for library in libraries::of(&tfo)? {
        copy(&library, &files.join(library.strip_prefix("/")?), 0o755)?;
    }
    for (from, to) in LICENCE_FILES {
        // An absolute path stays as it is. Other distributions have these elsewhere.
        let from = root().join(from);
        if from.exists() {
            copy(&from, &files.join(LICENCES).join(to), 0o644)?;
        }
    }
    set_times(files)
}

/// Copies a file, or the file to which a link leads.
fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let copied = || {
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(from, to)?;
        fs::set_permissions(to, Permissions::from_mode(mode))
    };
    copied().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Gives everything below `path` the time [`CREATED`], and folders a mode that does not depend on the umask.
fn set_times(path: &Path) -> Result<()> {
    let context = || format!("cannot set the time of {}", path.display());
    if path.is_dir() {
        for entry in fs::read_dir(path).with_context(context)? {
            set_times(&entry?.path())?;
        }
        fs::set_permissions(path, Permissions::from_mode(0o755)).with_context(context)?;
    }
    File::open(path).and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH)).with_context(context)
}

/// Writes the image of `files` as the OCI layout `layout`.
fn write(files: &Path, layout: &Path) -> Result<()> {
    // The reference is the whole name, which podman takes over.
    let image = format!("{}:{}", layout.display(), name());
    run(command("umoci").args(["init", "--layout"]).arg(layout))?;
    run(command("umoci").args(["new", "--image", &image]))?;
    // Whoever makes the image, its files are root's.
    let rootless = (!nix::unistd::geteuid().is_root()).then_some("--rootless");
    run(command("umoci")
        .arg("insert")
        .args(rootless)
        .args(["--image", &image, "--history.created", CREATED])
        .args(["--history.created_by", "cargo xtask image"])
        .arg(files)
        .arg("/"))?;
    run(command("umoci")
        .args(["config", "--image", &image, "--no-history", "--created", CREATED])
        .args(["--os", "linux", "--architecture", architecture()?])
        .args(["--config.entrypoint", &format!("/{BINARY}")])
        .args(["--config.cmd", "run", "--config.cmd", "--config=/etc/tfo/tfo.toml"])
        .args(["--config.stopsignal", "SIGTERM"])
        .args(["--config.label", "org.opencontainers.image.title=tfo"])
        .args(["--config.label", &format!("org.opencontainers.image.version={}", env!("CARGO_PKG_VERSION"))])
        .args(["--config.label", "org.opencontainers.image.licenses=MIT OR Apache-2.0"]))?;
    // The steps before the last one have left their own configurations and manifests.
    run(command("umoci").args(["gc", "--layout"]).arg(layout))
}

/// Returns the name that Go, and so OCI, has for this architecture.
fn architecture() -> Result<&'static str> {
    match ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("an image for {other} has not been tried"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_name_this_image() {
        for file in ["base", "remove"].map(|part| format!("dist/kubernetes/{part}/daemonset.yaml")) {
            let text = fs::read_to_string(root().join(&file)).expect("the manifest is in the tree");
            assert!(text.contains(&format!("image: {}\n", name())), "{file}");
        }
    }
}
