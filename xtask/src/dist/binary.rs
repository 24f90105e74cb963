//! The binary: small, with the list of its crates inside and its debug information beside it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Release, tools::tool};
use crate::{
    packages,
    workspace::{command, output, run, step},
};

/// Size that the binary may have, in bytes.
const LARGEST: u64 = 12 * 1000 * 1000;

/// Profile of `Cargo.toml`.
const PROFILE: &str = "shipped";

/// Features of the binary that is packed.
pub(super) const FEATURES: &str = "tfo-userspace/etcd";

/// Builds the binary into the stage, and its debug information into `tfo.debug`.
pub(super) fn build(release: &Release) -> Result<()> {
    packages::ensure(&packages::FOR_ETCD)?;
    step("building tfo");
    let target = release.root.join("target");
    run(tool("auditable")?
        .current_dir(&release.root)
        .args(["build", "--locked", "--package", "tfo-userspace", "--profile", PROFILE, "--target-dir"])
        .arg(&target)
        .args(["--features", FEATURES])
        .args(release.is_next.then_some("--features=tfo-common/next-layout"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags(release)?)
        .env_remove("CARGO_BUILD_TARGET")
        .env("SOURCE_DATE_EPOCH", &release.epoch))?;

    let (built, stripped, debug) =
        (target.join(PROFILE).join("tfo"), release.binary(), release.dir.join("tfo.debug"));
    let folder = stripped.parent().expect("the stage has folders");
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    run(command("objcopy").args(["--only-keep-debug"]).args([&built, &debug]))?;
    // A debugger finds tfo.debug by its name and checksum.
    run(command("objcopy")
        .current_dir(&release.dir)
        .args(["--strip-all", "--add-gnu-debuglink=tfo.debug"])
        .args([&built, &stripped]))?;
    let size = fs::metadata(&stripped)?.len();
    ensure!(size <= LARGEST, "the binary has {size} bytes, and {LARGEST} are the limit");
    step(&format!("the binary has {size} bytes"));
    ensure_no_path(release, &fs::read(&stripped)?)
}

/// Fails if a folder of this machine is in the binary, which would differ in another one.
fn ensure_no_path(release: &Release, binary: &[u8]) -> Result<()> {
    let home = env::home_dir().unwrap_or_default().join(".");
    for path in [release.root.join(""), home] {
        let path = path.display().to_string();
        let path = path.trim_end_matches('.').as_bytes();
        if let Some(at) = binary.windows(path.len()).position(|window| window == path) {
            let text: String = binary[at..]
                .iter()
                .take_while(|byte| byte.is_ascii_graphic())
                .map(|byte| char::from(*byte))
                .collect();
            bail!("a path of this machine is in the binary: {text}");
        }
    }
    Ok(())
}

/// Returns the flags of rustc: folders of this machine get fixed names. `tfo-userspace/build.rs` does the same for the eBPF
/// programs.
fn flags(release: &Release) -> Result<String> {
    let home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => env::home_dir().context("there is neither CARGO_HOME nor a home folder")?.join(".cargo"),
    };
    let registries = home.join("registry/src");
    let mut folders = vec![(release.root.clone(), "/usr/src/tfo")];
    for registry in
        fs::read_dir(&registries).with_context(|| format!("cannot list {}", registries.display()))?
    {
        folders.push((registry?.path(), "/usr/src/crates"));
    }
    // With rust-src in the toolchain, the standard library has names in it.
    let sysroot = output(command("rustc").args(["--print", "sysroot"]))?;
    folders.push((Path::new(sysroot.trim()).join("lib/rustlib/src/rust"), "/usr/src/rust"));
    let flags = folders.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    // The separator of CARGO_ENCODED_RUSTFLAGS, which lets folders have blanks.
    Ok(flags.collect::<Vec<_>>().join("\u{1f}"))
}
