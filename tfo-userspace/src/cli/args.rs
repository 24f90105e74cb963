//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, value_parser};
use ipnet::IpNet;
use tracing::level_filters::LevelFilter;

use crate::{
    check::fix::FOLDER,
    config::{overlap, parse_address},
    kernel::{interface::parse_name, syncookies::GUARD},
    model::{
        fleet::parse_host,
        guards::Hidden,
        services::{Named, QUEUES, parse_prefix},
        settings::{AttachMode, KeysFrom, ProgramMode, parse_share},
    },
    util::{logging::Format, time::parse_duration},
};

/// Observes and protects TCP Fast Open, and keeps its keys, with XDP.
#[derive(Parser)]
#[command(name = "tfo", version, max_term_width = 100)]
pub struct Cli {
    /// Subcommand.
    #[command(subcommand)]
    pub command: Command,

    /// BPF file system of the pinned state (DIR/tfo/IFACE)
    #[arg(long, global = true, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,

    /// Work in this network namespace: a name of ip-netns(8), a path, or the ID of a process in it
    ///
    /// What is pinned for it is kept apart (DIR/tfo-netns/NAME/IFACE), so all namespaces may have an eth0. `all` is for
    /// `status`, `counters` and `top`: this namespace, and all others that have a tfo.
    #[arg(long, global = true, value_name = "NETNS")]
    pub netns: Option<String>,

    /// Folder that keeps the orders of `tfo hide` over a reboot
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/tfo")]
    pub state_dir: PathBuf,

    /// Log more: -v adds debug lines and messages of the XDP program, -vv adds those of libraries
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Format of log lines: text, unless standard error leads to systemd's journal, which gets entries with fields. -v, or
    /// the environment variable RUST_LOG (such as warn,tfo=debug), selects which are written
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub log_format: Option<Format>,
}

impl Cli {
    /// Returns the level up to which log lines of the libraries are shown.
    pub fn libraries_log_level(&self) -> LevelFilter {
        if self.verbose < 2 { LevelFilter::WARN } else { LevelFilter::DEBUG }
    }

    /// Returns the level up to which our own log lines are shown. Messages of the XDP program have level debug.
    pub fn log_level(&self) -> LevelFilter {
        match self.verbose {
            // The lab changes keys all the time, and prints its own report.
            0 if matches!(self.command, Command::Lab(_)) => LevelFilter::WARN,
            0 => LevelFilter::INFO,
            1 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }
}

/// Subcommands of `tfo`.
#[derive(Subcommand)]
pub enum Command {
    /// Attach the XDP program and keep its keys in step with the kernel
    ///
    /// On a terminal it shows live counters, elsewhere it logs. Ctrl-C (SIGINT) ends it, detaches the program and
    /// removes its state. SIGTERM ends it and leaves the program attached, with its counters and orders. The next
    /// `tfo run` takes it over, as after a crash; `tfo unload` removes it. With --config, SIGHUP reads the file again,
    /// as `tfo reload` does; without it, SIGHUP acts like SIGINT.
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
    /// Show what the program has counted, and what became of connections from here
    Counters(Counters),
    /// Explain the packets for which Fast Open failed (root only: it shows addresses)
    Events(Events),
    /// List the listening sockets, and what each does with Fast Open
    ///
    /// Lists the sockets of this network namespace. It queries each through the process that holds it, which needs
    /// root; the reason is shown where that fails. Keys are shown by their fingerprints.
    Listeners(Listeners),
    /// Turn Fast Open on for a running server that does not ask for it
    ///
    /// Sets TCP_FASTOPEN on the running listeners of a port, in this network namespace, whatever process has them. It lasts
    /// until `tfo disable`, or until the server listens anew; fast_open in the configuration of `tfo run` keeps it on. A
    /// longer queue that the server itself asked for stays. A SYN that the network delivers twice can bring its request twice
    /// (RFC 7413, section 2.1): do this only for servers that may serve a request twice.
    Enable(Enable),
    /// Undo `tfo enable`: the listeners are again as their servers made them
    Disable(Disable),
    /// Check whether this host can serve Fast Open, and what tfo can see of it
    ///
    /// Checks this network namespace. Each line is ok, warn or fail, and says what to do. The exit status is 1 if a
    /// line is fail.
    Check(Check),
    /// Write net.ipv4.tcp_syncookies back if `tfo run` dies while it is changed (`tfo run` starts this by itself)
    #[command(name = GUARD, hide = true)]
    GuardSyncookies {
        /// Folder with the value before
        folder: PathBuf,
    },
    /// Show live rates on a screen; ? lists its keys
    ///
    /// It reads what `tfo run` has pinned, every second, and changes nothing. When `tfo run` ends, it waits for the
    /// next one. Where standard output is no terminal, it prints the state once.
    Top(Top),
    /// Write a page on the last hour, with plots: one HTML file that needs nothing else
    ///
    /// It gets the samples of the last hour from the `tfo run` of each interface. The page has no addresses and no
    /// fingerprints.
    Report(Report),
    /// Work with keys and cookies
    #[command(subcommand)]
    Keys(Keys),
    /// Work with a fleet: hosts that share a secret through etcd
    ///
    /// These commands talk to etcd, by the table [keys.etcd] of the configuration file, and need no running tfo.
    #[command(subcommand)]
    Fleet(Fleet),
    /// Detach the program and remove its state
    Unload(Unload),
    /// Show the versions of the program, and of what it reads and writes; for a report of a bug
    Version(Version),
    /// Write the manual pages or the completions of shells into a folder (for packages)
    #[command(hide = true)]
    Generate(Generate),
}

/// Arguments of `tfo generate`.
#[derive(Args, Debug)]
pub struct Generate {
    /// Kind of files
    pub what: Generated,
    /// Folder to write into, which has to exist
    pub folder: PathBuf,
}

/// Kind of files that `tfo generate` writes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Generated {
    /// A manual page for each command
    Man,
    /// Completions for bash, zsh and fish
    Completions,
}

