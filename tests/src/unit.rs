//! Unit of systemd, `dist/systemd/tfo.service`, as far as a test can put it in force without systemd.

use std::{collections::BTreeSet, fs, path::Path, process::Command, str::FromStr as _, thread};

use nix::mount::{MsFlags, mount};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use syscalls::Sysno;

/// The unit.
#[derive(Clone, Debug)]
pub struct Unit(String);

impl Unit {
    /// Reads it.
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist/systemd/tfo.service");
        Self(fs::read_to_string(path).expect("the unit"))
    }

    /// Returns the unit with the drop-in `dist/systemd/NAME` for it, whose settings come behind the unit's own.
    pub fn with(&self, name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist/systemd").join(name);
        Self(format!("{}\n{}", self.0, fs::read_to_string(path).expect("the drop-in")))
    }

    /// Returns its text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Returns the values of a setting, in their order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.0.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
    }

    /// Returns the value of a setting that it has once.
    pub fn value(&self, name: &str) -> &str {
        match self.values(name)[..] {
            [value] => value,
            ref values => panic!("{name}= stands {} times in the unit", values.len()),
        }
    }

    /// Returns the capabilities that it leaves.
    pub fn capabilities(&self) -> Vec<&str> {
        self.values("CapabilityBoundingSet").into_iter().flat_map(str::split_whitespace).collect()
    }

    /// Returns the command that runs another one with `capabilities` only, and without new privileges.
    pub fn prefix(capabilities: &[&str]) -> Vec<String> {
        let names = capabilities.iter().map(|name| name.to_lowercase().replace("cap_", "+"));
        let set = ["-all".to_owned()].into_iter().chain(names).collect::<Vec<_>>().join(",");
        let words = ["setpriv", "--no-new-privs", "--bounding-set", &set, "--inh-caps", "-all"];
        words.map(str::to_owned).into()
    }

    /// Returns the system calls that it allows, by systemd's own lists.
    pub fn system_calls(&self) -> BTreeSet<String> {
        let mut allowed = BTreeSet::new();
        for value in self.values("SystemCallFilter") {
            let (is_denied, names) = match value.strip_prefix('~') {
                Some(names) => (true, names),
                None => (false, value),
            };
            for name in names.split_whitespace() {
                let calls = group(name);
                if is_denied {
                    allowed.retain(|call| !calls.contains(call));
                } else {
                    allowed.extend(calls);
                }
            }
        }
        allowed
    }

    /// Runs `work` on a new thread, which may only call what the unit allows, and so may all that it starts.
    pub fn filtered<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let filter = filter(&self.system_calls());
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                seccompiler::apply_filter(&filter).expect("a thread may limit itself");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes the files read-only that the unit makes so, in this mount namespace: `ProtectControlGroups`, `ProtectSystem` and
    /// `ReadOnlyPaths`, but for `ReadWritePaths` and the folders that it makes.
    pub fn protect_files(&self) {
        assert_eq!(self.value("ProtectControlGroups"), "yes");
        assert_eq!(self.value("ProtectSystem"), "strict");
        let paths = |setting| self.value(setting).split_whitespace().collect::<Vec<_>>();
        let (writable, closed) = (paths("ReadWritePaths"), paths("ReadOnlyPaths"));
        // A mount of its own keeps what it is when the one above becomes read-only.
        writable.iter().chain(&["/run", "/var/lib"]).for_each(|path| bind(path));
        let mut closed = [vec!["/"], closed].concat();
        let groups = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        closed.extend(
            groups
                .lines()
                .filter(|line| line.contains(" - cgroup"))
                .filter_map(|line| line.split(' ').nth(4)),
        );
        for path in closed {
            if path == "/proc/sys" {
                bind(path);
                // The mount over it hides the one below.
                bind_below(path, &writable);
            }
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
                .unwrap_or_else(|error| panic!("{path} cannot be made read-only: {error}"));
        }
    }
}

fn bind(path: &str) {
    mount(Some(path), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .unwrap_or_else(|error| panic!("cannot mount {path} on itself: {error}"));
}

fn bind_below(above: &str, paths: &[&str]) {
    paths.iter().filter(|path| path.starts_with(above)).for_each(|path| bind(path));
}

/// Returns the system calls of a group such as `@process`, with the groups in it, or the one call.
fn group(name: &str) -> BTreeSet<String> {
    if !name.starts_with('@') {
        return [name.to_owned()].into();
    }
    let output = Command::new("systemd-analyze").args(["syscall-filter", name]).output();
    let output = output.expect("systemd-analyze is installed");
    assert!(output.status.success(), "systemd knows no {name}");
    let text = String::from_utf8_lossy(&output.stdout);
    let names = text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    names.flat_map(group).collect()
}

/// Returns the filter that allows only these calls. Calls that this processor does not have are left out.
fn filter(allowed: &BTreeSet<String>) -> BpfProgram {
    let numbers = allowed.iter().filter_map(|name| Sysno::from_str(name).ok());
    let rules = numbers.map(|number| (i64::from(number.id()), Vec::new())).collect();
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().expect("a known processor");
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch).expect("a filter");
    filter.try_into().expect("it is short enough")
}
