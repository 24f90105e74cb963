//! Writes what the fuzz targets begin with into a folder: `seeds DIR` makes DIR/TARGET/ and its files. For `cargo xtask fuzz`.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result};
use tfo_tests::fuzz::TARGETS;

fn main() -> Result<()> {
    let folder = env::args_os().nth(1).context("which folder?")?;
    for target in TARGETS {
        let folder = Path::new(&folder).join(target.name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(number.to_string()), seed)?;
        }
    }
    Ok(())
}