/// Arguments of `tfo run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Interface to attach to; may be given several times
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
        "interfaces", "mode", "attach", "services", "keys", "rotate", "overlap", "key_state", "retire_below", "max_age",
    ])]
    pub config: Option<PathBuf>,

    /// Mode of the program: what it may do to packets
    #[arg(long, value_enum, default_value_t)]
    pub mode: ProgramMode,

    /// Place in the receive path at which the program is attached
    #[arg(long, value_enum, default_value_t)]
    pub attach: AttachMode,

    /// Count by service, such as web=80,443,8000-8010; may be given several times. All other ports are counted as
    /// `other`
    #[arg(long = "service", value_name = "NAME=PORTS")]
    pub services: Vec<Named>,

    /// Source of keys: kernel (follow it, never write), random (our own, written to the kernel), or secret:FILE
    /// (derived from a fleet's 32-byte secret and the time, as tofurkey does; FILE may be the name of a systemd
    /// credential, or - for standard input). A configuration file may also have etcd, for a secret that is kept there
    #[arg(long, value_name = "SOURCE", default_value = "kernel", value_parser = KeysFrom::parse)]
    pub keys: KeysFrom,

    /// Time between key changes: 10s to 1w; without it, 4h with --keys random, and 1d, as tofurkey has, with a secret
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub rotate: Option<Duration>,

    /// Time within which all hosts of a fleet learn a new secret: it is in force after that; 0s puts it in force at once
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = overlap)]
    pub overlap: Duration,

    /// File in which --keys random keeps its keys over a restart; only root can read it
    #[arg(long, value_name = "FILE", default_value = "/var/lib/tfo/keys.json")]
    pub key_state: PathBuf,

    /// Forget, at a rotation, retired keys that made less than this share of the good cookies since the last rotation,
    /// such as 0.1%; without it, the eight newest are kept
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    pub retire_below: Option<f64>,

    /// Forget retired keys of this age, even if clients still use them
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub max_age: Option<Duration>,

    /// Serve metrics for Prometheus at http://ADDR/metrics, and at /healthz whether all is well; such as 127.0.0.1:9434
    ///
    /// There is no authentication and no encryption: whoever reaches the address may read it, so it is meant for the
    /// loopback. It has neither keys nor addresses of clients. If it cannot listen there, tfo does not start. With
    /// --config, it comes before the address in the file, so that hosts with addresses of their own can share a file.
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
    /// Interface whose controller reads its file again; without it, all
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,
}

/// Arguments of `tfo hide`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("hide").required(true).args(["all", "service", "source", "list"]))]
pub struct Hide {
    /// Interface to hide on; without it, all
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// Clients whose Fast Open is hidden
    #[command(flatten)]
    pub target: Target,

    /// List the orders in force; hide nothing
    #[arg(long)]
    pub list: bool,

    /// Print the list as one JSON object for each interface, each on its line; needs --list
    // Not `requires`: clap does not enforce it if the required argument conflicts with one that is given.
    #[arg(long, conflicts_with_all = ["all", "service", "source"])]
    pub json: bool,
}

