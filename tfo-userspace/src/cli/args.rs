//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand};
use ipnet::IpNet;
use tracing::level_filters::LevelFilter;

use crate::{
    check::fix::FOLDER,
    config::parse_address,
    kernel::interface::parse_name,
    model::{
        guards::Hidden,
        services::{Named, parse_prefix},
        settings::{AttachMode, KeysFrom, ProgramMode, parse_share},
    },
    util::{logging::Format, time::parse_duration},
};

/// Observes and protects TCP Fast Open, and keeps its keys, with XDP.
#[derive(Parser)]
#[command(name = "tfo", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// BPF file system of the pinned state (DIR/tfo/IFACE)
    #[arg(long, global = true, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,

    /// Folder that keeps the orders of `tfo hide` over a reboot
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/tfo")]
    pub state_dir: PathBuf,

    /// Log more: -v adds debug lines and messages of the XDP program, -vv adds those of libraries
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// The form of log lines. What is logged is up to -v, or to the environment variable RUST_LOG, such as warn,tfo=debug
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: Format,
}

impl Cli {
    /// The level up to which log lines of the libraries are shown.
    pub fn libraries_log_level(&self) -> LevelFilter {
        if self.verbose < 2 { LevelFilter::WARN } else { LevelFilter::DEBUG }
    }

    /// The level up to which our own log lines are shown. The program's own rare events are at level debug.
    pub fn log_level(&self) -> LevelFilter {
        match self.verbose {
            // The lab changes keys all the time, and says itself what there is to see.
            0 if matches!(self.command, Command::Lab(_)) => LevelFilter::WARN,
            0 => LevelFilter::INFO,
            1 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Attach the XDP program and keep its keys in step with the kernel
    ///
    /// On a terminal it shows live counters, elsewhere it logs. Ctrl-C (SIGINT) ends it, detaches the program and removes its
    /// state. SIGTERM ends it and leaves the program attached, with its counters and orders, for the next `tfo run` to take over,
    /// as after a crash; `tfo unload` removes it. With --config, SIGHUP reads the
    /// file again, as `tfo reload` does; without it, SIGHUP acts like SIGINT.
    Run(Run),
    /// Have `tfo run --config` read its file again
    ///
    /// The file is validated as a whole before anything is changed. If it has mistakes, each is shown with its
    /// line, nothing changes, and the exit status is 1.
    Reload(Reload),
    /// Hide Fast Open from the stack at once: clients get ordinary handshakes
    ///
    /// It lasts until `tfo show`. It changes packets, so it needs mode shield.
    Hide(Hide),
    /// Undo `tfo hide`
    Show(Show),
    /// Watch real TFO traffic between two network namespaces; the host's network is not touched
    Lab(Lab),
    /// Show whether the program runs, and with which keys
    Status(Status),
    /// Show what the program has counted
    Counters(Counters),
    /// Explain the packets for which Fast Open failed (root only: it shows addresses)
    Events(Events),
    /// List the listening sockets, and what each does with Fast Open
    ///
    /// Lists the sockets of this network namespace. It queries each through the process that holds it, which needs root; the
    /// reason is shown where that fails. Keys are shown by their fingerprints.
    Listeners(Listeners),
    /// Check whether this host can serve Fast Open, and what tfo can see of it
    ///
    /// Checks this network namespace. Each line is ok, warn or fail, and says what to do. The exit status is 1 if a line is fail.
    Check(Check),
    /// Show live rates on a screen; ? lists its keys
    ///
    /// It reads what `tfo run` has pinned, every second, and changes nothing. When `tfo run` ends, it waits for the next one. Where
    /// standard output is no terminal, it prints the state once.
    Top(Top),
    /// Write a page on the last hour, with plots: one HTML file that needs nothing else
    ///
    /// It asks the `tfo run` of each interface for what it remembers. The page has no addresses and no fingerprints in it.
    Report(Report),
    /// Work with keys and cookies
    #[command(subcommand)]
    Keys(Keys),
    /// Detach the program and remove its state
    Unload(Unload),
}

/// Arguments of `tfo run`.
#[derive(Args, Debug)]
pub struct Run {
    /// The interface to attach to; may be given several times
    #[arg(
        short,
        long = "interface",
        value_name = "IFACE",
        value_parser = parse_name,
        required_unless_present = "config"
    )]
    pub interfaces: Vec<String>,

