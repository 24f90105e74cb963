//! Refused commands: one clear line, exit status 1 or 3, and no traces.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
    process::Command,
};

use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};
use serde_json::Value;
use tfo_common::names;
use tfo_tests::netns::{
    BPFFS, Running, assert_clean, binary, failure, ip, key, mount_on, sandbox, set_keys, tfo, tfo_as_nobody,
};
use tfo_userspace::dataplane::pins::Bpffs;

/// Runs `tfo ARGS`. Panics unless it fails with one line that contains `expected`.
fn refused(args: &[&str], code: i32, expected: &str) {
    let output = tfo(args);
    let (got, error) = failure(&output);
    assert_eq!(got, Some(code), "tfo {args:?}: {error}");
    assert!(error.starts_with("error: ") && error.contains(expected), "tfo {args:?}: {error}");
    assert_eq!(error.lines().count(), 1, "tfo {args:?}: {error}");
    assert!(output.stdout.is_empty());
}

#[test]
fn an_interface_that_is_not_there() {
    sandbox(|| {
        refused(&["run", "-i", "NOPE"], 1, "there is no interface NOPE");
        refused(&["run", "-i", "fifteen-letters"], 1, "there is no interface fifteen-letters");
        assert!(!Path::new(BPFFS).join("tfo").exists());
    });
}

#[test]
fn a_pin_folder_that_cannot_be_used() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        refused(&["run", "-i", "v0", "--bpffs", "/nonexistent"], 1, "/nonexistent");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        refused(&["run", "-i", "v0", "--bpffs", path], 1, "is not a BPF file system");
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);

        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, BPFFS, None::<&str>, read_only, None::<&str>).unwrap();
        refused(
            &["run", "-i", "v0"],
            1,
            "cannot make the pin folder /sys/fs/bpf/tfo/v0: Read-only file system",
        );
        assert_clean("v0");
    });
}

/// Pins in a folder of another user are not taken for tfo's, and stay as they are.
#[test]
fn a_pin_folder_of_somebody_else() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let (ours, of_v0) = (Path::new(BPFFS).join("tfo"), Path::new(BPFFS).join("tfo/v0"));
        for dir in [&ours, &of_v0] {
            fs::create_dir_all(&of_v0).unwrap();
            for path in [&ours, &of_v0] {
                fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
            }
            let wrong = |what: &str| {
                refused(&["run", "-i", "v0"], 1, &format!("{} {what}", dir.display()));
                assert_eq!(fs::read_dir(&of_v0).unwrap().count(), 0);
            };
            chown(dir, Some(1234), None).unwrap();
            wrong("belongs to user 1234");
            chown(dir, Some(0), None).unwrap();
            fs::set_permissions(dir, Permissions::from_mode(0o720)).unwrap();
            wrong("can be written by others (mode 0720)");
            fs::set_permissions(dir, Permissions::from_mode(0o700)).unwrap();
            let elsewhere = Path::new(BPFFS).join("elsewhere");
            fs::rename(dir, &elsewhere).unwrap();
            symlink(&elsewhere, dir).unwrap();
            wrong("is no folder");
            fs::remove_file(dir).unwrap();
            fs::rename(elsewhere, dir).unwrap();
        }
        Running::start(&["-i", "v0"]).end(Signal::SIGINT);
    });
}

#[test]
fn without_root() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        for args in [&["run", "-i", "v0"] as &[&str], &["lab", "--for", "5"]] {
            let (code, error) = failure(&tfo_as_nobody(args));
            assert_eq!(
                (code, error.as_str()),
                (Some(1), "error: loading an XDP program needs root: run it with sudo\n")
            );
        }
        assert_clean("v0");
    });
}

#[test]
fn a_kernel_without_btf() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        mount_on("tmpfs", "/sys/kernel/btf");
        refused(&["run", "-i", "v0"], 1, "this kernel has no BTF");
        assert_clean("v0");
    });
}

#[test]
fn nothing_runs() {
    sandbox(|| {
        refused(&["status"], 3, "tfo is attached to no interface");
        refused(&["counters"], 3, "tfo is attached to no interface");
        refused(&["counters", "--json", "-i", "v0"], 3, "tfo is not attached to v0");
        refused(&["unload"], 3, "tfo is attached to no interface");
        refused(&["status", "--bpffs", "/etc"], 1, "/etc is not a BPF file system");
        refused(&["status", "--bpffs", "/nonexistent"], 1, "cannot use /nonexistent");
    });
}

