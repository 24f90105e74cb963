//! Effects of protections in all outputs: counters, events, metrics and the screen show the same numbers.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{collections::BTreeMap, fs, net::IpAddr, thread, time::Duration};

use serde_json::{Value, json};
use tfo_common::{class::Class, cookie, segment::Family, verdict::Verdict};
use tfo_tests::{
    netns::{Counts, IFACE, Running, eventually, failure, ip, key, server_and_client, set_keys, tfo},
    scrape::Samples,
};
use tfo_userspace::{
    lab::{
        client::Syn,
        net::{Namespace, server, source},
    },
    model::keys::addresses,
};

/// Configuration of three services, each with its port.
const SERVICES: &str = r#"
metrics = "127.0.0.1:9434"

[[service]]
name = "guarded"
ports = [81]
mode = "shield"
fair = { limit = "1/h", burst = 1 }
clamp = { factor = 3 }
shed = { limit = "1/h", burst = 1, drop = true, others = true }

[[service]]
name = "dry"
ports = [82]
mode = "shield"
hide = { dry_run = true }
fair = { limit = "1/h", burst = 1, dry_run = true }
clamp = { factor = 3, dry_run = true }
shed = { limit = "1/h", burst = 1, drop = true, others = true, dry_run = true }

[[service]]
name = "open"
ports = [83]
mode = "shield"
"#;

