//! Results of `tfo enable` and `tfo disable`, for people and programs.

use serde::Serialize;

use crate::kernel::{listeners::Outcome, sysctl::SERVER};

/// Warning of every `tfo enable`. A host that repeats a SYN, or a network that does, brings its data to the server twice.
const TWICE: &str = "a SYN that the network delivers twice can bring its request twice (RFC 7413, sections 2.1 and 6.1): leave \
                     Fast Open off for servers that must not serve a request twice; the protection `once` helps";
/// Note for a server that restarts.
const ANEW: &str =
    "a server that listens anew is without it again; fast_open in the configuration of `tfo run` keeps it on";

/// Results for all listeners, as `--json` shows them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Results, by port.
    pub listeners: Vec<Outcome>,
    /// Warnings and notes.
    pub warnings: Vec<String>,
    /// Queue that was asked for; `None` for `tfo disable`.
    #[serde(skip)]
    queue: Option<u32>,
}

impl Report {
    /// Makes the report of `tfo enable` with a queue for `ports`, where `net.ipv4.tcp_fastopen` has the value `tcp_fastopen`.
    pub fn of_enable(
        listeners: Vec<Outcome>,
        ports: &[u16],
        queue: u32,
        tcp_fastopen: u32,
        dry_run: bool,
    ) -> Self {
        let mut warnings = Vec::new();
        let has = |port: &&u16| listeners.iter().any(|outcome| outcome.address.port() == **port);
        warnings.extend(ports.iter().filter(|port| !has(port)).map(|port| nobody(*port)));
        if tcp_fastopen & SERVER == 0 {
            warnings.push("net.ipv4.tcp_fastopen lacks bit 0x2, without which no listener has Fast Open: `tfo check --fix` sets \
                           it"
                .to_owned());
        }
        if let Some(longest) =
            listeners.iter().filter_map(|outcome| outcome.after).find(|after| *after < queue)
        {
            warnings.push(format!("net.core.somaxconn is {longest}, and no queue is longer"));
        }
        if listeners.iter().any(|outcome| outcome.after.is_some()) {
            warnings.extend([TWICE, ANEW].map(str::to_owned));
        }
        Self { dry_run, listeners, warnings, queue: Some(queue) }
    }

    /// Makes the report of `tfo disable`.
    pub fn of_disable(listeners: Vec<Outcome>, dry_run: bool) -> Self {
        Self { dry_run, listeners, warnings: Vec::new(), queue: None }
    }

    /// Whether each of `ports` has a listener, or needs none, and all could be changed.
    pub fn is_complete(&self, ports: &[u16]) -> bool {
        let has = |port: &u16| self.listeners.iter().any(|outcome| outcome.address.port() == *port);
        self.listeners.iter().all(|outcome| outcome.failure.is_none())
            && (self.queue.is_none() || ports.iter().all(has))
    }

    /// Formats the report for people.
    pub fn text(&self) -> String {
        let mut lines: Vec<_> = self.listeners.iter().map(|outcome| self.line(outcome)).collect();
        match (self.listeners.is_empty(), self.queue) {
            (true, None) => lines.push("nothing to undo: tfo has not turned Fast Open on there".to_owned()),
            (false, _) if self.dry_run => lines.push("nothing was changed (--dry-run)".to_owned()),
            _ => {}
        }
        lines.extend(self.warnings.iter().map(|warning| format!("warning: {warning}")));
        lines.join("\n")
    }

