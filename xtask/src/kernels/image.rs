//! File system of the guest, all in memory: the real `tfo`, the tests, and what both need.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::packages::{self, Kernel};
use crate::{
    libraries,
    workspace::{command, describe, empty_dir, output, run},
};

/// Makes the initramfs for `kernel`. `programs`, each a name and a file, go to `/tests`. `plan` has one line for each
/// program to run, with its arguments.
pub(crate) fn make(kernel: &Kernel, programs: &[(String, PathBuf)], plan: &str) -> Result<PathBuf> {
    let root = packages::dir().join("image");
    empty_dir(&root)?;
    for folder in ["bin", "dev", "etc", "modules", "proc", "run", "sbin", "sys", "tests", "tmp", "var/lib"] {
        empty_dir(&root.join(folder))?;
    }
    let busybox = packages::busybox(kernel.architecture)?;
    copy(&busybox, &root.join("bin/busybox"))?;
    for (name, program) in programs {
        let place = root.join("tests").join(name);
        // Debug info is most of a program, and the guest would hold it in memory.
        run(command("strip").arg("-o").arg(&place).arg(program))?;
        copy_libraries(&place, &root)?;
    }
    let ip = which("ip")?;
    copy(&ip, &root.join("sbin/ip"))?;
    copy_libraries(&ip, &root)?;
    for (n, module) in kernel.modules.iter().enumerate() {
        copy(module, &root.join(format!("modules/{n:02}.ko")))?;
    }
    write(&root.join("plan"), plan)?;
    write(&root.join("init"), include_str!("init.sh"))?;
    run(command("chmod").arg("+x").arg(root.join("init")))?;
    pack(&busybox, &root)
}

/// Packs everything under `root` into a cpio archive.
fn pack(busybox: &Path, root: &Path) -> Result<PathBuf> {
    let archive = packages::dir().join("initramfs");
    let file = fs::File::create(&archive).with_context(|| format!("cannot create {}", archive.display()))?;
    let script = r#""$0" find . | "$0" cpio --quiet -o -H newc"#;
    run(command(busybox)
        .args(["sh", "-o", "pipefail", "-c", script])
        .arg(busybox)
        .current_dir(root)
        .stdout(file))?;
    Ok(archive)
}

/// Copies the shared libraries of `program`, and the loader that it names, to the same paths under `root`.
fn copy_libraries(program: &Path, root: &Path) -> Result<()> {
    for library in libraries::of(program)? {
        copy(&library, &root.join(library.strip_prefix("/")?))?;
    }
    Ok(())
}

fn which(program: &str) -> Result<PathBuf> {
    let mut sh = command("sh");
    sh.args(["-c", &format!("command -v {program}")]);
    Ok(output(&mut sh).with_context(|| format!("`{}` finds no program", describe(&sh)))?.trim().into())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Copies a file, or what a link points to, and makes the folder for it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let copy = || {
        fs::create_dir_all(to.parent().unwrap_or(to))?;
        fs::copy(from, to)
    };
    copy().map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
