//! Checks of the kernel's Fast Open: its settings, listeners and counters.

use anyhow::Result;

use super::{Finding, weak_keys::weakness};
use crate::{
    kernel::{
        listeners::{Listener, Listeners, bits},
        sysctl::{self, CLIENT, KernelKeys, SERVER, SERVER_NO_COOKIE},
        tcp_ext::TcpExt,
    },
    model::keys::fingerprint,
    util::secrecy::leaving_no_trace,
};

/// Share of failed attempts above which a check warns.
const TOLERATED: f64 = 0.1;

pub(super) fn mode(tcp_fastopen: u32) -> Finding {
    let found = format!("{tcp_fastopen:#x}: {}", bits(tcp_fastopen));
    let has = |bit| tcp_fastopen & bit != 0;
    let turn_on =
        format!("`tfo check --fix`, or sysctl -w net.ipv4.tcp_fastopen={}", tcp_fastopen | CLIENT | SERVER);
    if !has(SERVER) {
        Finding::fail(format!("{found}; servers have no Fast Open without bit 0x2"), turn_on)
    } else if !has(CLIENT) {
        Finding::warn(format!("{found}; clients have no Fast Open without bit 0x1"), turn_on)
    } else if has(SERVER_NO_COOKIE) {
        Finding::warn(
            found,
            format!(
                "data of forged addresses is taken, too: sysctl -w net.ipv4.tcp_fastopen={}",
                tcp_fastopen & !SERVER_NO_COOKIE
            ),
        )
    } else {
        Finding::ok(found)
    }
}

pub(super) fn key(listeners: &Listeners) -> Result<Finding> {
    let (shown, weak) = leaving_no_trace(|| {
        let KernelKeys { current, backup } = KernelKeys::read()?;
        let weak = [("current", current), ("backup", backup)]
            .into_iter()
            .find_map(|(role, key)| Some(format!("the {role} key can be guessed: {}", weakness(key?)?)));
        anyhow::Ok(([current, backup].map(|key| key.map(fingerprint)), weak))
    })?;
    if let Some(weak) = weak {
        return Ok(Finding::warn(
            format!("{weak}; anybody can make cookies"),
            "`tfo run --keys random`, or a secret for the fleet: `head -c 32 /dev/urandom` makes one",
        ));
    }
    let uses_sysctl =
        |listener: &Listener| listener.fast_open.as_ref().is_some_and(|it| it.queue > 0 && !it.has_own_keys);
    Ok(match shown {
        [Some(current), Some(backup)] => Finding::ok(format!("current {current}, backup {backup}")),
        [Some(current), None] => Finding::ok(format!("current {current}, no backup")),
        // The kernel makes a key when the first listener asks for Fast Open (`tcp_fastopen_init_key_once`).
        [None, _] if listeners.listeners.iter().any(uses_sysctl) => Finding::fail(
            "all zero, and in force: anybody can make cookies",
            "somebody wrote zeros to net.ipv4.tcp_fastopen_key: write a random key, or `tfo run --keys random`",
        ),
        [None, _] => Finding::warn(
            "none yet",
            "the kernel makes one when the first listener asks for Fast Open: start one",
        ),
    })
}

/// Judges the three ways in which a host takes data without a cookie (`tcp_fastopen_no_cookie`). `routes` are the
/// destinations whose routes allow it.
pub(super) fn no_cookie(all: &Listeners, routes: Result<&[String], &anyhow::Error>) -> Result<Finding> {
    let found = all.without_cookie(routes.unwrap_or_default());
    match (found.text(), routes) {
        (Some(text), _) => Ok(Finding::warn(text, found.advice())),
        (None, Ok(_)) => Ok(Finding::ok("data is taken with a cookie only")),
        (None, Err(error)) => Err(anyhow::anyhow!("{error:#}")),
    }
}

