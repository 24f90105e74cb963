//! Random command lines: each is parsed within its limits, or refused.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    time::Duration,
};

use clap::Parser as _;
use tfo_userspace::{
    cli::args::{Cli, Command},
    util::time::parse_duration,
};

/// Thirty years, a duration that is certainly accepted.
const USUAL: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Checks a command line whose words are the lines of `data`.
pub fn check(data: &[u8]) {
    let words: Vec<OsString> =
        data.split(|byte| *byte == b'\n').map(|word| OsStr::from_bytes(word).to_owned()).collect();
    for word in words.iter().filter_map(|word| word.to_str()) {
        // The parser accepts more forms than this one, and refuses durations longer than all of history.
        match (duration(word), parse_duration(word).ok()) {
            (Some(told), None) => assert!(told > USUAL, "{word:?}"),
            (Some(told), Some(parsed)) => assert_eq!(told, parsed, "{word:?}"),
            (None, _) => {}
        }
    }
    match Cli::try_parse_from([OsString::from("tfo")].into_iter().chain(words)) {
        Ok(cli) => check_parsed(&cli),
        Err(error) => {
            // The status is 0 for help or the version, and 2 for a wrong command line.
            assert_eq!(error.exit_code(), if error.use_stderr() { 2 } else { 0 });
            assert!(!error.to_string().is_empty());
        }
    }
}

/// Returns command lines with every subcommand.
pub fn seeds() -> Vec<Vec<u8>> {
    let lines = [
        "run -i eth0",
        "run -i eth0 --attach tcx",
        "run -i eth0 --interface=eth1 --mode accelerate --attach native --keys random --rotate 15m -v",
        "run -ieth0 --keys secret:FILE --key-state FILE --retire-below 0.1% --max-age 1w --bpffs DIR",
        "run --config FILE",
        "reload -i eth0",
        "hide --source 2001:db8::/64 -i eth0",
        "hide --list --json",
        "show --service web",
        "check --config FILE --json",
        "lab --for 20.5 -vv",
        "status --json -i eth0",
        "counters --watch --json",
        "events --follow --anonymize --json",
        "listeners --json",
        "enable --port 443 --port 80 --queue 512 --dry-run --json",
        "disable -p 443 --json",
        "check --fix --sysctl-dir DIR -i eth0 --json",
        "top --once --json -i eth0",
        "report --html - -i eth0",
        "keys status",
        "keys rotate --emergency",
        "keys import -",
        "keys derive FILE --at 1000000 --rotate 1d --json",
        "keys cookie 1-2-3-4 192.0.2.1 192.168.0.1",
        "keys cookie @FILE fd3d::1 ::1 --json",
        "unload -i eth0",
        "unload --if-attached",
        "run --config FILE --metrics 127.0.0.1:9434",
        "version --json",
        "help run",
        "--version",
    ];
    lines.map(|line| line.replace(' ', "\n").into_bytes()).to_vec()
}

fn check_parsed(cli: &Cli) {
    assert!(cli.libraries_log_level() <= cli.log_level());
    match &cli.command {
        Command::Run(run) => {
            assert_eq!(run.interfaces.is_empty(), run.config.is_some());
            assert!(run.retire_below.is_none_or(|share| (0.0..=1.0).contains(&share)));
        }
        Command::Hide(hide) => {
            let chosen =
                [hide.target.all, hide.target.service.is_some(), hide.target.source.is_some(), hide.list];
            assert_eq!(chosen.into_iter().filter(|given| *given).count(), 1);
            assert_eq!(hide.target.hidden().is_none(), hide.list);
            assert!(hide.list || !hide.json);
        }
        Command::Enable(enable) => {
            assert!(!enable.ports.is_empty() && !enable.ports.contains(&0) && enable.queue > 0);
        }
        Command::Show(show) => assert!(show.target.hidden().is_some()),
        Command::Lab(lab) => assert!(lab.duration.is_none_or(|duration| duration >= Duration::from_secs(1))),
        _ => {}
    }
}

/// Parses a number with its unit, independently of the code under test.
fn duration(text: &str) -> Option<Duration> {
    let seconds = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("w", 7 * 86400)];
    let (number, unit) = seconds.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
    // `parse` would accept a sign.
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = is_number.then(|| number.parse().ok())??;
    number.checked_mul(unit).map(Duration::from_secs)
}
