//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use log::LevelFilter;

/// Observes TCP Fast Open in the kernel's receive path, with XDP.
#[derive(Parser)]
#[command(name = "tfo", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// The BPF file system that holds the state, under tfo/IFACE
    #[arg(long, global = true, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,

    /// Say more: -v adds the rare events that the XDP program itself reports, -vv what the libraries log
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Cli {
    /// The level up to which log lines of the libraries are shown.
    pub fn libraries_log_level(&self) -> LevelFilter {
        if self.verbose < 2 { LevelFilter::Warn } else { LevelFilter::Debug }
    }

    /// The level up to which our own log lines are shown. The program's own rare events are at level debug.
    pub fn log_level(&self) -> LevelFilter {
        match self.verbose {
            // The lab changes keys all the time, and says itself what there is to see.
            0 if matches!(self.command, Command::Lab(_)) => LevelFilter::Warn,
            0 => LevelFilter::Info,
            1 => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        }
    }
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Attach the XDP program and keep its keys in step with the kernel, until SIGINT, SIGTERM or SIGHUP
    ///
    /// On a terminal it shows live counters, elsewhere it logs. After a crash the program goes on counting, and the next
    /// `tfo run` takes it over.
    Run(Run),
    /// Watch real TFO traffic between two network namespaces; nothing of the host is touched
    Lab(Lab),
    /// Show whether the program runs, and with which keys
    Status(Status),
    /// Show what the program has counted
    Counters(Counters),
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
    #[arg(short, long = "interface", value_name = "IFACE", required = true)]
    pub interfaces: Vec<String>,

    /// Where in the receive path the program is attached
    #[arg(long, value_enum, default_value_t)]
    pub attach: AttachMode,
}

/// `--attach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AttachMode {
    /// In the driver (native XDP), or else in the stack (generic)
    #[default]
    Auto,
    /// In the driver (native XDP)
    Native,
    /// In the stack (generic XDP)
    Generic,
}

/// Arguments of `tfo lab`.
#[derive(Args, Debug)]
pub struct Lab {
    /// Stop after this many seconds and compare with the kernel; without it, at SIGINT or SIGTERM
    #[arg(long = "for", value_name = "SECS", value_parser = seconds)]
    pub duration: Option<Duration>,
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

/// Which interfaces, and in which form.
#[derive(Args, Debug)]
pub struct Select {
    /// Only this interface; without it, all
    #[arg(short, long, value_name = "IFACE")]
    pub interface: Option<String>,

    /// One JSON object for each interface, each on its line
    #[arg(long)]
    pub json: bool,
}

/// Subcommands of `tfo keys`.
#[derive(Subcommand)]
pub enum Keys {
    /// Print the cookie that a server holding KEY gives to SRC
    Cookie(Cookie),
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
    #[arg(short, long, value_name = "IFACE")]
    pub interface: Option<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if seconds < 1.0 {
        return Err("it takes at least 1 second".to_owned());
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
