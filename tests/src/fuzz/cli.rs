//! Any command line: understood or refused, with what it says inside its bounds.

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

/// A time that is certainly taken: thirty years.
const USUAL: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Takes the words of a command line, each on its line.
pub fn check(data: &[u8]) {
    let words: Vec<OsString> =
        data.split(|byte| *byte == b'\n').map(|word| OsStr::from_bytes(word).to_owned()).collect();
    for word in words.iter().filter_map(|word| word.to_str()) {
        // It takes more forms than are told here, and no times that are longer than all of history.
        match (duration(word), parse_duration(word).ok()) {
            (Some(told), None) => assert!(told > USUAL, "{word:?}"),
            (Some(told), Some(parsed)) => assert_eq!(told, parsed, "{word:?}"),
            (None, _) => {}
        }
    }
    match Cli::try_parse_from([OsString::from("tfo")].into_iter().chain(words)) {
        Ok(cli) => understood(&cli),
        Err(error) => {
            // 0 where help or the version was asked for, 2 where it is wrong.
            assert_eq!(error.exit_code(), if error.use_stderr() { 2 } else { 0 });
            assert!(!error.to_string().is_empty());
        }
    }
}

/// Command lines with every subcommand.
pub fn seeds() -> Vec<Vec<u8>> {
    let lines = [
        "run -i eth0",
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
        "help run",
        "--version",
    ];
    lines.map(|line| line.replace(' ', "\n").into_bytes()).to_vec()
}

fn understood(cli: &Cli) {
    assert!(cli.libraries_log_level() <= cli.log_level());
    match &cli.command {
        Command::Run(run) => {
            assert_eq!(run.interfaces.is_empty(), run.config.is_some());
            assert!(run.retire_below.is_none_or(|share| (0.0..=1.0).contains(&share)));
        }
        Command::Hide(hide) => {
            let what = [hide.what.all, hide.what.service.is_some(), hide.what.source.is_some(), hide.list];
            assert_eq!(what.into_iter().filter(|given| *given).count(), 1);
            assert_eq!(hide.what.hidden().is_none(), hide.list);
            assert!(hide.list || !hide.json);
        }
        Command::Show(show) => assert!(show.what.hidden().is_some()),
        Command::Lab(lab) => assert!(lab.duration.is_none_or(|duration| duration >= Duration::from_secs(1))),
        _ => {}
    }
}

/// A number and its unit, in another way.
fn duration(text: &str) -> Option<Duration> {
    let seconds = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("w", 7 * 86400)];
    let (number, unit) = seconds.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
    // `parse` would take a sign.
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = is_number.then(|| number.parse().ok())??;
    number.checked_mul(unit).map(Duration::from_secs)
}
