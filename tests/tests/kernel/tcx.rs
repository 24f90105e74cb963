//! All tests of this tier again, with the program at tcx. Needs root.

use std::{env, process::Command};

use tfo_tests::kernel::AT_TCX;

#[test]
fn everything_at_tcx() {
    let tests = env::current_exe().expect("a test knows its own path");
    // Without this one, and one that is about which frames the kernel takes.
    let skipped = ["--skip", "everything_at_tcx", "--skip", "the_runnable_cases_cover"];
    let output = Command::new(tests).env(AT_TCX, "1").args(skipped).output();
    let output = output.expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", text.lines().rfind(|line| line.starts_with("test result")).expect("a result"));
}
