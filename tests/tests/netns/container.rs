//! The image of `cargo xtask image`, run by crun with exactly the capabilities and mounts of `dist/kubernetes`.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::LazyLock};

use serde_json::Value;
use tempfile::TempDir;
use tfo_common::{class::Class, segment::Family};
use tfo_tests::{
    kubernetes::{Image, Manifests, Node, Running, volume},
    netns::{
        Counts, IFACE, assert_clean, eventually, failure, ip, key, linked, mount_on, server_and_client,
        set_keys, status, tfo,
    },
    scrape::get,
};
use tfo_userspace::lab::{
    client::Syn,
    net::{Namespace, server, source},
};

/// Image of the `tfo` under test. All tests share it.
static IMAGE: LazyLock<Image> = LazyLock::new(Image::make);

/// Runs `test` on a node: namespaces with the loopback up and a cgroup2, as systemd makes it.
fn node(test: impl FnOnce(Namespace) + Send) {
    // It is made outside of any namespace.
    LazyLock::force(&IMAGE);
    server_and_client(|client| {
        ip("link set lo up");
        mount_on("cgroup2", "/sys/fs/cgroup");
        test(client);
    });
}

/// Volumes of the manifests, for this node.
struct Volumes {
    folder: TempDir,
}

impl Volumes {
    /// Makes the folders of the ConfigMap, with [`IFACE`] for the interface, and of the Secret.
    fn make(manifests: &Manifests) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = manifests.config.as_ref().and_then(|config| config.data.clone()).expect("a configuration");
        let config = data["tfo.toml"].replace("eth0", IFACE);
        volume(&folder.path().join("config"), 0o644, &[("tfo.toml", config.as_bytes())]);
        volume(&folder.path().join("secret"), 0o400, &[("secret", &SECRET)]);
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the node on which a container `without` a capability, and with `more` arguments, is to run.
    fn node<'a>(&self, without: Option<&'a str>, more: &'a [&'a str]) -> Node<'a> {
        let volumes = ["config", "secret"].map(|name| (name, self.path(name)));
        Node { volumes: BTreeMap::from(volumes), without, more }
    }
}

/// Secret of the fleet.
const SECRET: [u8; 32] = *b"a secret for tests, of 32 bytes.";

/// Starts `tfo` as `manifests` say, and waits until it is healthy.
fn start(manifests: &Manifests, volumes: &Volumes) -> Running {
    let mut running = Running::start(&IMAGE, manifests, "tfo", &volumes.node(None, &[]));
    eventually("it is attached", || {
        if !running.is_running() {
            return true;
        }
        tfo(&["status", "-i", IFACE]).status.success()
    });
    if !running.is_running() {
        panic!("{:?}", running.wait());
    }
    eventually("it is healthy", || get("/healthz").status == 200);
    running
}

/// Sends a SYN to [`IFACE`].
fn send(client: &Namespace) {
    let (from, to) = (source(Family::Ipv4, 1), server(Family::Ipv4));
    client.run(|| Syn::new(5000, to.port(), 1).send(from, to.ip())).expect("a raw socket sends");
}

/// Returns the number of ordinary SYNs.
fn syns() -> u64 {
    Counts::of(IFACE).class(Class::PlainSyn)
}

/// The pod attaches, counts, follows keys and is healthy. An update keeps the program attached. Removal leaves nothing.
#[test]
fn a_node_from_installation_to_removal() {
    node(|client| {
        let manifests = Manifests::render("base");
        let volumes = Volumes::make(&manifests);
        let first = start(&manifests, &volumes);
        assert_eq!(Counts::of(IFACE).field("outcomes"), true, "it sees the root of the cgroups");
        assert_eq!(status(IFACE)["attach"], "native");
        send(&client);
        eventually("the SYN is counted", || syns() == 1);
        set_keys(IFACE, key(1), None);
        assert_eq!(status(IFACE)["keys"]["in_step"], true);
        eventually("it is healthy", || get("/healthz").status == 200);
        // Requests reach it from the node and from the container.
        assert!(tfo(&["events"]).status.success());
        let inside = first.exec(&["hide", "--list"]);
        assert!(inside.status.success(), "{:?}", failure(&inside));

        // The update: the old pod ends, the program counts, and the new pod takes it over.
        let attached = linked(IFACE);
        let log = first.terminate();
        assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
        assert!(!log.contains("\"ERROR\"") && !log.contains("\"WARN\""), "{log}");
        send(&client);
        assert_eq!(linked(IFACE), attached);
        let second = start(&manifests, &volumes);
        assert_eq!(linked(IFACE).link, attached.link, "never detached");
        send(&client);
        eventually("no SYN is lost", || syns() == 3);
        second.terminate();

        let removal = Manifests::render("remove");
        for expected in [format!("{IFACE}: unloaded\n"), "tfo is attached to no interface\n".to_owned()] {
            let unload = Running::start(&IMAGE, &removal, "unload", &Node::default());
            assert_eq!(unload.wait(), (Some(0), expected));
        }
        assert_clean(IFACE);
        let left = fs::read_dir("/run/tfo").expect("the folder of the node stays").count();
        assert_eq!(left, 0);
    });
}

