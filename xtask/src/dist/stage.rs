//! All files as they are installed. The tarball has just these; the packages take them from here.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};

use super::Release;
use crate::workspace::{command, run, step};

/// Files of the tree, and the places where they are installed.
const FILES: [(&str, &str); 8] = [
    ("dist/tfo.toml", "etc/tfo/tfo.toml"),
    ("dist/systemd/tfo.service", "usr/lib/systemd/system/tfo.service"),
    ("dist/sysctl/tfo.conf", "usr/share/tfo/sysctl/tfo.conf"),
    ("dist/prometheus/tfo.rules.yml", "usr/share/tfo/prometheus/tfo.rules.yml"),
    ("dist/grafana/tfo.json", "usr/share/tfo/grafana/tfo.json"),
    ("LICENSE-APACHE", "usr/share/doc/tfo/LICENSE-APACHE"),
    ("LICENSE-MIT", "usr/share/doc/tfo/LICENSE-MIT"),
    ("CHANGELOG.md", "usr/share/doc/tfo/CHANGELOG.md"),
];

/// Folder of manual pages.
const MAN: &str = "usr/share/man/man8";
/// Completions: the file that `tfo generate` writes, and its place.
const COMPLETIONS: [(&str, &str); 3] = [
    ("tfo.bash", "usr/share/bash-completion/completions/tfo"),
    ("_tfo", "usr/share/zsh/vendor-completions/_tfo"),
    ("tfo.fish", "usr/share/fish/vendor_completions.d/tfo.fish"),
];

/// Fills the stage, which has the binary already.
pub(super) fn fill(release: &Release) -> Result<()> {
    step("manual pages, completions and other files");
    let stage = release.stage();
    for (from, to) in FILES {
        install(&release.root.join(from), &stage.join(to))?;
    }

    let man = stage.join(MAN);
    fs::create_dir_all(&man)?;
    generate(release, "man", &man)?;
    let mut pages: Vec<_> =
        fs::read_dir(&man)?.map(|page| page.map(|page| page.path())).collect::<Result<_, _>>()?;
    pages.sort();
    // Without the name and the time of the file.
    run(command("gzip").args(["-9", "--no-name"]).args(&pages))?;

    let made = release.dir.join("completions");
    fs::create_dir_all(&made)?;
    generate(release, "completions", &made)?;
    for (from, to) in COMPLETIONS {
        install(&made.join(from), &stage.join(to))?;
    }
    fs::remove_dir_all(&made).with_context(|| format!("cannot remove {}", made.display()))
}

fn generate(release: &Release, what: &str, folder: &Path) -> Result<()> {
    run(command(release.binary()).args(["generate", what]).arg(folder))
}

/// Copies a file, readable by all.
pub(super) fn install(from: &Path, to: &Path) -> Result<()> {
    let copy = || {
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(from, to)?;
        fs::set_permissions(to, Permissions::from_mode(0o644))
    };
    copy().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
