//! Portable cookies behind a balancer that chooses a host at random for each connection. Needs root, nftables, ethtool and iproute2.

use aya::programs::{SchedClassifier, TcAttachType};
use nix::sys::signal::Signal;
use tfo_common::{class::Class, segment::Family, verdict::Verdict};
use tfo_tests::{
    balancer::{Network, PORT},
    config::Config,
    listener::Listener,
    netns::{Counts, assert_clean, eventually, failure, key, sandbox, status, tfo},
};

/// Configuration of the service.
fn service(portable: bool) -> String {
    format!(
        "[[service]]\nname = \"web\"\nports = [{PORT}, 7414]\nmode = \"accelerate\"\nportable = {portable}\n"
    )
}

/// Number of clients of each family.
const CLIENTS: u16 = 1000;

fn behind_a_balancer_of(hosts: usize) {
    sandbox(|| {
        let network = Network::start(hosts, key(1));
        for family in Family::ALL {
            let served = network.visit(*family, 0..CLIENTS);
            println!("{family}, {hosts} hosts, without tfo: {served} of {CLIENTS} at 0-RTT");
            let expected = u64::from(CLIENTS) / hosts as u64;
            assert!(served.abs_diff(expected) < expected / 3, "{served}, about one in {hosts} by chance");
        }
        let _running: Vec<_> = network
            .hosts
            .iter()
            .map(|host| {
                let config = Config::new(&host.interface(), &service(true));
                let running = host.tfo(&config);
                (config, running)
            })
            .collect();
        for family in Family::ALL {
            let served = network.visit(*family, CLIENTS..2 * CLIENTS);
            println!("{family}, {hosts} hosts, with tfo: {served} of {CLIENTS} at 0-RTT");
            assert!(served >= u64::from(CLIENTS) * 99 / 100, "{family}: {served}");
        }
        let mut exchanged = 0;
        for host in &network.hosts {
            host.run(|| {
                let counts = Counts::of(&host.interface());
                assert!(counts.verdict(Class::CookieCurrent, Verdict::Rewrite) > 0);
                exchanged += counts.field("portable_cookies").as_u64().expect("a number");
            });
        }
        // Each client of both families has been given one. A SYN-ACK may have been sent again.
        let clients = 2 * u64::from(CLIENTS);
        assert!((clients..clients + clients / 20).contains(&exchanged), "{exchanged}");
    });
}

//= RFC 7413 section 6.3.4
//# Servers behind load balancers that accept connection requests to the
//# same server IP address should use the same key such that they generate
//# identical Fast Open cookies for a particular client IP address.
#[test]
fn clients_come_back_to_any_of_two_hosts() {
    behind_a_balancer_of(2);
}

#[test]
fn clients_come_back_to_any_of_five_hosts() {
    behind_a_balancer_of(5);
}

/// Returns the number of programs on packets that leave `interface`.
fn on_egress(interface: &str) -> usize {
    let (_, programs) =
        SchedClassifier::query_tcx(interface, TcAttachType::Egress).expect("a kernel with tcx");
    programs.len()
}

#[test]
fn a_listener_with_keys_of_its_own_stays_served() {
    sandbox(|| {
        let network = Network::start(1, key(1));
        let host = &network.hosts[0];
        let config = Config::new(&host.interface(), &service(true));
        let _running = host.tfo(&config);
        let _own = host.run(|| {
            ["10.9.0.2:7414", "[2001:db8:9:0::2]:7414"].map(|address| {
                tfo_tests::server::Server::echo(
                    Listener::on(address).fast_open(64).own_key(*b"sixteen bytes!!!").backlog(64).listen(),
                )
            })
        });
        for family in Family::ALL {
            assert_eq!(network.visit_host(*family, 0..50, 0, 7414), 50, "{family}");
        }
        host.run(|| assert_eq!(Counts::of("host0").field("portable_cookies"), 0));
    });
}

#[test]
fn portable_cookies_are_switched_on_and_off_by_any_way() {
    sandbox(|| {
        let network = Network::start(1, key(1));
        let host = &network.hosts[0];
        host.run(|| {
            let config = Config::new("host0", &service(false));
            let running = config.run();
            let shown = |portable: bool| {
                let status = status("host0");
                assert_eq!(status["hands_out_portable"], serde_json::json!(portable.then_some(true)));
                let expected: &[&str] = if portable { &["web"] } else { &[] };
                assert_eq!(status["portable"], serde_json::json!(expected));
                assert_eq!(on_egress("host0"), usize::from(portable));
            };
            let reload = |portable: bool| {
                config.write(&service(portable));
                let output = tfo(&["reload"]);
                assert!(output.status.success(), "{:?}", failure(&output));
                shown(portable);
            };
            shown(false);
            for portable in [true, true, false, true] {
                reload(portable);
            }
            // Another controller takes over, with the same and with another configuration.
            running.kill();
            shown(true);
            let running = config.run();
            shown(true);
            running.end(Signal::SIGTERM);
            shown(true);
            config.write(&service(false));
            let running = config.run();
            shown(false);
            reload(true);
            running.end(Signal::SIGTERM);
            assert!(tfo(&["unload", "-i", "host0"]).status.success());
            assert_clean("host0");
            eventually("the link is released", || on_egress("host0") == 0);
        });
    });
}
