//! Shared libraries of a program, for images that have nothing else.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::workspace::{command, output};

/// Returns the shared libraries of `program`, and the dynamic linker that it names.
pub(crate) fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let list = output(command("ldd").arg(program))?;
    if let Some(missing) = list.lines().find(|line| line.contains("not found")) {
        bail!("{} lacks a library: {}", program.display(), missing.trim());
    }
    Ok(paths(&list))
}

/// Returns the files that `ldd` names. The kernel's library (linux-vdso) is no file.
fn paths(list: &str) -> Vec<PathBuf> {
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    list.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_libraries_and_the_loader() {
        let list = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(paths(list), expected.map(PathBuf::from));
    }

    #[test]
    fn the_library_of_every_program_is_found() {
        let found = of(Path::new("/bin/sh")).expect("ldd can read a shell");
        assert!(found.iter().all(|library| library.is_file()), "{found:?}");
        assert!(found.iter().any(|library| library.to_string_lossy().contains("/libc.so")), "{found:?}");
    }
}
