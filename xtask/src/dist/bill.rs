//! Contents of the binary: a bill of materials (CycloneDX), and the licences of all crates in it.
//!
//! cargo-auditable has put the list of crates into the binary, by what was compiled. Both files must name all of them. The
//! eBPF programs in the binary have crates of their own, which cargo tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use auditable_info::{Limits, json_from_file};
use serde_json::Value;

use super::{Release, binary, stage::install, tools::tool};
use crate::workspace::{EBPF_TARGET, cargo, output, run, step};

/// Name and version of a crate.
type Crate = (String, String);

/// Packages that are compiled into the binary, with the file that lists its crates.
const PARTS: [(&str, &str); 2] = [("tfo-userspace", "tfo.cdx.json"), ("tfo-ebpf", "tfo-ebpf.cdx.json")];

/// File with the texts of all licences.
const LICENCES: &str = "THIRD-PARTY-LICENSES.txt";

/// Writes both, and checks that they are complete.
pub(super) fn write(release: &Release) -> Result<()> {
    step("bill of materials and licences");
    let documents = release.stage().join("usr/share/doc/tfo");
    for (package, file) in PARTS {
        materials(release, package, &release.dir.join(file))?;
        install(&release.dir.join(file), &documents.join(file))?;
    }
    let compiled = [compiled(release)?, for_bpf(release)?];
    let packages = packages(release)?;
    let all: BTreeSet<_> = compiled.iter().flatten().cloned().collect();
    let text = licences(&all, &packages)?;
    fs::write(documents.join(LICENCES), text).with_context(|| format!("cannot write {LICENCES}"))?;
    for ((_, file), compiled) in PARTS.iter().zip(&compiled) {
        let bill = fs::read_to_string(release.dir.join(file))?;
        let missing: Vec<_> = compiled.difference(&listed(&bill)?).cloned().collect();
        ensure!(missing.is_empty(), "{file} lacks crates that are in the binary: {missing:?}");
        step(&format!("{file} names all {} crates of its part", compiled.len()));
    }
    Ok(())
}

