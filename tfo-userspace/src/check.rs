//! Checks of what a host needs to serve Fast Open, and tfo to observe it. Each check has a finding, with advice.

mod fast_open;
pub mod fix;
mod from_here;
mod interface;
mod netdev;
mod system;
mod weak_keys;

use anyhow::Result;
use fast_open::{
    accept_backlog, client_fallback, cookies_refused, fast_open_queue, key, mode, no_cookie, syncookies,
};
use fix::Change;
use serde::Serialize;
use system::{btf, cgroup2, clock, kernel, memory_lock, privileges};

use crate::{
    dataplane::pins::Bpffs,
    kernel::{listeners::Listeners, tcp_ext::TcpExt},
};

/// Result of a check, from good to bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Fine.
    #[default]
    Ok,
    /// Limitation: it works, but not for all, or not for ever. Also a check that could not be made.
    Warn,
    /// Failure: Fast Open, or tfo, does not work like this.
    Fail,
}

impl Status {
    /// Returns the name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// Finding of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Result.
    pub status: Status,
    /// State that was found.
    pub found: String,
    /// Advice; `None` if nothing needs to be done.
    pub advice: Option<String>,
}

impl Finding {
    fn ok(found: impl Into<String>) -> Self {
        Self { status: Status::Ok, found: found.into(), advice: None }
    }

    fn warn(found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::warn(found, advice) }
    }
}

/// Check that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Name, which is stable.
    pub name: &'static str,
    /// Finding.
    #[serde(flatten)]
    pub finding: Finding,
}

impl Check {
    /// Makes a check of a finding. An error becomes a warning, so that the other checks still count.
    fn new(name: &'static str, finding: Result<Finding>) -> Self {
        let unknown = |error| Finding {
            status: Status::Warn,
            found: format!("unknown: {error:#}"),
            advice: (!nix::unistd::geteuid().is_root()).then(|| "run it with sudo".to_owned()),
        };
        Self { name, finding: finding.unwrap_or_else(unknown) }
    }
}

/// Report on all checks; `tfo check --json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Checks, in the order in which they are shown.
    pub checks: Vec<Check>,
    /// Worst result of the checks.
    pub worst: Status,
    /// Changes that `--fix` made before the checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<Change>>,
}

impl Report {
    /// Checks the host, the calling thread's network namespace, and `interface` in it.
    pub async fn new(interface: Option<&str>, bpffs: &Bpffs) -> Self {
        let listeners = Listeners::read_with_queues();
        let routes = crate::kernel::route::without_cookie().await;
        let with_listeners = |check: &dyn Fn(&Listeners) -> Result<Finding>| match &listeners {
            Ok(listeners) => check(listeners),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        let counted = from_here::Counted::read(bpffs);
        let with_counters = |check: fn(TcpExt) -> Result<Finding>| TcpExt::read().and_then(check);
        let mut checks: Vec<_> = [
            ("kernel", kernel()),
            ("btf", btf()),
            ("privileges", privileges()),
            ("memory_lock", memory_lock()),
            ("cgroup2", cgroup2()),
            ("clock", clock()),
            ("tcp_fastopen", crate::kernel::sysctl::read_mode().map(mode)),
            ("tcp_fastopen_key", with_listeners(&key)),
            ("no_cookie", with_listeners(&|listeners| no_cookie(listeners, routes.as_deref()))),
            ("tcp_syncookies", crate::kernel::sysctl::syncookies().map(syncookies)),
            ("listeners", with_listeners(&|listeners| Ok(fast_open::listeners(listeners)))),
            ("accept_backlog", with_listeners(&|listeners| Ok(accept_backlog(listeners)))),
            ("fast_open_queue", with_counters(|counters| Ok(fast_open_queue(counters)))),
            ("cookies_refused", with_counters(|counters| Ok(cookies_refused(counters)))),
            ("client_fallback", with_counters(client_fallback)),
            ("client", from_here::client(&counted)),
            ("syn_data", from_here::syn_data(&counted)),
        ]
        .into_iter()
        .map(|(name, finding)| Check::new(name, finding))
        .collect();
        if let Some(interface) = interface {
            let (xdp, mtu) = interface::check(interface, bpffs).await;
            checks.push(Check::new("xdp", Ok(xdp)));
            checks.extend(mtu.map(|mtu| Check::new("mtu", Ok(mtu))));
            checks.push(Check::new("vlan_tags", Ok(interface::vlan_tags(interface))));
        }
        let worst = checks.iter().map(|check| check.finding.status).max().unwrap_or_default();
        Self { checks, worst, changes: None }
    }

    /// Formats the checks for people.
    pub fn text(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Check { name, finding: Finding { status, found, advice } } in &self.checks {
            text += &format!("{:4}  {name:width$}  {found}\n", status.name());
            if let Some(advice) = advice {
                text += &format!("{:4}  {:width$}  -> {advice}\n", "", "");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_lines_and_json() {
        let checks = vec![
            Check::new("kernel", Ok(Finding::ok("Linux 6.1"))),
            Check::new("btf", Ok(Finding::fail("none", "build one"))),
        ];
        let report = Report { checks, worst: Status::Fail, changes: None };
        assert_eq!(
            report.text(),
            "ok    kernel  Linux 6.1\nfail  btf     none\n              -> build one\n"
        );
        let json = serde_json::json!({
            "checks": [
                {"name": "kernel", "status": "ok", "found": "Linux 6.1", "advice": null},
                {"name": "btf", "status": "fail", "found": "none", "advice": "build one"},
            ],
            "worst": "fail",
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), json);
    }

    #[test]
    fn fail_is_worse_than_warn() {
        assert!(Status::Ok < Status::Warn && Status::Warn < Status::Fail);
    }
}
