//! All files as they are installed. The tarball has just these; the packages take them from here.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

use serde_json::Value;

use super::Release;
use crate::workspace::{command, output, run, step};

/// Files of the tree, and the places where they are installed.
const FILES: [(&str, &str); 9] = [
    ("dist/tfo.toml", "etc/tfo/tfo.toml"),
    ("dist/systemd/tfo.service", "usr/lib/systemd/system/tfo.service"),
    (DROP_IN, "usr/share/tfo/systemd/fast-open.conf"),
    ("dist/sysctl/tfo.conf", "usr/share/tfo/sysctl/tfo.conf"),
    ("dist/prometheus/tfo.rules.yml", "usr/share/tfo/prometheus/tfo.rules.yml"),
    ("dist/grafana/tfo.json", "usr/share/tfo/grafana/tfo.json"),
    ("LICENSE-APACHE", "usr/share/doc/tfo/LICENSE-APACHE"),
    ("LICENSE-MIT", "usr/share/doc/tfo/LICENSE-MIT"),
    ("CHANGELOG.md", CHANGELOG),
];

/// Drop-in of the service for services with `fast_open`. It is installed as an example, out of force.
pub(super) const DROP_IN: &str = "dist/systemd/fast-open.conf";

/// Installed changelog, before it is compressed. Debian's policy (12.7) names it.
const CHANGELOG: &str = "usr/share/doc/tfo/changelog";

/// Scripts that Debian's package manager runs.
const SCRIPTS: [&str; 3] = ["preinst", "prerm", "postrm"];
/// Maintainer of the package, as in `tfo-userspace/Cargo.toml`.
const MAINTAINER: &str = "The authors of tfo <tfo@localhost>";
/// Place in them of the layouts of maps that this version knows.
const LAYOUTS: &str = "@LAYOUTS@";

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
    pages.push(stage.join(CHANGELOG));
    // Without the name and the time of the file.
    run(command("gzip").args(["-9", "--no-name"]).args(&pages))?;

    let made = release.dir.join("completions");
    fs::create_dir_all(&made)?;
    generate(release, "completions", &made)?;
    for (from, to) in COMPLETIONS {
        install(&made.join(from), &stage.join(to))?;
    }
    fs::remove_dir_all(&made).with_context(|| format!("cannot remove {}", made.display()))?;
    for_debian(release)
}

/// Copies the scripts of Debian's package, and fills in what the binary knows. Writes its changelog, which has no changes but
/// those of tfo.
fn for_debian(release: &Release) -> Result<()> {
    let versions = output(command(release.binary()).args(["version", "--json"]))?;
    let versions: Value = serde_json::from_str(&versions).context("`tfo version` wrote no JSON")?;
    let others = versions["other_map_layouts"].as_array();
    let layouts: Vec<_> = [&versions["map_layout"]].into_iter().chain(others.into_iter().flatten()).collect();
    ensure!(layouts.iter().all(|layout| layout.is_u64()), "`tfo version` names no layouts: {versions}");
    let layouts = layouts.iter().map(|layout| layout.to_string()).collect::<Vec<_>>().join(" ");
    let folder = release.dir.join("debian");
    fs::create_dir_all(&folder)?;
    for name in SCRIPTS {
        let text = fs::read_to_string(release.root.join("dist/debian").join(name))
            .with_context(|| format!("cannot read the script {name}"))?;
        fs::write(folder.join(name), text.replace(LAYOUTS, &layouts))
            .with_context(|| format!("cannot write the script {name}"))?;
    }
    let date = output(command("date").args(["--utc", "--rfc-email", &format!("--date=@{}", release.epoch)]))?;
    let changelog = format!(
        "tfo ({}-1) unstable; urgency=medium\n\n  * changelog.gz has the changes.\n\n -- {MAINTAINER}  {date}",
        release.version
    );
    fs::write(folder.join("changelog"), changelog).context("cannot write the changelog of the package")
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