/// Writes the bill of one package to `path`.
fn materials(release: &Release, package: &str, path: &Path) -> Result<()> {
    const NAME: &str = "bill-of-materials";

    let target = if package == "tfo-ebpf" { EBPF_TARGET.to_owned() } else { host()? };
    run(tool("cyclonedx")?
        .current_dir(&release.root)
        .args(["--quiet", "--format", "json", "--spec-version", "1.5", "--no-build-deps"])
        .args(["--override-filename", NAME, "--target", &target, "--manifest-path"])
        .arg(release.root.join(package).join("Cargo.toml"))
        .args((package == "tfo-userspace").then_some("--features=etcd"))
        .env("SOURCE_DATE_EPOCH", &release.epoch))?;
    // It writes one beside the manifest of each member of the workspace.
    let made = release.root.join(package).join(format!("{NAME}.json"));
    let text = fs::read_to_string(&made).with_context(|| format!("there is no {}", made.display()))?;
    for member in ["tfo-common", "tfo-ebpf", "tfo-userspace", "xtask", "tests", "tests/fuzz"] {
        drop(fs::remove_file(release.root.join(member).join(format!("{NAME}.json"))));
    }
    let root = release.root.display().to_string();
    fs::write(path, text.replace(&root, "/usr/src/tfo"))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn host() -> Result<String> {
    let version = output(crate::workspace::command("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

/// Returns the crates that a bill names, with the one that it describes.
fn listed(bill: &str) -> Result<BTreeSet<Crate>> {
    let bill: Value = serde_json::from_str(bill).context("the bill is no JSON")?;
    let components = bill["components"].as_array().context("the bill has no components")?;
    let all = components.iter().chain([&bill["metadata"]["component"]]);
    Ok(all.filter_map(key).collect())
}

/// Returns the name and the version that a JSON object has.
fn key(one: &Value) -> Option<Crate> {
    Some((one["name"].as_str()?.to_owned(), one["version"].as_str()?.to_owned()))
}

/// Returns the crates that were compiled for the host, by the list in the binary.
fn compiled(release: &Release) -> Result<BTreeSet<Crate>> {
    let info = json_from_file(&release.binary(), Limits::default())
        .map_err(|error| anyhow!("the binary has no list of its crates: {error}"))?;
    let info: Value = serde_json::from_str(&info)?;
    let packages = info["packages"].as_array().context("the list in the binary has no packages")?;
    // Crates that only ran at the build have the kind `build`; the others have none.
    let at_run_time = packages.iter().filter(|one| one["kind"] != "build");
    let crates: BTreeSet<_> = at_run_time.filter_map(key).collect();
    ensure!(crates.len() > 50, "the binary names only {} crates", crates.len());
    Ok(crates)
}

/// Returns the crates of the eBPF programs, without those that run at their compilation.
fn for_bpf(release: &Release) -> Result<BTreeSet<Crate>> {
    let tree = output(
        cargo()
            .current_dir(&release.root)
            .args(["tree", "--package", "tfo-ebpf", "--edges", "normal,no-proc-macro", "--prefix", "none"])
            .args(["--target", EBPF_TARGET, "--format", "{p}"]),
    )?;
    let crates: BTreeSet<_> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
        })
        .collect();
    ensure!(crates.iter().any(|(name, _)| name == "aya-ebpf"), "`cargo tree` says: {tree}");
    Ok(crates)
}

/// Returns what cargo knows of all crates.
fn packages(release: &Release) -> Result<BTreeMap<Crate, Value>> {
    let metadata = output(
        cargo()
            .current_dir(&release.root)
            .args(["metadata", "--format-version", "1", "--locked"])
            .args(["--features", binary::FEATURES]),
    )?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"].as_array().context("`cargo metadata` names no packages")?;
    Ok(packages.iter().filter_map(|one| Some((key(one)?, one.clone()))).collect())
}

/// Returns the text with the licences of `crates`: for each its expression, and each text once, with all that have it.
///
/// cargo-about would recognise texts by their likeness, which takes it longer than the build. Here they are only copied.
fn licences(crates: &BTreeSet<Crate>, packages: &BTreeMap<Crate, Value>) -> Result<String> {
    let mut list = String::from("Crates that are compiled into tfo\n=================================\n\n");
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for key @ (name, version) in crates {
        let package = packages.get(key).with_context(|| format!("cargo knows no {name} {version}"))?;
        let Some(expression) = package["license"].as_str() else {
            bail!("{name} {version} names no licence")
        };
        writeln!(list, "{name} {version}: {expression}")?;
        let manifest = package["manifest_path"].as_str().context("a package without a manifest")?;
        let folder = Path::new(manifest).parent().context("a manifest in no folder")?;
        let mut files: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
        files.sort_by_key(fs::DirEntry::file_name);
        files.retain(|file| is_licence(&file.file_name().to_string_lossy()));
        // The texts of these two are in files of their own, which tfo has for itself.
        let is_ours = ["MIT", "Apache-2.0"].iter().any(|ours| expression.contains(ours));
        ensure!(is_ours || !files.is_empty(), "{name} {version} ({expression}) has no text of its licence");
        for file in files {
            if file.metadata()?.is_file() {
                let text = String::from_utf8_lossy(&fs::read(file.path())?).trim().replace('\r', "");
                let holders = texts.entry(text).or_default();
                holders.push(format!("{name} {version} ({})", file.file_name().display()));
            }
        }
    }
    let mut texts: Vec<_> = texts.into_iter().collect();
    texts.sort_by(|(_, one), (_, two)| one.cmp(two));
    for (text, holders) in texts {
        write!(list, "\n{}\n{}\n\n{text}\n", "-".repeat(80), holders.join("\n"))?;
    }
    Ok(list)
}

/// Whether a file of this name holds a licence or a notice that has to go with it.
fn is_licence(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"]
        .iter()
        .any(|beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bill_names_its_components_and_itself() {
        let bill = r#"{"metadata":{"component":{"name":"tfo","version":"1"}},"components":[{"name":"aya","version":"2"}]}"#;
        let crates: BTreeSet<Crate> =
            [("tfo", "1"), ("aya", "2")].map(|(name, version)| (name.into(), version.into())).into();
        assert_eq!(listed(bill).expect("a bill"), crates);
        assert!(listed("{}").is_err());
    }

    #[test]
    fn licences_are_known_by_their_names() {
        for name in ["LICENSE", "LICENSE-MIT", "license.md", "COPYING", "NOTICE", "UNLICENSE"] {
            assert!(is_licence(name), "{name}");
        }
        assert!(!is_licence("README.md") && !is_licence("Cargo.toml"));
    }

    #[test]
    fn a_crate_without_a_licence_is_an_error() {
        let key: Crate = ("one".into(), "1".into());
        let (crates, nothing) = (BTreeSet::from([key.clone()]), BTreeMap::new());
        assert!(licences(&crates, &nothing).is_err());
        let nameless = BTreeMap::from([(key, serde_json::json!({"license": null}))]);
        assert!(licences(&crates, &nameless).unwrap_err().to_string().contains("names no licence"));
    }
}