    fn line(&self, outcome: &Outcome) -> String {
        let name = outcome.name();
        let (before, after) = match (outcome.before, outcome.after, &outcome.failure) {
            (Some(before), Some(after), None) => (before, after),
            (_, _, failure) => {
                return format!("{name}: cannot be changed: {}", failure.as_deref().unwrap_or("unknown"));
            }
        };
        let server = outcome.server.unwrap_or(0);
        let asked = match server {
            0 => String::new(),
            // The kernel takes a SYN as an ordinary one while the queue is full (`tcp_fastopen_queue_check`).
            1 => " (its server asked for 1: one connection in its handshake turns Fast Open off for all others)".to_owned(),
            server => format!(" (its server asked for {server})"),
        };
        let kept = match outcome.interfaces.as_slice() {
            [] => String::new(),
            interfaces if self.queue.is_none() => format!(
                "; the configuration of {} keeps it on: take fast_open out of its service, and `tfo reload`",
                interfaces.join(", ")
            ),
            interfaces => format!("; the configuration of {} keeps it on, too", interfaces.join(", ")),
        };
        if before == after {
            format!("{name}: {}, as it was{asked}{kept}", length(after))
        } else {
            format!("{name}: {} -> {}{asked}{kept}", length(before), length(after))
        }
    }
}

fn length(queue: u32) -> String {
    if queue == 0 { "off".to_owned() } else { queue.to_string() }
}

fn nobody(port: u16) -> String {
    format!("nobody listens on port {port} in this network namespace")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::listeners::Process;

    fn outcome(before: u32, after: u32, server: u32) -> Outcome {
        Outcome {
            address: "192.0.2.1:443".parse().expect("an address"),
            process: Some(Process { pid: 7, name: "python3".to_owned() }),
            before: Some(before),
            after: Some(after),
            server: Some(server),
            interfaces: Vec::new(),
            failure: None,
            cookie: 1,
        }
    }

    #[test]
    fn each_result_is_a_line() {
        let enabled = |outcome| Report::of_enable(vec![outcome], &[443], 256, SERVER, false);
        let line = |report: &Report| report.text().lines().next().unwrap_or_default().to_owned();
        assert_eq!(line(&enabled(outcome(0, 256, 0))), "192.0.2.1:443 (python3): off -> 256");
        let more = "192.0.2.1:443 (python3): 512, as it was (its server asked for 512)";
        assert_eq!(line(&enabled(outcome(512, 512, 512))), more);
        let one = "192.0.2.1:443 (python3): 1 -> 256 (its server asked for 1: one connection in its handshake turns Fast \
                   Open off for all others)";
        assert_eq!(line(&enabled(outcome(1, 256, 1))), one);
        let failed = Outcome { after: None, failure: Some("no".to_owned()), ..outcome(0, 0, 0) };
        assert_eq!(line(&enabled(failed.clone())), "192.0.2.1:443 (python3): cannot be changed: no");
        assert!(!enabled(failed).is_complete(&[443]));
        let disabled = |outcome| Report::of_disable(vec![outcome], false);
        assert_eq!(line(&disabled(outcome(256, 0, 0))), "192.0.2.1:443 (python3): 256 -> off");
        let kept = Outcome { interfaces: vec!["eth0".to_owned()], ..outcome(256, 256, 0) };
        let expected = "192.0.2.1:443 (python3): 256, as it was; the configuration of eth0 keeps it on: take fast_open out \
                        of its service, and `tfo reload`";
        assert_eq!(line(&disabled(kept)), expected);
        let none = Report::of_disable(Vec::new(), false);
        assert_eq!(none.text(), "nothing to undo: tfo has not turned Fast Open on there");
        assert!(none.is_complete(&[443]));
    }

    #[test]
    fn what_stands_in_the_way_is_said() {
        let report = Report::of_enable(vec![outcome(0, 128, 0)], &[443, 80], 256, 1, true);
        let text = report.text();
        for said in [
            "nothing was changed (--dry-run)",
            "warning: nobody listens on port 80 ",
            "warning: net.ipv4.tcp_fastopen lacks bit 0x2",
            "warning: net.core.somaxconn is 128,",
            "RFC 7413, sections 2.1 and 6.1",
            "listens anew",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        assert!(!report.is_complete(&[443, 80]) && report.is_complete(&[443]));
    }
}
