//! Modules of a kernel, each with those that it depends on.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::workspace::{command, is_installed, run};

/// Modules that are kept of a package that has them: interfaces of the tests, and drivers of `cargo xtask drivers`. Others are
/// kept where one of these depends on them.
const KEPT: [&str; 6] = ["veth", "tun", "virtio_net", "igb", "vmxnet3", "e1000e"];

/// Writes the modules of an unpacked package into the folder `into`, uncompressed.
pub(super) fn keep(package: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
    let mut files = BTreeMap::new();
    list(package, &mut files).with_context(|| format!("cannot search {}", package.display()))?;
    let mut open: Vec<String> = KEPT.map(str::to_owned).to_vec();
    while let Some(name) = open.pop() {
        let module = into.join(format!("{name}.ko"));
        if let Some(file) = files.get(&name).filter(|_| !module.exists()) {
            decompress(file, &module)?;
            open.extend(dependencies(&module)?);
        }
    }
    Ok(())
}

/// Returns the modules of these names that [`keep`] wrote into `dir`, each behind those that it depends on.
pub(super) fn with_dependencies(dir: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut modules = Vec::new();
    names.iter().try_for_each(|name| add(dir, name, &mut modules))?;
    Ok(modules)
}

fn add(dir: &Path, name: &str, modules: &mut Vec<PathBuf>) -> Result<()> {
    let module = dir.join(format!("{name}.ko"));
    if !modules.contains(&module) {
        ensure!(module.is_file(), "the kernel has no module {name} ({})", dir.display());
        dependencies(&module)?.iter().try_for_each(|needed| add(dir, needed, modules))?;
        modules.push(module);
    }
    Ok(())
}

/// Collects the modules under `dir` by their names, in which the kernel writes `_` for `-`.
fn list(dir: &Path, modules: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(&entry.path(), modules)?;
        } else if let Some((name, "" | ".xz" | ".zst")) =
            entry.file_name().to_str().and_then(|file| file.split_once(".ko")).filter(|_| kind.is_file())
        {
            modules.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

/// Returns the names of the modules that an uncompressed module depends on.
fn dependencies(module: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(module).with_context(|| format!("cannot read {}", module.display()))?;
    Ok(depends(&bytes))
}

/// Reads the entry `depends=a,b` of a module's section `.modinfo`, where each entry ends with a zero byte.
fn depends(module: &[u8]) -> Vec<String> {
    const ENTRY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(ENTRY.len()).position(|bytes| bytes == ENTRY) else { return Vec::new() };
    let names = module[at + ENTRY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(names).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Decompresses a module, or copies it if it is not compressed.
fn decompress(from: &Path, to: &Path) -> Result<()> {
    let (program, package) = match from.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        _ => {
            return fs::copy(from, to)
                .map(drop)
                .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()));
        }
    };
    ensure!(is_installed(program), "{program} is not installed: apt-get install {package}");
    let file = File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    run(command(program).args(["--decompress", "--stdout"]).arg(from).stdout(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = std::env::temp_dir().join(format!("tfo-xtask-modules-{}", std::process::id()));
        let (package, kept) = (dir.join("package/drivers"), dir.join("kept"));
        fs::create_dir_all(&package).expect("a folder");
        let write = |name: &str, text: &str| fs::write(package.join(name), text).expect("a file");
        write("virtio_net.ko", "\0license=GPL\0depends=net-failover,failover\0name=virtio_net\0");
        write("net_failover.ko", "\0depends=failover\0");
        write("failover.ko", "\0depends=\0");
        write("e1000.ko", "\0depends=\0");
        write("igb.ko.txt", "");
        keep(&package, &kept).expect("modules are kept");
        let found = with_dependencies(&kept, &["virtio_net", "failover"]).expect("they are there");
        let expected = ["failover", "net_failover", "virtio_net"].map(|name| kept.join(format!("{name}.ko")));
        let missing = with_dependencies(&kept, &["e1000"]);
        fs::remove_dir_all(&dir).expect("the folder is ours");
        assert_eq!(found, expected);
        assert!(missing.is_err(), "it is not among those that are kept");
    }
}
