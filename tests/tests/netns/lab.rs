//! `tfo lab`, and the commands beside it.

use std::{
    collections::BTreeSet,
    process::{Command, Stdio},
};

use tfo_common::class::Class;
use tfo_tests::netns::{BPFFS, Counts, binary, eventually, sandbox, tfo};
use tfo_userspace::lab::INTERFACE;

#[test]
fn the_lab_sees_every_class_and_agrees_with_the_kernel() {
    sandbox(|| {
        let lab = Command::new(binary())
            .args(["lab", "--for", "4"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Other commands find the lab while it runs.
        eventually("the lab runs", || tfo(&["status"]).status.success());
        eventually("the lab has traffic", || Counts::of(INTERFACE).class(Class::CookieBackup) > 0);
        let text = String::from_utf8(tfo(&["counters"]).stdout).unwrap();
        assert!(text.starts_with("tfo-lab  observe  native  counting since 20"), "{text}");
        assert!(text.contains("cookie_backup"), "{text}");

        let output = lab.wait_with_output().unwrap();
        let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}{log}");
        assert!(said.contains("agrees with the kernel: every class seen"), "{said}");
        // Outcomes are not counted before Linux 5.15.
        let is_expected = |line: &str| line.contains("outcomes of connections are not counted");
        assert!(log.lines().all(is_expected), "{log}");
        let seen: BTreeSet<_> = said.split_whitespace().collect();
        assert!(Class::ALL.iter().all(|class| seen.contains(class.name())), "{said}");
        // Nothing is left in this namespace or in the BPF file system.
        assert_eq!(tfo(&["status"]).status.code(), Some(3));
        assert!(!std::path::Path::new(BPFFS).join("tfo").exists());
    });
}

/// A killed lab leaves pins of namespaces that no longer exist. The next one starts all the same.
#[test]
fn a_killed_lab_is_no_obstacle() {
    sandbox(|| {
        let mut lab = Command::new(binary()).arg("lab").stdout(Stdio::null()).spawn().unwrap();
        eventually("the lab runs", || tfo(&["status"]).status.success());
        lab.kill().unwrap();
        lab.wait().unwrap();
        let next = tfo(&["lab", "--for", "2"]);
        assert!(next.status.success(), "{}", String::from_utf8_lossy(&next.stderr));
    });
}