    /// Read the configuration from this file, instead of the options below; dist/tfo.toml is an example
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "interfaces", "mode", "attach", "services", "keys", "rotate", "key_state", "retire_below", "max_age", "metrics",
    ])]
    pub config: Option<PathBuf>,

    /// What the program may do to packets
    #[arg(long, value_enum, default_value_t)]
    pub mode: ProgramMode,

    /// Where in the receive path the program is attached
    #[arg(long, value_enum, default_value_t)]
    pub attach: AttachMode,

    /// Count by service, such as web=80,443,8000-8010; may be given several times. All other ports are counted as `other`
    #[arg(long = "service", value_name = "NAME=PORTS")]
    pub services: Vec<Named>,

    /// Where keys come from: kernel (follow it, never write), random (our own, written to the kernel), or secret:FILE
    /// (derived from a fleet's 32-byte secret and the time, as tofurkey does; FILE may be the name of a systemd
    /// credential, or - for standard input)
    #[arg(long, value_name = "SOURCE", default_value = "kernel", value_parser = KeysFrom::parse)]
    pub keys: KeysFrom,

    /// How often the key changes, with --keys random or secret: 10s to 1w
    #[arg(long, value_name = "TIME", default_value = "4h", value_parser = parse_duration)]
    pub rotate: Duration,

    /// Where --keys random keeps its keys over a restart; for root only
    #[arg(long, value_name = "FILE", default_value = "/var/lib/tfo/keys.json")]
    pub key_state: PathBuf,

    /// At a rotation, forget retired keys that made less than this share of the good cookies since the last one, such as 0.1%;
    /// without it, the eight newest are kept
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    pub retire_below: Option<f64>,

    /// Forget retired keys of this age, even if clients still use them
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub max_age: Option<Duration>,

    /// Serve metrics for Prometheus at http://ADDR/metrics, and at /healthz whether all is well; such as 127.0.0.1:9434
    ///
    /// There is no authentication and no encryption: whoever reaches the address may read it, so it is meant for the
    /// loopback. It has neither keys nor addresses of clients. If it cannot listen there, tfo does not start.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub metrics: Option<SocketAddr>,
}

/// Arguments of `tfo lab`.
#[derive(Args, Debug)]
pub struct Lab {
    /// Stop after this many seconds and compare with the kernel; without it, run until SIGINT or SIGTERM
    #[arg(long = "for", value_name = "SECS", value_parser = seconds)]
    pub duration: Option<Duration>,
}

/// Arguments of `tfo reload`.
#[derive(Args, Debug)]
pub struct Reload {
    /// Only the controller of this interface; without it, all
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,
}

/// Arguments of `tfo hide`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("hide").required(true).args(["all", "service", "source", "list"]))]
pub struct Hide {
    /// Only on this interface; without it, on all
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// What is hidden
    #[command(flatten)]
    pub what: What,

    /// List the orders in force; hide nothing
    #[arg(long)]
    pub list: bool,

    /// With --list: one JSON object for each interface, each on its line
    // Not `requires`: clap does not ask for what conflicts with another argument.
    #[arg(long, conflicts_with_all = ["all", "service", "source"])]
    pub json: bool,
}

/// Arguments of `tfo show`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("show").required(true).args(["all", "service", "source"]))]
pub struct Show {
    /// Only on this interface; without it, on all
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// What is hidden no longer
    #[command(flatten)]
    pub what: What,
}

/// Whose Fast Open.
#[derive(Args, Debug)]
pub struct What {
    /// For all clients
    #[arg(long)]
    pub all: bool,

    /// For this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,

    /// For clients with this address or in this network
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    pub source: Option<IpNet>,
}

impl What {
    /// It, where something is given.
    pub fn hidden(&self) -> Option<Hidden> {
        let service = self.service.clone().map(Hidden::Service);
        service.or(self.source.map(Hidden::Source)).or(self.all.then_some(Hidden::All))
    }
}

/// Arguments of `tfo status`.
#[derive(Args, Debug)]
pub struct Status {
    /// Which interface, when several run
    #[command(flatten)]
    pub select: Select,
}

/// Arguments of `tfo counters`.
#[derive(Args, Debug)]
pub struct Counters {
    /// Which interface, when several run
    #[command(flatten)]
    pub select: Select,

    /// Show them again every second
    #[arg(short, long)]
    pub watch: bool,
}

/// Arguments of `tfo top`.
#[derive(Args, Debug)]
pub struct Top {
    /// Which interface, when several run
    #[command(flatten)]
    pub select: Select,

    /// Print the state once: counters, keys and source prefixes; so does --json
    #[arg(long)]
    pub once: bool,
}

/// Arguments of `tfo events`.
#[derive(Args, Debug)]
pub struct Events {
    /// Which interface, when several run
    #[command(flatten)]
    pub select: Select,

    /// Keep running and show new events
    #[arg(short, long)]
    pub follow: bool,

    /// Cut the addresses of clients to their network: /24, or /64 of IPv6
    #[arg(long)]
    pub anonymize: bool,
}