/// Arguments of `tfo show`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("show").required(true).args(["all", "service", "source"]))]
pub struct Show {
    /// Interface to show on; without it, all
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// Clients whose Fast Open is shown again
    #[command(flatten)]
    pub target: Target,
}

/// Clients whose Fast Open is hidden or shown.
#[derive(Args, Debug)]
pub struct Target {
    /// Act on all clients
    #[arg(long)]
    pub all: bool,

    /// Act on all clients of this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,

    /// Act on clients with this address or in this network
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    pub source: Option<IpNet>,
}

impl Target {
    /// Returns the target as the model has it; `None` without any of the options.
    pub fn hidden(&self) -> Option<Hidden> {
        let service = self.service.clone().map(Hidden::Service);
        service.or(self.source.map(Hidden::Source)).or(self.all.then_some(Hidden::All))
    }
}

/// Arguments of `tfo status`.
#[derive(Args, Debug)]
pub struct Status {
    /// Interfaces and output format
    #[command(flatten)]
    pub select: Select,
}

/// Arguments of `tfo counters`.
#[derive(Args, Debug)]
pub struct Counters {
    /// Interfaces and output format
    #[command(flatten)]
    pub select: Select,

    /// Show them again every second
    #[arg(short, long)]
    pub watch: bool,
}

/// Arguments of `tfo top`.
#[derive(Args, Debug)]
pub struct Top {
    /// Interfaces and output format
    #[command(flatten)]
    pub select: Select,

    /// Print the state once: counters, destinations, keys and source prefixes; so does --json
    #[arg(long)]
    pub once: bool,
}

/// Arguments of `tfo events`.
#[derive(Args, Debug)]
pub struct Events {
    /// Interfaces and output format
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
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tfo enable`.
#[derive(Args, Debug)]
pub struct Enable {
    /// Port of the listeners; may be given several times
    #[arg(short, long = "port", value_name = "PORT", required = true, value_parser = value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,

    /// Number of Fast Open connections that may be in their handshake at once. The kernel cuts it to net.core.somaxconn
    #[arg(long, value_name = "LENGTH", default_value_t = 256, value_parser = value_parser!(u32).range(1..=i64::from(*QUEUES.end())))]
    pub queue: u32,

    /// Output format, and whether anything is changed
    #[command(flatten)]
    pub how: Manner,
}

/// Arguments of `tfo disable`.
#[derive(Args, Debug)]
pub struct Disable {
    /// Port of the listeners; may be given several times
    #[arg(short, long = "port", value_name = "PORT", required = true, value_parser = value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,

    /// Output format, and whether anything is changed
    #[command(flatten)]
    pub how: Manner,
}

/// Options of `tfo enable` and `tfo disable`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Manner {
    /// Show what would be changed, and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tfo check`.
#[derive(Args, Debug)]
pub struct Check {
    /// Also check whether the program can run on this interface; nothing is attached
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// Check only this configuration file; nothing is attached or changed. Each fault is shown with its line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["interface", "fix"])]
    pub config: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Turn Fast Open on first, for clients and servers: the bits 0x1 and 0x2 of net.ipv4.tcp_fastopen, now for this
    /// network namespace, and in 30-tcp_fastopen.conf for the host at its next boot. Each change is shown before it is
    /// made
    #[arg(long)]
    pub fix: bool,

    /// Folder in which --fix writes that file; only the default folder is created if it is missing
    #[arg(long, value_name = "DIR", default_value = FOLDER, requires = "fix")]
    pub sysctl_dir: PathBuf,
}

/// Arguments of `tfo report`.
#[derive(Args, Debug)]
pub struct Report {
    /// File to write, atomically; - for standard output
    #[arg(long, value_name = "FILE")]
    pub html: PathBuf,