fn text(args: &[&str]) -> String {
    let output = tfo(args);
    assert!(output.status.success(), "{:?}", failure(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn cookie_of(n: u32, source: IpAddr, server: IpAddr) -> [u8; 8] {
    cookie::make(&key(n), &addresses(source, server).unwrap()).to_le_bytes()
}

/// Sends each service three good cookies, three forged ones and a request, slowly enough for each to be an event.
fn send_all(client: &Namespace) {
    let (source, server) = (source(Family::Ipv4, 1), server(Family::Ipv4).ip());
    let (good, forged) = (cookie_of(1, source, server), cookie_of(9, source, server));
    let mut from = 5000;
    for port in 81..84 {
        let cookies: [&[u8]; 7] = [&good, &good, &good, &forged, &forged, &forged, &[]];
        for cookie in cookies {
            from += 1;
            let syn = Syn::new(from, port, 1).fast_open(cookie).data(b"data");
            client.run(|| syn.send(source, server)).unwrap();
            thread::sleep(Duration::from_millis(4));
        }
    }
    eventually("all are counted", || Counts::of(IFACE).total() == 21);
}

#[test]
fn every_output_shows_what_protections_did() {
    server_and_client(|client| {
        ip("link set lo up");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tfo.toml");
        fs::write(&file, format!("interfaces = [\"{IFACE}\"]\n{SERVICES}")).unwrap();
        let _tfo = Running::spawn(&["--config", file.to_str().unwrap()]);
        eventually("tfo run is up", || tfo(&["status", "-i", IFACE]).status.success());
        set_keys(IFACE, key(1), None);
        eventually("it takes orders", || tfo(&["report", "--html", "-"]).status.success());
        send_all(&client);

        let counts = Counts::of(IFACE);
        let guards = |name: &str| {
            let services = counts.field("services").as_array().unwrap();
            services.iter().find(|service| service["name"] == name).unwrap()["guards"].clone()
        };
        let row =
            |guard: &str, acted: u64, would: u64| json!({"guard": guard, "acted": acted, "would": would});
        // The window of the only good cookie that passes is cut. The other two have been hidden.
        assert_eq!(guards("guarded"), json!([row("fair", 2, 0), row("clamp", 1, 0), row("shed", 2, 0)]));
        let dry = [row("hide", 0, 7), row("fair", 0, 2), row("clamp", 0, 3), row("shed", 0, 2)];
        assert_eq!(guards("dry"), json!(dry));
        assert_eq!((guards("open"), guards("other")), (json!([]), json!([])));
        assert_eq!(counts.verdict(Class::CookieCurrent, Verdict::Hide), 2);
        assert_eq!(counts.verdict(Class::CookieCurrent, Verdict::Pass), 7);
        assert_eq!(counts.verdict(Class::CookieUnknown, Verdict::Drop), 2);
        assert_eq!(counts.verdict(Class::CookieUnknown, Verdict::Pass), 7);
        assert_eq!(counts.verdict(Class::CookieRequest, Verdict::Pass), 3);
        // The kernel sees no cookie in SYNs that were hidden or dropped.
        let kernel = counts.as_kernel();
        assert_eq!((kernel.cookie_reqd, kernel.passive, kernel.passive_fail), (3, 7, 7));
        for args in [["counters", "-i", IFACE], ["top", "-i", IFACE]] {
            let shown = text(&args);
            let mut words = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            assert!(words.any(|words| words == ["shed", "guarded", "2", "0"]), "{shown}");
            assert!(words.any(|words| words == ["hide", "dry", "0", "7"]), "{shown}");
        }

        assert_events();

        let samples = Samples::now();
        let metric = |service: &str, guard: &str, effect: &str| {
            format!(
                "tfo_guard_total{{interface=\"{IFACE}\",service=\"{service}\",guard=\"{guard}\",effect=\"{effect}\"}}"
            )
        };
        for (service, guard, effect, packets) in [
            ("guarded", "fair", "acted", 2),
            ("guarded", "clamp", "acted", 1),
            ("guarded", "shed", "acted", 2),
            ("dry", "hide", "would", 7),
            ("dry", "fair", "would", 2),
            ("dry", "clamp", "would", 3),
            ("dry", "shed", "would", 2),
        ] {
            assert_eq!(samples.number(&metric(service, guard, effect)), packets, "{service} {guard}");
        }
        assert_eq!(samples.rows_of("tfo_guard_total").count(), 7, "no row is zero");
        let dropped = format!(
            "tfo_syn_total{{interface=\"{IFACE}\",service=\"guarded\",family=\"ipv4\",class=\"cookie_unknown\",\
             verdict=\"drop\"}}"
        );
        assert_eq!(samples.number(&dropped), 2);
        assert_eq!(samples.number(&format!("tfo_sources_forgotten_total{{interface=\"{IFACE}\"}}")), 0);

        let page = text(&["report", "--html", "-"]);
        assert!(page.contains("Protections acted on 5 SYNs."), "{page}");
    });
}

/// Panics unless exactly the SYNs with an effect of a guard, and forged ones, are events, with the guard's name.
fn assert_events() {
    let mut reported = BTreeMap::<EventLabels, u32>::new();
    for line in text(&["events", "--json"]).lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
        let is_dry = event["dry_run"].as_bool().unwrap();
        let key = (field("service"), field("guard"), is_dry, field("verdict"), field("why"));
        *reported.entry(key).or_default() += 1;
    }
    let expected = [
        ("guarded", "clamp", false, "pass", "good_cookie", 1),
        ("guarded", "fair", false, "hide", "good_cookie", 2),
        ("guarded", "-", false, "pass", "forged", 1),
        ("guarded", "shed", false, "drop", "forged", 2),
        // If several guards would have acted, the event names the first.
        ("dry", "hide", true, "pass", "good_cookie", 3),
        ("dry", "hide", true, "pass", "forged", 3),
        ("dry", "hide", true, "pass", "request", 1),
        ("open", "-", false, "pass", "forged", 3),
    ];
    let expected = expected.map(|(service, guard, is_dry, verdict, why, count)| {
        let [service, guard, verdict, why] = [service, guard, verdict, why].map(str::to_owned);
        ((service, guard, is_dry, verdict, why), count)
    });
    assert_eq!(reported, BTreeMap::from(expected));

    let text = text(&["events"]);
    for said in [
        ": hidden by fair: a good cookie\n",
        ": its window cut by clamp: a good cookie\n",
        ": dropped by shed: no key here makes this cookie: forged, or made elsewhere\n",
        ": would be hidden by hide: a request for a cookie\n",
    ] {
        assert!(text.contains(said), "{said:?}: {text}");
    }
}

/// Service, guard, whether it is a dry run, verdict and reason of an event.
type EventLabels = (String, String, bool, String, String);
