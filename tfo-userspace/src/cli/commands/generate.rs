//! `tfo generate`: files for packages, made of the command line that this binary has.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

use crate::cli::args::{Cli, Generate, Generated};

/// Section of the manual for commands of administrators.
const SECTION: &str = "8";

/// Writes the files.
pub(super) fn run(args: &Generate) -> Result<()> {
    let mut command = Cli::command();
    match args.what {
        Generated::Man => {
            // It has no page.
            command = command.disable_help_subcommand(true);
            command.build();
            pages(&command, &args.folder)
        }
        Generated::Completions => {
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                generate_to(shell, &mut command, "tfo", &args.folder)
                    .with_context(|| format!("cannot write completions into {}", args.folder.display()))?;
            }
            Ok(())
        }
    }
}

/// Writes the page of `command`, and those of its subcommands: tfo-keys-rotate.8 for `tfo keys rotate`.
fn pages(command: &Command, folder: &Path) -> Result<()> {
    // The name with which it is called, such as `tfo keys rotate`.
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let title = name.replace(' ', "-");
    let path = folder.join(format!("{title}.{SECTION}"));
    let page = Man::new(command.clone())
        .title(title.to_uppercase())
        .section(SECTION)
        // Without a date, the same source makes the same page.
        .date("")
        .source(concat!("tfo ", env!("CARGO_PKG_VERSION")))
        .manual("TCP Fast Open");
    let written = File::create(&path).and_then(|mut file| page.render(&mut file));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    let shown = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
    command.get_subcommands().filter(shown).try_for_each(|command| pages(command, folder))
}
