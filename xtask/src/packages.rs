//! Debian packages of programs that the tests run. Their services are not left running.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

use crate::workspace::{command, is_installed, is_root, run, step};

/// Program, and the package that has it.
pub(crate) type Program = (&'static str, &'static str);

/// Programs that the tests start.
pub(crate) const FOR_TESTS: [Program; 21] = [
    ("nginx", "nginx"),
    ("curl", "curl"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("faketime", "faketime"),
    ("prometheus", "prometheus"),
    ("tmux", "tmux"),
    ("chromium", "chromium"),
    ("crun", "crun"),
    ("umoci", "umoci"),
    ("strip", "binutils"),
    ("setpriv", "util-linux"),
    ("systemd-analyze", "systemd"),
    ("man", "man-db"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("openssl", "openssl"),
    ("python3", "python3"),
    ("node", "nodejs"),
    ("xdp-filter", "xdp-tools"),
];

/// Compiler of etcd's protocol, which a build with the feature `etcd` runs, and a file that it needs.
pub(crate) const FOR_ETCD: [Program; 2] =
    [("protoc", "protobuf-compiler"), ("/usr/include/google/protobuf/descriptor.proto", "libprotobuf-dev")];

/// Programs that make the pictures of the README.
pub(crate) const FOR_PICTURES: [Program; 5] =
    [("nginx", "nginx"), ("curl", "curl"), ("ip", "iproute2"), ("tmux", "tmux"), ("chromium", "chromium")];

/// Packages that bring a service, with its name.
const SERVICES: [(&str, &str); 3] =
    [("nginx", "nginx"), ("prometheus", "prometheus"), ("etcd-server", "etcd")];

/// Installs the missing packages of `programs`.
pub(crate) fn ensure(programs: &[Program]) -> Result<()> {
    let missing = missing(programs);
    if missing.is_empty() {
        return Ok(());
    }
    step(&format!("these Debian packages are needed: {}", missing.join(", ")));
    install(programs, &missing).with_context(|| format!("install these by hand: {}", missing.join(", ")))
}

fn missing(programs: &[Program]) -> Vec<&'static str> {
    programs.iter().filter(|(program, _)| !is_installed(program)).map(|(_, package)| *package).collect()
}

fn install(programs: &[Program], packages: &[&str]) -> Result<()> {
    ensure!(is_root(), "installing them needs root");
    ensure!(is_installed("apt-get"), "there is no apt-get here");
    if apt_get(&["install", "--download-only"], packages).is_err() {
        step("apt's lists are missing or old: updating them");
        apt_get(&["update"], &[])?;
        apt_get(&["install", "--download-only"], packages)?;
    }
    {
        let _guard = NoServices::begin()?;
        apt_get(&["install", "--no-download"], packages)?;
    }
    if is_installed("systemctl") {
        let mut installed = SERVICES.iter().filter(|(package, _)| packages.contains(package));
        installed.try_for_each(|(_, service)| disable(&format!("{service}.service")))?;
    }
    let missing = missing(programs);
    ensure!(missing.is_empty(), "installed, but not found in PATH: {}", missing.join(", "));
    Ok(())
}

/// Keeps a service from running: at the next boot, and now if systemd runs.
fn disable(service: &str) -> Result<()> {
    let is_booted = Path::new("/run/systemd/system").exists();
    run(command("systemctl").arg("disable").args(is_booted.then_some("--now")).arg(service))
}

fn apt_get(operation: &[&str], packages: &[&str]) -> Result<()> {
    run(command("apt-get")
        .args(operation)
        .args(["--yes", "--no-install-recommends", "--option", "DPkg::Lock::Timeout=60"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Path of the program that Debian's packages ask whether they may start their services.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Program that answers no. By its text, a file that an interrupted run has left is known as ours.
const NO: &str = "#!/bin/sh\n# Written by `cargo xtask` while it installs packages; remove it when that is over.\nexit 101\n";

/// Policy by which installed packages don't start services; dropping it ends that. Another policy that exists stays.
struct NoServices {
    is_ours: bool,
}

impl NoServices {
    fn begin() -> Result<Self> {
        let policy = Path::new(POLICY);
        if policy.exists() {
            return Ok(Self { is_ours: fs::read_to_string(policy).is_ok_and(|text| text == NO) });
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(policy);
        let guard = Self { is_ours: file.is_ok() };
        file.and_then(|mut file| file.write_all(NO.as_bytes()))
            .with_context(|| format!("cannot write {POLICY}"))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(err) = fs::remove_file(POLICY)
        {
            step(&format!("cannot remove {POLICY}, do that by hand: {err}"));
        }
    }
}
