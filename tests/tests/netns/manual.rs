//! Manual pages and completions, which `tfo generate` makes for packages.

use std::{fs, process::Command};

use tempfile::TempDir;
use tfo_tests::netns::{failure, tfo};

/// Returns a folder with the files that `tfo generate WHAT` makes.
fn generated(what: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let output = tfo(&["generate", what, folder.path().to_str().expect("a path that is text")]);
    assert!(output.status.success(), "{:?}", failure(&output));
    folder
}

#[test]
fn every_command_has_a_page() {
    let pages = generated("man");
    let manual = tempfile::tempdir().expect("a folder");
    let section = manual.path().join("man8");
    fs::create_dir(&section).expect("a folder of ours");
    for page in fs::read_dir(pages.path()).expect("a folder").flatten() {
        fs::copy(page.path(), section.join(page.file_name())).expect("a page");
    }
    let man = |page: &str| {
        let output = Command::new("man")
            .args(["--warnings", page])
            .env("MANPATH", manual.path())
            .env("MANWIDTH", "80")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect("man is installed");
        assert!(output.status.success(), "man {page}: {:?}", failure(&output));
        assert_eq!(failure(&output).1, "", "man {page}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let first = man("tfo");
    assert!(first.contains("tfo - Observes and protects TCP Fast Open"), "{first}");
    let run = man("tfo-run");
    assert!(run.contains("TFO-RUN(8)") && run.contains("--interface"), "{run}");
    // Each command that `tfo --help` lists, and no others.
    let help = tfo(&["--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| !line.is_empty());
    let names: Vec<_> = commands
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(names.len() > 12, "{help}");
    for name in names {
        assert!(man(&format!("tfo-{name}")).contains("SYNOPSIS"), "{name}");
        assert!(first.contains(&format!("tfo-{name}(8)")), "{name}: {first}");
    }
    assert!(!first.contains("help(8)") && !first.contains("guard"), "{first}");
    // man puts more blanks between words, to fill a line.
    let words = man("tfo-keys-rotate").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("tfo keys rotate"), "{words}");
}

#[test]
fn shells_complete_commands() {
    let folder = generated("completions");
    // What bash does at `tfo ru<TAB>`.
    let script =
        "source \"$1\"; COMP_WORDS=(tfo ru); COMP_CWORD=1; _tfo tfo ru tfo; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(folder.path().join("tfo.bash"))
        .output()
        .expect("bash is installed");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "run\n", "{:?}", failure(&output));
    for (file, text) in [("_tfo", "#compdef tfo"), ("tfo.fish", "complete -c tfo")] {
        let content = fs::read_to_string(folder.path().join(file)).expect("a file for this shell");
        assert!(content.contains(text), "{file}");
    }
}

#[test]
fn a_missing_folder_is_named() {
    for what in ["man", "completions"] {
        let (status, error) = failure(&tfo(&["generate", what, "/nonexistent"]));
        assert_eq!(status, Some(1));
        assert!(error.contains("/nonexistent"), "{error}");
    }
}