pub(super) fn syncookies(value: i32) -> Finding {
    match value {
        2 => Finding::fail(
            "2: SYN cookies for everybody, and no Fast Open at all",
            "sysctl -w net.ipv4.tcp_syncookies=1 (cookies only when a queue is full)",
        ),
        value => Finding::ok(value.to_string()),
    }
}

pub(super) fn listeners(all: &Listeners) -> Finding {
    let listeners = &all.listeners;
    let is = |on: fn(u32) -> bool| {
        move |listener: &&Listener| listener.fast_open.as_ref().is_some_and(|it| on(it.queue))
    };
    let with = listeners.iter().filter(is(|queue| queue > 0)).count();
    let without: Vec<_> = listeners.iter().filter(is(|queue| queue == 0)).collect();
    let unknown = listeners.iter().filter(|listener| listener.fast_open.is_none()).count();
    let mut found = format!("{with} of {} with Fast Open", listeners.len());
    if !without.is_empty() {
        found += &format!("; without: {}", names(&without));
    }
    if unknown > 0 {
        found += &format!("; {unknown} can't be asked");
    }
    // A listener without Fast Open is normal. One with Fast Open and a warning is not.
    let is_odd = |listener: &&Listener| listener.warning.is_some() && is(|queue| queue > 0)(listener);
    let odd: Vec<_> = listeners.iter().filter(is_odd).collect();
    if !odd.is_empty() {
        Finding::warn(format!("{found}; {}", remarks(&odd)), "`tfo listeners` shows them")
    } else if with == 0 && unknown > 0 {
        Finding::warn(found, "`tfo listeners` says why")
    } else if with == 0 {
        Finding::warn(
            found,
            "let the server ask for it (nginx: listen 80 fastopen=256), or `tfo enable --port`; `tfo listeners` shows what \
             each does",
        )
    } else {
        Finding::ok(found)
    }
}

pub(super) fn accept_backlog(all: &Listeners) -> Finding {
    let full: Vec<_> = all.listeners.iter().filter(|listener| listener.backlog.is_full()).collect();
    if full.is_empty() {
        Finding::ok("no accept queue is full")
    } else {
        Finding::warn(
            format!("full, so that connections are dropped: {}", names(&full)),
            "the server is too slow, or its backlog too small (listen(2), net.core.somaxconn)",
        )
    }
}

pub(super) fn fast_open_queue(counters: TcpExt) -> Finding {
    match counters.listen_overflow {
        0 => Finding::ok("never full (TCPFastOpenListenOverflow 0)"),
        count => Finding::warn(
            format!(
                "full {count} times: those SYNs were served without Fast Open (TCPFastOpenListenOverflow)"
            ),
            "if the number grows, let the server ask for a longer one (nginx: fastopen=N), up to net.core.somaxconn",
        ),
    }
}

pub(super) fn cookies_refused(counters: TcpExt) -> Finding {
    let TcpExt { passive, passive_fail, .. } = counters;
    let (found, is_much) = share(passive_fail, passive, ["cookies", "were refused"]);
    if is_much {
        Finding::warn(
            found,
            "keys changed under the clients, or differ in the fleet: see `tfo run --mode accelerate`, --keys secret",
        )
    } else {
        Finding::ok(found)
    }
}

pub(super) fn client_fallback(counters: TcpExt) -> Result<Finding> {
    Ok(fallback(counters, sysctl::blackhole_timeout()?))
}

/// Judges the failed attempts of clients. `timeout` is `net.ipv4.tcp_fastopen_blackhole_timeout_sec`.
fn fallback(counters: TcpExt, timeout: i32) -> Finding {
    let TcpExt { active, active_fail, blackhole, .. } = counters;
    let (found, is_much) = share(active_fail, active, ["attempts from here", "failed"]);
    if blackhole > 0 {
        Finding::warn(
            format!(
                "{found}; {blackhole} times, clients then went without Fast Open for {timeout} s or more"
            ),
            "something on the way drops SYNs with data; net.ipv4.tcp_fastopen_blackhole_timeout_sec=0 ignores that",
        )
    } else if is_much {
        Finding::warn(
            found,
            "servers that refuse the cookie, or something on the way that drops SYNs with data",
        )
    } else {
        Finding::ok(found)
    }
}