/// A limit on open files that is too low is an error. tfo must not run with keys that it can't follow.
#[test]
fn a_limit_on_open_files() {
    sandbox(|| {
        ip("link set lo up");
        ip("link add v0 type veth peer name v1");
        ip("link add w0 type veth peer name w1");
        let metrics = "127.0.0.1:9434";
        for (args, needed, what) in [
            (&["-i", "v0"] as &[&str], 130, "1 interface"),
            (&["-i", "v0", "-i", "w0", "-i", "v0"], 220, "2 interfaces"),
            (&["-i", "v0", "--metrics", metrics], 600, "1 interface with metrics"),
        ] {
            let limit = format!("--nofile=40:{}", needed - 1);
            let output =
                Command::new("prlimit").arg(limit).arg(binary()).arg("run").args(args).output().unwrap();
            let expected = format!(
                "error: tfo may have to open {needed} files at once for {what}, and its limit is {}: raise that, by \
                 LimitNOFILE={needed} in a systemd unit or `ulimit -n {needed}` in root's shell\n",
                needed - 1
            );
            assert_eq!(failure(&output), (Some(1), expected));
            assert_clean("v0");
            // This hard limit is enough. tfo exceeds the soft limit, which does not count.
            let running = Running::start_under(&["prlimit", &format!("--nofile=40:{needed}")], args);
            set_keys("v0", key(1), None);
            let open = fs::read_dir(format!("/proc/{}/fd", running.id())).unwrap().count();
            assert!(open > 40 && open <= needed, "{open}");
            running.end(Signal::SIGINT);
        }
    });
}

/// The status of the other interface is shown, and the exit status is that of a failure.
#[test]
fn status_of_an_interface_whose_pins_cannot_be_read() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        ip("link add w0 type veth peer name w1");
        let running = Running::start(&["-i", "v0", "-i", "w0"]);
        let generation = Bpffs::new(Path::new(BPFFS)).pins("v0").current().unwrap();
        fs::remove_file(generation.map(names::KEYS)).unwrap();
        let output = tfo(&["status"]);
        let (code, error) = failure(&output);
        assert!(
            code == Some(1) && error.starts_with("error: v0: cannot open /sys/fs/bpf/tfo/v0/"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("w0: attached"), "{output:?}");

        let output = tfo(&["status", "--json"]);
        assert_eq!(output.status.code(), Some(1));
        let lines: Vec<_> =
            output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        let [v0, w0] = lines[..] else { panic!("{output:?}") };
        let [v0, w0]: [Value; 2] = [v0, w0].map(|line| serde_json::from_slice(line).unwrap());
        assert_eq!((&v0["interface"], &w0["interface"]), (&"v0".into(), &"w0".into()));
        assert!(v0["error"].as_str().unwrap().starts_with("cannot open ") && v0["attached"] == Value::Null);
        assert!(w0["error"] == Value::Null && w0["attached"] == true);
        running.end(Signal::SIGINT);
    });
}

#[test]
fn a_full_disk_is_an_error() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let arguments = ["keys", "cookie", "1-2-3-4", "::1", "::2"];
    let output = Command::new(binary()).args(arguments).stdout(full).output().unwrap();
    let (code, error) = failure(&output);
    assert_eq!(code, Some(1));
    assert!(error.starts_with("error: cannot write to standard output: No space left"), "{error}");
}

#[test]
fn invalid_keys_are_refused() {
    let cookie = |key| tfo(&["keys", "cookie", key, "::1", "::2"]);
    for (key, expected) in [
        ("1-2-3", "this is no key"),
        ("1-2-3-4,1-2-3-4,1-2-3-4", "these are 3 keys"),
        ("@/nonexistent", "cannot read the key file \"/nonexistent\""),
        ("@/dev/zero", "/dev/zero is a device"),
    ] {
        let (code, error) = failure(&cookie(key));
        assert_eq!(code, Some(1));
        assert!(error.contains(expected), "{key}: {error}");
    }
    let output = cookie("a0bf63f7-ed803d81-cd641d30-cebc4a90,1-2-3-4");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
}

#[test]
fn usage_is_status_2() {
    for args in [
        &["run"] as &[&str],
        &["nope"],
        &["lab", "--for", "0"],
        &["run", "-i", "v0", "--attach", "x"],
        &["run", "-i", "v0", "--metrics", "127.0.0.1:0"],
    ] {
        assert_eq!(tfo(args).status.code(), Some(2), "tfo {args:?}");
    }
}

/// Names that no interface has are refused on every command line.
#[test]
fn names_that_no_interface_has() {
    for name in ["", ".", "..", "a/b", "../../../etc", "a b", "a\nb", "a:b", "a-name-too-long-"] {
        for command in [
            &["run"] as &[&str],
            &["status"],
            &["check"],
            &["unload"],
            &["reload"],
            &["hide", "--all"],
            &["keys", "rotate"],
            &["report", "--html", "-"],
        ] {
            let (code, error) = failure(&tfo(&[command, &["-i", name]].concat()));
            assert_eq!(code, Some(2), "{command:?} {name:?}: {error}");
            let expected = format!("{name:?} cannot be the name of an interface: it ");
            assert!(error.contains(&expected), "{command:?} {name:?}: {error}");
        }
    }
}
