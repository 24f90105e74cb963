//! Metrics in Prometheus and Grafana: promtool on a real scrape, on the alerts and on the dashboard's expressions, and
//! docs/metrics.md.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tfo_common::segment::Family;
use tfo_tests::{
    netns::{IFACE, Running, eventually, ip, server_and_client, tfo},
    packet::{Carry as _, MORE_FRAGMENTS, eth_between, protocol},
    scrape::{self, Samples, get, run},
    wire::Wire,
};
use tfo_userspace::{
    fleet::{document::Document, kept::Kept, seal::SealKey},
    lab::{
        client::fast_open,
        net::{SERVERS, server, source},
        server::Listeners,
    },
};

/// Runs `promtool ARGS` with `input`. Returns whether it succeeded, and its output.
fn promtool(args: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Debian's prometheus is installed, which has promtool");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

/// Returns the path of a file of the workspace.
fn path(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    path.to_str().expect("the workspace lies at a path of text").to_owned()
}

/// Returns the text of a file of the workspace.
fn file(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Returns the metrics that `expressions` use.
fn used(expressions: &str) -> BTreeSet<&str> {
    let words = expressions.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    words.filter(|word| word.starts_with("tfo_")).collect()
}

/// Collects every `expr` in `value`.
fn expressions<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str));
            fields.values().for_each(|value| expressions(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

/// Returns a scrape of a tfo with all metrics.
fn scrape_of_everything() -> String {
    let mut text = String::new();
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (key, config) = (dir.path().join("fleet.key"), dir.path().join("tfo.toml"));
        // The secret of a fleet that was kept, and no etcd.
        fs::write(&key, [7; 32]).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let seal_key = SealKey::read(key.to_str().unwrap()).unwrap();
        let (kept, _) = Kept::open(Path::new("/var/lib/tfo"), &seal_key).unwrap();
        kept.store(&seal_key, &Document::first(1).unwrap(), false).unwrap();
        let service = "name = \"echo\"\nports = [7413]\nmode = \"shield\"\nhide = { dry_run = true }\nanswer = { dry_run = true }";
        let keys = format!(
            "source = \"etcd\"\netcd = {{ endpoints = [\"http://127.0.0.1:1\"], seal_key = {key:?}, name = \"a\" }}"
        );
        let text_of_config = format!(
            "interfaces = [\"{IFACE}\"]\nmetrics = \"{}\"\n[keys]\n{keys}\n[[service]]\n{service}\n",
            scrape::ADDRESS
        );
        fs::write(&config, text_of_config).unwrap();
        let _tfo = Running::spawn(&["--config", config.to_str().unwrap()]);
        eventually("keys are in step", || {
            tfo(&["status", "-i", IFACE]).status.success() && get("/healthz").status == 200
        });
        // The client requests a cookie, and then connects with data in the SYN.
        let connect = || fast_open(source(Family::Ipv4, 1), server(Family::Ipv4), b"some data");
        client.run(|| connect().and_then(|_| connect())).unwrap();
        // A fragment that ends behind the ports.
        let IpAddr::V4(to) = server(Family::Ipv4).ip() else { unreachable!("it is IPv4's") };
        let from_client =
            || eth_between([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]).ipv4([198, 18, 0, 2].into(), to);
        let segment = from_client().syn().ports(1024, 7413).segment();
        let cut = from_client().fragment(MORE_FRAGMENTS).carrying(protocol::TCP, &segment[..8]);
        client.run(|| Ok(Wire::blind("tfo-client"))).unwrap().send(&cut);
        eventually("the connection is counted", || {
            text = get("/metrics").body;
            text.contains("\ntfo_accepted_total{service=\"echo\"} 1\n")
                && text.contains("\ntfo_unfollowed_total{")
                && text.contains("\ntfo_listeners_omitted ")
        });
    });
    text
}

/// promtool finds no fault in the metrics.
#[test]
fn promtool_has_no_complaint_about_metrics() {
    assert_eq!(promtool(&["check", "metrics"], &scrape_of_everything()), (true, String::new()));
}

/// docs/metrics.md lists exactly the metrics of a scrape, with types and labels.
#[test]
fn the_docs_list_exactly_the_metrics_of_a_scrape() {
    let text = scrape_of_everything();
    let samples = Samples::of(&text);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let served: BTreeSet<_> = types
        .map(|(name, kind)| {
            let sample = if kind == "histogram" { format!("{name}_sum") } else { name.to_owned() };
            let row = samples.rows_of(&sample).next().unwrap_or_else(|| panic!("{name} has no row"));
            let labels = row.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
            let labels: Vec<_> =
                labels.split(',').filter_map(|label| Some(label.split_once('=')?.0)).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            (format!("`{name}{labels}`"), kind.to_owned())
        })
        .collect();
    let docs = file("docs/metrics.md");
    let listed = docs.lines().filter(|line| line.starts_with("| `tfo_"));
    let listed: BTreeSet<_> = listed
        .map(|line| {
            let mut cells = line.split('|').skip(1).map(|cell| cell.trim().to_owned());
            (cells.next().unwrap(), cells.next().unwrap())
        })
        .collect();
    assert_eq!(served, listed, "the scrape (left), docs/metrics.md (right)");
}