/// Arguments of `tfo listeners`.
#[derive(Args, Debug)]
pub struct Listeners {
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tfo check`.
#[derive(Args, Debug)]
pub struct Check {
    /// Also check whether the program can run on this interface; nothing is attached
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// Only check this configuration file; nothing is attached or changed. Each fault is told with its line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["interface", "fix"])]
    pub config: Option<PathBuf>,

    /// As one JSON object
    #[arg(long)]
    pub json: bool,

    /// First turn Fast Open on for clients and servers: the bits 0x1 and 0x2 of net.ipv4.tcp_fastopen, now for this network
    /// namespace, and in 30-tcp_fastopen.conf for the host at its next boot. Each change is shown before it is made
    #[arg(long)]
    pub fix: bool,

    /// The folder in which --fix writes that file; only the default folder is created if it is missing
    #[arg(long, value_name = "DIR", default_value = FOLDER, requires = "fix")]
    pub sysctl_dir: PathBuf,
}

/// Arguments of `tfo report`.
#[derive(Args, Debug)]
pub struct Report {
    /// File to write, atomically; - for standard output
    #[arg(long, value_name = "FILE")]
    pub html: PathBuf,

    /// Only this interface; without it, all whose `tfo run` runs here
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,
}

/// Which interfaces, and in which form.
#[derive(Args, Debug)]
pub struct Select {
    /// Only this interface; without it, all
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// One JSON object for each interface, each on its line
    #[arg(long)]
    pub json: bool,
}

/// Subcommands of `tfo keys`.
#[derive(Subcommand)]
pub enum Keys {
    /// Show each key's role, age, share of hits, and when it expires; shows fingerprints, never keys
    Status(KeysStatus),
    /// Make a new key and use it now (with `tfo run --keys random`)
    Rotate(Rotate),
    /// Use this key now (with `tfo run --keys random`)
    Import(Import),
    /// Show the fingerprints of the keys that a secret gives at a time, to compare hosts
    Derive(Derive),
    /// Print the cookie that a server holding KEY gives to SRC
    Cookie(Cookie),
}

/// Arguments of `tfo keys status`.
#[derive(Args, Debug)]
pub struct KeysStatus {
    /// Which interface, when several run
    #[command(flatten)]
    pub select: Select,
}

/// Arguments of `tfo keys rotate`.
#[derive(Args, Debug)]
pub struct Rotate {
    /// The interface whose controller is to do it; without it, whichever runs
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// For a leaked key: forget all old keys, in the maps and in the kernel
    #[arg(long)]
    pub emergency: bool,
}

/// Arguments of `tfo keys import`.
#[derive(Args, Debug)]
pub struct Import {
    /// The interface whose controller is to do it; without it, whichever runs
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// A file with the key, as net.ipv4.tcp_fastopen_key shows it; - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: String,
}

/// Arguments of `tfo keys derive`.
#[derive(Args, Debug)]
pub struct Derive {
    /// The secret: a file, the name of a systemd credential, or - for standard input
    #[arg(value_name = "FILE")]
    pub secret: String,

    /// How often the key changes
    #[arg(long, value_name = "TIME", default_value = "4h", value_parser = parse_duration)]
    pub rotate: Duration,

    /// At which time, in seconds since 1970; without it, now
    #[arg(long, value_name = "SECONDS")]
    pub at: Option<u64>,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tfo keys cookie`.
// No Debug: it may hold a key.
#[derive(Args)]
pub struct Cookie {
    /// The key, as net.ipv4.tcp_fastopen_key shows it; one with a backup gives two cookies. Others on the machine can
    /// see a command line: for a key in use, write - and give it on standard input, or @FILE
    pub key: String,

    /// The client's address
    pub src: std::net::IpAddr,

    /// The server's address
    pub dst: std::net::IpAddr,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tfo unload`.
#[derive(Args, Debug)]
pub struct Unload {
    /// Only from this interface; without it, from all
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if seconds < 1.0 {
        return Err("it takes at least 1 second".to_owned());
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Keys as KeysConfig};

    /// What neither says is the same on the command line and in a file.
    #[test]
    fn defaults_are_those_of_a_file() {
        let Command::Run(run) = Cli::parse_from(["tfo", "run", "-i", "v0"]).command else { panic!("a run") };
        let Config { attach, metrics, keys, services, .. } =
            Config::parse(b"interfaces = ['v0']").expect("a configuration");
        let Run { key_state: state, rotate, retire_below, max_age, .. } = run;
        assert_eq!(keys, KeysConfig { source: run.keys, rotate, state, retire_below, max_age });
        assert_eq!((attach, metrics, services.other()), (run.attach, run.metrics, run.mode.into()));
    }
}
