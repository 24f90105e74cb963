//! Compiles the eBPF programs. `dataplane/object.rs` includes the objects at `$OUT_DIR/tfo-ebpf` and `$OUT_DIR/tcx`, and
//! `kernel/listeners/walk.rs` that at `$OUT_DIR/listeners`.
//!
//! A second cargo compiles them in the workspace's root, where `.cargo/config.toml` has the flags and the linker.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

/// Environment variables with the compiler, target and flags of this build, which do not apply to the eBPF programs.
/// `RUSTUP_TOOLCHAIN` is not among them: it names the toolchain of both.
const FOREIGN: [&str; 7] = [
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
];

/// Objects that tfo includes: binaries of tfo-ebpf.
const OBJECTS: [&str; 3] = ["tfo-ebpf", "tcx", "listeners"];

/// The same for whole families of variables.
const FOREIGN_PREFIXES: [&str; 3] = ["CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PROFILE_"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            println!("cargo::error={err}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let root = package.parent().ok_or("tfo-userspace has to lie in its workspace")?;
    for source in ["tfo-ebpf", "tfo-common", "Cargo.toml", "Cargo.lock", ".cargo/config.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }

    if !root.join("target/tools/bin/bpf-linker").is_file() {
        return Err("bpf-linker is missing: run `cargo xtask setup`".into());
    }
    let rust_src = RustSrc::find(root)?;

    // The byte order of the machine that tfo will run on.
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    // All builds share it: the programs are the same in each profile, with all features, and under clippy. It is the folder
    // that has that of the profile, which has `build/PACKAGE/out`.
    let target_dir = out_dir.ancestors().nth(4).unwrap_or(&out_dir).join("ebpf-objects");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .args(["build", "--package", "tfo-ebpf", "--release", "--target", target, "-Z", "build-std=core"])
        .args(OBJECTS.iter().flat_map(|name| ["--bin", *name]))
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(root);
    for (name, _) in env::vars_os() {
        let is_foreign = name.to_str().is_some_and(|name| {
            FOREIGN.contains(&name) || FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        });
        if is_foreign {
            cargo.env_remove(name);
        }
    }
    cargo
        // `core` for BPF has to be built from source, which a stable toolchain does only with this.
        .env("RUSTC_BOOTSTRAP", "1")
        // Else a configured build directory would be shared with the cargo that runs this, which has locked it.
        .env("CARGO_BUILD_BUILD_DIR", &target_dir);
    // Names of source files are in the type information of the programs. They must not depend on where this is built. An
    // encoded list would replace the flags of the configuration; this one is added to them.
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
    cargo.env(flags, remapped(root, &rust_src)?);
    if let RustSrc::Unpacked(library) = rust_src {
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
    }

    let status = cargo.status().map_err(|err| format!("cannot start cargo: {err}"))?;
    if !status.success() {
        return Err(format!("tfo-ebpf did not build ({status}), see the messages below").into());
    }
    for name in OBJECTS {
        let object = target_dir.join(target).join("release").join(name);
        let content = fs::read(&object).map_err(|err| format!("cannot read {}: {err}", object.display()))?;
        fs::write(out_dir.join(name), without_dwarf(&content)?)?;
    }
    Ok(())
}

/// Returns an object without its debug information, which is most of it. The kernel reads the type information (.BTF), which
/// the linker has made of it.
fn without_dwarf(object: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut builder = Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    // The linker has one table for the names of symbols and of sections, the library has two.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    builder.delete_orphans();
    builder.delete_unused_versions();
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// Returns the flags of rustc that give the folders of this machine fixed names. Where several apply, the last one does.
fn remapped(root: &Path, rust_src: &RustSrc) -> Result<String, Box<dyn Error>> {
    let home = variable("CARGO_HOME")?;
    let library = match rust_src {
        RustSrc::InToolchain => sysroot()?.join("lib/rustlib/src/rust/library"),
        RustSrc::Unpacked(library) => library.clone(),
    };
    let mut folders = vec![(root.to_owned(), "/usr/src/tfo")];
    for registry in fs::read_dir(Path::new(&home).join("registry/src"))? {
        folders.push((registry?.path(), "/usr/src/crates"));
    }
    folders.push((library, "/usr/src/rust/library"));
    let flags = folders.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    Ok(flags.collect::<Vec<_>>().join(" "))
}

/// Returns the folder of the toolchain.
fn sysroot() -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(variable("RUSTC")?).args(["--print", "sysroot"]).output()?;
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// Place of the sources of `core`, which `cargo xtask setup` provides.
enum RustSrc {
    /// Folder of the toolchain, where cargo looks for them.
    InToolchain,
    /// Folder under `target/tools`, with the content of Debian's package.
    Unpacked(PathBuf),
}

impl RustSrc {
    fn find(root: &Path) -> Result<Self, Box<dyn Error>> {
        if sysroot()?.join("lib/rustlib/src/rust/library/core").is_dir() {
            return Ok(Self::InToolchain);
        }
        let unpacked = root.join("target/tools/rust-src/library");
        if unpacked.join("core").is_dir() {
            return Ok(Self::Unpacked(unpacked));
        }
        Err("rust-src is missing: run `cargo xtask setup`".into())
    }
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|err| format!("{name}, which cargo sets for build scripts: {err}").into())
}