/// The alerts are valid, fire when they should and only then, and use existing metrics.
#[test]
fn alerts_are_what_they_promise() {
    let (is_fine, said) = promtool(&["check", "rules", &path("dist/prometheus/tfo.rules.yml")], "");
    assert!(is_fine && !said.contains("FAILED"), "{said}");
    let (is_fine, said) = promtool(&["test", "rules", &path("tests/prometheus/tfo.rules.test.yml")], "");
    assert!(is_fine, "{said}");
    assert_served(&used(&file("dist/prometheus/tfo.rules.yml")));
}

/// Expressions of the dashboard are valid, and use existing metrics.
#[test]
fn the_dashboard_shows_what_there_is() {
    let dashboard: Value = serde_json::from_str(&file("dist/grafana/tfo.json")).unwrap();
    let mut all = Vec::new();
    expressions(&dashboard, &mut all);
    let names = used(&all.join("\n")).into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert!(names.len() > 10, "{names:?}");
    assert_served(&names.iter().map(String::as_str).collect());

    // The variables are replaced as Grafana does, and each expression becomes a rule.
    let rules = all.iter().enumerate().map(|(number, expression)| {
        let expression = expression.replace("$__rate_interval", "1m").replace("$__range", "3h");
        serde_json::json!({"record": format!("panel:{number}"), "expr": expression})
    });
    let rules = serde_json::json!({"groups": [{"name": "panels", "rules": rules.collect::<Vec<_>>()}]});
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(rules.to_string().as_bytes()).unwrap();
    let (is_fine, said) = promtool(&["check", "rules", file.path().to_str().unwrap()], "");
    assert!(is_fine && !said.contains("FAILED"), "{said}");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        assert_served(&used(variable["query"]["query"].as_str().unwrap_or_default()));
    }
}

/// Panics unless a scrape has all of `names`.
fn assert_served(names: &BTreeSet<&str>) {
    let text = scrape_of_everything();
    let samples = Samples::of(&text);
    let missing: Vec<_> = names.difference(&samples.names()).copied().collect();
    assert!(missing.is_empty(), "no scrape has {missing:?}");
}

/// Prometheus in the calling thread's namespace, which scrapes the tfo there with our alerts. It is ended when dropped.
struct Prometheus {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [{"job_name": "tfo", "static_configs": [{"targets": [scrape::ADDRESS]}]}],
            "rule_files": [path("dist/prometheus/tfo.rules.yml")],
        });
        // JSON is YAML, too.
        let file = dir.path().join("prometheus.yml");
        fs::write(&file, config.to_string()).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .args(["--web.listen-address=127.0.0.1:9090", "--log.level=error"])
            .stdin(Stdio::null())
            .spawn()
            .expect("Debian's prometheus is installed");
        Self { child, _dir: dir }
    }

    /// Returns the answer of its API to `what`, or null if it does not answer.
    fn ask(what: &str) -> Value {
        let url = format!("http://127.0.0.1:9090/api/v1/{what}");
        let output = Command::new("curl").args(["--silent", "--noproxy", "*", "--globoff", &url]).output();
        serde_json::from_slice(&output.expect("curl is installed").stdout).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().expect("prometheus runs");
        self.child.wait().expect("prometheus ends");
    }
}

/// A real Prometheus accepts the metrics, knows their types, and evaluates the alerts.
#[test]
fn prometheus_takes_the_metrics() {
    server_and_client(|_client| {
        let _tfo = run(IFACE, &[]);
        let _prometheus = Prometheus::start();
        let mut target = Value::Null;
        eventually("it has scraped", || {
            target = Prometheus::ask("targets")["data"]["activeTargets"][0].clone();
            target["health"] != "unknown" && target["lastScrape"].is_string()
        });
        assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target}");

        let types = Prometheus::ask("targets/metadata")["data"].clone();
        let kind = |name: &str| {
            let types = types.as_array().unwrap();
            types.iter().find(|metric| metric["metric"] == name).map(|metric| metric["type"].clone())
        };
        assert_eq!(kind("tfo_syn"), Some("counter".into()), "{types}");
        assert_eq!(kind("tfo_xdp_attached"), Some("gauge".into()), "{types}");
        assert_eq!(kind("tfo_build"), Some("info".into()), "{types}");

        let value = |what: &str| {
            Prometheus::ask(&format!("query?query={what}"))["data"]["result"][0]["value"][1].clone()
        };
        let rows = Samples::now().rows_of("tfo_syn_total").count().to_string();
        eventually("all rows are there", || value("count(tfo_syn_total)") == rows.as_str());
        ip(&format!("link del {IFACE}"));
        let pending = "ALERTS{alertname=\"TfoNotAttached\",alertstate=\"pending\"}";
        eventually("the alert is on its way", || value(pending) == "1");
    });
}
