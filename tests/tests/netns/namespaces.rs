//! `--netns`: containers, observed and protected from the host.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{fs::File, net::SocketAddr, path::Path, thread};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::Signal,
};
use serde_json::Value;
use tfo_tests::{
    netns::{BPFFS, Running, eventually, failure, ip, sandbox, tfo},
    scrape::{METRICS, Samples},
};
use tfo_userspace::{
    kernel::{
        sysctl::{KernelKeys, write_mode},
        tcp_ext::TcpExt,
    },
    lab::{client::fast_open, server::Listeners},
    model::keys::fingerprint,
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// Container: a network namespace with a name, whose `eth0` leads to the host.
#[derive(Clone, Copy)]
struct Container {
    name: &'static str,
    net: u8,
}

const WEB: Container = Container { name: "web", net: 1 };
const API: Container = Container { name: "api", net: 2 };

impl Container {
    fn start(self) -> Listeners {
        let Self { name, net } = self;
        ip(&format!("netns add {name}"));
        ip(&format!("link add to-{name} type veth peer name eth0 netns {name}"));
        ip(&format!("address add 10.9.{net}.1/24 dev to-{name}"));
        ip(&format!("link set to-{name} up"));
        for command in
            [&format!("address add 10.9.{net}.2/24 dev eth0"), "link set eth0 up", "link set lo up"]
        {
            ip(&format!("-n {name} {command}"));
        }
        self.inside(|| {
            // What a new namespace has is a random key, and Fast Open for clients only.
            write_mode(3).unwrap();
            Listeners::start(&[self.server()]).unwrap()
        })
    }

    fn server(self) -> SocketAddr {
        SocketAddr::from(([10, 9, self.net, 2], 7413))
    }

    /// Connects from the host; only the first connection asks for a cookie.
    fn connect(self, times: usize) {
        let from = [10, 9, self.net, 1].into();
        (0..times).for_each(|_| fast_open(from, self.server(), DATA).unwrap());
    }

    fn inside<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(File::open(format!("/run/netns/{}", self.name)).unwrap(), CloneFlags::CLONE_NEWNET)
                    .unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// Connections that its kernel accepted with Fast Open.
    fn passive(self) -> u64 {
        self.inside(|| TcpExt::read().unwrap().passive)
    }

    /// Starts `tfo run --netns NAME -i eth0 MORE`.
    fn run(self, more: &[&str]) -> Running {
        let running = Running::spawn(&[&["--netns", self.name, "-i", "eth0"], more].concat());
        eventually("it is up", || self.tfo(&["status"]).status.success());
        running
    }

    fn tfo(self, args: &[&str]) -> std::process::Output {
        tfo(&[&["--netns", self.name], args].concat())
    }

    /// Counters by `tfo counters --netns NETNS`.
    fn counted(self) -> Value {
        let output = self.tfo(&["counters", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{:?}", failure(&output)))
    }

    fn good_cookies(self) -> u64 {
        good_cookies(&self.counted())
    }
}

fn good_cookies(counters: &Value) -> u64 {
    let rows = counters["syn"].as_array().unwrap().iter();
    rows.filter(|row| row["class"] == "cookie_current").map(|row| row["packets"].as_u64().unwrap()).sum()
}

fn objects(args: &[&str]) -> Vec<Value> {
    let output = tfo(args);
    assert!(output.status.success(), "{args:?}: {:?}", failure(&output));
    let lines = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    lines.collect::<Result<_, _>>().unwrap()
}

/// Runs `test` with both containers, and Fast Open for clients on the host.
fn with_containers(test: impl FnOnce() + Send) {
    sandbox(|| {
        write_mode(1).unwrap();
        ip("link set lo up");
        let _servers = [WEB, API].map(Container::start);
        test();
    });
}

/// Each has an `eth0`, a key of its own, and counters of its own. The host tells them apart.
#[test]
fn containers_are_told_apart() {
    with_containers(|| {
        let web = WEB.run(&METRICS);
        let _api = API.run(&["--mode", "shield"]);
        WEB.connect(4);
        API.connect(3);
        assert_eq!((WEB.passive(), API.passive()), (3, 2), "the kernel of each");
        assert_eq!((WEB.good_cookies(), API.good_cookies()), (3, 2));

        let all = objects(&["--netns", "all", "counters", "--json"]);
        let told: Vec<_> = all
            .iter()
            .map(|one| {
                (one["netns"].as_str().unwrap(), one["interface"].as_str().unwrap(), good_cookies(one))
            })
            .collect();
        assert_eq!(told, [("api", "eth0", 2), ("web", "eth0", 3)]);
        for status in objects(&["--netns", "all", "status", "--json"]) {
            let container = if status["netns"] == "web" { WEB } else { API };
            let key = container.inside(|| KernelKeys::read().unwrap().current.map(fingerprint));
            assert_eq!(status["keys"]["current"].as_str(), key.as_deref());
            assert_eq!(status["controller"], true);
        }
        let top = String::from_utf8(tfo(&["--netns", "all", "top", "--once"]).stdout).unwrap();
        assert!(top.contains("web/eth0  observe") && top.contains("api/eth0  shield"), "{top}");
        // Whoever scrapes is on the host.
        let good = "tfo_syn_total{netns=\"web\",interface=\"eth0\",service=\"other\",family=\"ipv4\",\
                    class=\"cookie_current\",verdict=\"pass\"}";
        assert_eq!(Samples::now().number(good), 3);

        // The host has no tfo of its own, and orders for one container are not for the other.
        assert_eq!(tfo(&["counters"]).status.code(), Some(3));
        assert!(API.tfo(&["hide", "--all"]).status.success());
        WEB.connect(1);
        API.connect(1);
        assert_eq!((WEB.passive(), API.passive()), (4, 2));

        // A name, a path, and a process inside mean the same.
        let inside = format!("/run/netns/{}", WEB.name);
        assert_eq!(good_cookies(&objects(&["--netns", &inside, "counters", "--json"])[0]), 4);
        drop(web);
    });
}

/// A start, a crash, a restart and a removal in a namespace are as they are anywhere.
#[test]
fn a_restart_takes_over_what_is_in_the_namespace() {
    with_containers(|| {
        let web = WEB.run(&["--mode", "shield"]);
        WEB.connect(3);
        assert!(WEB.tfo(&["hide", "--source", "192.0.2.0/24"]).status.success());
        web.kill();
        WEB.connect(1);
        let web = WEB.run(&["--mode", "shield"]);
        assert_eq!((WEB.good_cookies(), WEB.passive()), (3, 3));
        let hidden = |status: &Value| status["hidden"].to_string();
        assert!(hidden(&objects(&["--netns", "web", "status", "--json"])[0]).contains("192.0.2.0/24"));
        let log = web.end(Signal::SIGTERM);
        assert!(log.contains("took over"), "{log}");
        // The order is kept by the name of the namespace, which outlives it.
        assert!(Path::new("/var/lib/tfo/orders/eth0@web.json").exists());
        WEB.connect(1);
        assert_eq!(WEB.passive(), 4, "the program alone");
        assert!(WEB.tfo(&["unload"]).status.success());
        assert!(!Path::new(BPFFS).join("tfo-netns").exists());
        assert!(!Path::new("/var/lib/tfo/orders/eth0@web.json").exists());
        WEB.run(&[]).end(Signal::SIGINT);
        assert!(!Path::new(BPFFS).join("tfo-netns").exists(), "Ctrl-C leaves nothing, either");
    });
}

/// A container that is gone leaves pins, which can be removed.
#[test]
fn what_a_dead_container_leaves_is_removed() {
    with_containers(|| {
        API.run(&[]).end(Signal::SIGTERM);
        ip("netns delete api");
        eventually("its interface is gone", || !Path::new("/sys/class/net/to-api").exists());
        let (code, error) = failure(&API.tfo(&["counters"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("there is no network namespace \"api\": `ip netns` lists"), "{error}");
        let unload = API.tfo(&["unload"]);
        assert!(unload.status.success(), "{:?}", failure(&unload));
        assert!(!Path::new(BPFFS).join("tfo-netns").exists());
        let (code, error) = failure(&tfo(&["--netns", "all", "hide", "--all"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("name one namespace"), "{error}");
    });
}