    /// Interface to report on; without it, all whose `tfo run` runs here
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,
}

/// Interfaces and output format.
#[derive(Args, Debug)]
pub struct Select {
    /// Interface to show; without it, all
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// Print one JSON object for each interface, each on its line
    #[arg(long)]
    pub json: bool,
}

/// Subcommands of `tfo keys`.
#[derive(Subcommand)]
pub enum Keys {
    /// Show each key's role, age, share of hits, and when it expires; shows fingerprints, never keys
    Status(KeysStatus),
    /// Make a new key and use it now (--keys random), or put a new secret in force that is known already
    Rotate(Rotate),
    /// Use this key now (with `tfo run --keys random`)
    Import(Import),
    /// Show the fingerprints of the keys that a secret gives at a time, to compare hosts
    Derive(Derive),
    /// Print the cookie that a server holding KEY gives to SRC
    Cookie(Cookie),
}

/// Subcommands of `tfo fleet`.
#[derive(Subcommand)]
pub enum Fleet {
    /// Show which hosts are in step, which are behind, and which are gone
    ///
    /// The exit status is 1 if a host is not in step.
    Status(FleetStatus),
    /// Replace the secret: every host learns the new one, and then it comes into force
    ///
    /// Hosts that have not learnt it after a time are named, and not waited for: clients with cookies of the others get
    /// ordinary handshakes there until it has learnt it. If this command is ended before the secret is in force, the next
    /// one takes it up.
    Rotate(FleetRotate),
    /// Make the first secret, once for the whole fleet
    Init(FleetAccess),
    /// Write the secret that this host has kept, after etcd has lost it
    Restore(FleetAccess),
    /// Remove a host that will not come back from the list of hosts
    Forget(FleetForget),
}

/// Access to the fleet.
#[derive(Args, Debug)]
pub struct FleetAccess {
    /// Configuration file with the table [keys.etcd]
    #[arg(long, value_name = "FILE", default_value = "/etc/tfo/tfo.toml")]
    pub config: PathBuf,
}

/// Arguments of `tfo fleet status`.
#[derive(Args, Debug)]
pub struct FleetStatus {
    /// Access to the fleet
    #[command(flatten)]
    pub access: FleetAccess,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tfo fleet rotate`.
#[derive(Args, Debug)]
pub struct FleetRotate {
    /// Access to the fleet
    #[command(flatten)]
    pub access: FleetAccess,

    /// Wait so long for hosts that have not learnt the new secret; without it, a minute, or a second in an emergency
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub wait: Option<Duration>,

    /// Wait only a second
    #[arg(long, conflicts_with = "wait")]
    pub force: bool,

    /// The secret has leaked: bring a new one into force at once, and make every host forget all others
    #[arg(long, conflicts_with = "force")]
    pub emergency: bool,
}

/// Arguments of `tfo fleet forget`.
#[derive(Args, Debug)]
pub struct FleetForget {
    /// Access to the fleet
    #[command(flatten)]
    pub access: FleetAccess,

    /// Name of the host
    #[arg(value_name = "HOST", value_parser = parse_host)]
    pub host: String,
}

/// Arguments of `tfo keys status`.
#[derive(Args, Debug)]
pub struct KeysStatus {
    /// Interfaces and output format
    #[command(flatten)]
    pub select: Select,
}

/// Arguments of `tfo keys rotate`.
#[derive(Args, Debug)]
pub struct Rotate {
    /// Interface whose controller does it; without it, any that runs
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// Forget all old keys, in the maps and in the kernel; for a leaked key
    #[arg(long)]
    pub emergency: bool,
}

/// Arguments of `tfo keys import`.
#[derive(Args, Debug)]
pub struct Import {
    /// Interface whose controller does it; without it, any that runs
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// File with the key, as net.ipv4.tcp_fastopen_key shows it; - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: String,
}

/// Arguments of `tfo keys derive`.
#[derive(Args, Debug)]
pub struct Derive {
    /// The secret: a file, the name of a systemd credential, or - for standard input
    #[arg(value_name = "FILE")]
    pub secret: String,

    /// Time between key changes
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = parse_duration)]
    pub rotate: Duration,

    /// Time of the keys, in seconds since 1970; without it, now
    #[arg(long, value_name = "SECONDS")]
    pub at: Option<u64>,

    /// Print JSON
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

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tfo unload`.
#[derive(Args, Debug)]
pub struct Unload {
    /// Interface to unload from; without it, all
    #[arg(short, long, value_name = "IFACE", value_parser = parse_name)]
    pub interface: Option<String>,

    /// Succeed if nothing is attached, too
    #[arg(long)]
    pub if_attached: bool,
}

/// Arguments of `tfo version`.
#[derive(Args, Debug)]
pub struct Version {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
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

    #[test]
    fn defaults_are_those_of_a_file() {
        let Command::Run(run) = Cli::parse_from(["tfo", "run", "-i", "v0"]).command else { panic!("a run") };
        let Config { attach, metrics, keys, services, .. } =
            Config::parse(b"interfaces = ['v0']").expect("a configuration");
        let Run { key_state: state, rotate, overlap, retire_below, max_age, .. } = run;
        assert_eq!(
            keys,
            KeysConfig { source: run.keys, rotate, overlap, state, retire_below, max_age, etcd: None }
        );
        assert_eq!((attach, metrics, services.other()), (run.attach, run.metrics, run.mode.into()));
    }
}