/// Returns a text on the share that failed, and whether it is more than [`TOLERATED`].
fn share(failed: u64, succeeded: u64, [what, did]: [&str; 2]) -> (String, bool) {
    match failed + succeeded {
        0 => (format!("no {what} yet"), false),
        all => {
            let share = failed as f64 / all as f64;
            (format!("{failed} of {all} {what} {did} ({:.1}%)", share * 100.0), share > TOLERATED)
        }
    }
}

fn names(listeners: &[&Listener]) -> String {
    listeners.iter().map(|listener| listener.name()).collect::<Vec<_>>().join(", ")
}

fn remarks(listeners: &[&Listener]) -> String {
    let remark = |listener: &&Listener| Some(format!("{}: {}", listener.address, listener.warning.as_ref()?));
    listeners.iter().filter_map(remark).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;

    #[test]
    fn the_server_bit_is_the_one_that_counts() {
        assert_eq!(mode(3).status, Status::Ok);
        assert_eq!(mode(2).status, Status::Warn);
        assert_eq!(mode(1).status, Status::Fail);
        assert_eq!(mode(0).status, Status::Fail);
        assert_eq!(mode(0x403).status, Status::Ok);
        let open = mode(0x203);
        assert_eq!(open.status, Status::Warn);
        assert!(open.advice.is_some_and(|advice| advice.ends_with("=3")));
        // The advice keeps the other bits.
        assert!(mode(0x404).advice.is_some_and(|advice| advice.ends_with("=1031")));
    }

    #[test]
    fn each_way_without_a_cookie_is_named() {
        let host = |tcp_fastopen| Listeners {
            tcp_fastopen,
            every_listener: false,
            listeners: Vec::new(),
            queues_unknown: None,
            no_cookie: None,
        };
        let judge = |bits, routes| no_cookie(&host(bits), routes);
        assert_eq!(judge(3, Ok(&[])).unwrap().status, Status::Ok);
        let routes: Vec<_> = (1..=7).map(|n| n.to_string()).collect();
        let all = judge(0x203, Ok(&routes)).unwrap();
        assert_eq!(all.status, Status::Warn);
        let expected = "data is taken without a cookie: net.ipv4.tcp_fastopen has bit 0x200; fastopen_no_cookie on the \
                        route to 1, 2, 3, 4, 5 and 2 more";
        assert_eq!(all.found, expected);
        let error = anyhow::anyhow!("no routes");
        assert!(judge(3, Err(&error)).is_err());
        assert_eq!(judge(0x203, Err(&error)).unwrap().status, Status::Warn);
    }

    #[test]
    fn a_share_is_judged_not_a_number() {
        let refused =
            |passive, passive_fail| cookies_refused(TcpExt { passive, passive_fail, ..TcpExt::default() });
        assert_eq!(refused(0, 0).status, Status::Ok);
        assert_eq!(refused(900, 100).status, Status::Ok);
        let much = refused(899, 101);
        assert_eq!(
            (much.status, much.found.as_str()),
            (Status::Warn, "101 of 1000 cookies were refused (10.1%)")
        );
    }

    #[test]
    fn clients_that_gave_up_are_reported() {
        let counters = TcpExt { active: 99, active_fail: 1, ..TcpExt::default() };
        assert_eq!(fallback(counters, 3600).status, Status::Ok);
        let gave_up = fallback(TcpExt { blackhole: 2, ..counters }, 3600);
        assert_eq!(gave_up.status, Status::Warn);
        assert!(gave_up.found.contains("2 times, clients then went without Fast Open for 3600 s"));
    }

    #[test]
    fn cookies_for_everybody_end_fast_open() {
        assert_eq!([0, 1, 2].map(|value| syncookies(value).status), [Status::Ok, Status::Ok, Status::Fail]);
    }
}