/// With the secret of a fleet, it writes the kernel's keys through the mount of the node's sysctls.
#[test]
fn keys_of_a_secret_are_written() {
    node(|_| {
        let manifests = Manifests::render("secret");
        let volumes = Volumes::make(&manifests);
        let running = start(&manifests, &volumes);
        let file = volumes.path("secret/secret");
        let derived = tfo(&["keys", "derive", file.to_str().expect("UTF-8"), "--json"]);
        let derived: Value = serde_json::from_slice(&derived.stdout).expect("JSON");
        let keys = &status(IFACE)["keys"];
        assert_eq!((&keys["current"], &keys["in_step"]), (&derived["current"], &Value::Bool(true)));
        running.terminate();
    });
}

/// Without the mount of the sysctls, the kernel's key can't be written. The log says so, and what to do.
#[test]
fn a_secret_without_the_sysctls() {
    node(|_| {
        let mut manifests = Manifests::render("secret");
        let pod =
            manifests.daemon_set.spec.as_mut().and_then(|set| set.template.spec.as_mut()).expect("pods");
        let mounts = pod.containers[0].volume_mounts.as_mut().expect("mounts");
        let before = mounts.len();
        mounts.retain(|mount| mount.name != "sysctls");
        assert_eq!(mounts.len(), before - 1);
        let volumes = Volumes::make(&manifests);
        let running = Running::start(&IMAGE, &manifests, "tfo", &volumes.node(None, &[]));
        eventually("it is attached", || tfo(&["status", "-i", IFACE]).status.success());
        eventually("it is not well", || get("/healthz").status == 503);
        let log = running.terminate();
        assert!(log.contains("in a container, mount the node's /proc/sys/net/ipv4"), "{log}");
    });
}

/// Each capability is needed: without it, tfo fails and says why, or does without something and says so.
#[test]
fn each_capability_is_needed() {
    node(|_| {
        let manifests = Manifests::render("base");
        let volumes = Volumes::make(&manifests);
        let security = manifests.container("tfo").security_context.clone().expect("a security context");
        let mut added = security.capabilities.and_then(|all| all.add).expect("capabilities");
        for capability in ["BPF", "NET_ADMIN", "PERFMON"] {
            added.retain(|name| name != capability);
            let failed = Running::start(&IMAGE, &manifests, "tfo", &volumes.node(Some(capability), &[]));
            let (code, log) = failed.wait();
            assert_eq!(code, Some(1), "without {capability}: {log}");
            assert!(log.contains(&format!("lacks CAP_{capability} (")), "without {capability}: {log}");
            assert_clean(IFACE);
        }
        added.retain(|name| name != "IPC_LOCK");
        assert!(added.is_empty(), "these are not tested: {added:?}");
        let running = Running::start(&IMAGE, &manifests, "tfo", &volumes.node(Some("IPC_LOCK"), &["-v"]));
        eventually("it is attached", || tfo(&["status", "-i", IFACE]).status.success());
        let log = running.terminate();
        assert!(log.contains("keys may be swapped out, memory cannot be locked"), "{log}");
    });
}

/// The image has nothing but `tfo`, its libraries, licences, and folders for mounts.
#[test]
fn the_image_has_nothing_else() {
    let mut files = Vec::new();
    let mut folders = vec![IMAGE.files()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => files.push(entry.file_name().to_string_lossy().into_owned()),
            }
        }
    }
    let libraries = ["ld-linux", "libc.so", "libgcc_s.so", "libm.so"];
    let is_known = |file: &str| {
        let is_library = libraries.iter().any(|library| file.starts_with(library));
        is_library || file == "tfo" || file.starts_with("LICENSE-") || file.ends_with(".copyright")
    };
    assert!(files.iter().all(|file| is_known(file)), "{files:?}");
    assert!(files.contains(&"tfo".to_owned()));
}
