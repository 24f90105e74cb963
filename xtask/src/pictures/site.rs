//! Web server and its clients: two network namespaces on a veth pair.
//!
//! All addresses are for documentation (RFC 5737, RFC 3849).

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::wait_until;
use crate::workspace::{command, describe, run};

/// Interface of the server.
pub(super) const IFACE: &str = "eth0";
/// Name of the clients' namespace, below the private `/run`.
const CLIENTS: &str = "clients";

/// Wiring, one `ip` command a line. The server has all addresses of 192.0.2.128/25, and the clients have those of two
/// networks.
const WIRING: &str = "\
    netns add clients
    link add eth0 type veth peer name eth0 netns clients
    link set lo up
    link set eth0 up
    addr add 192.0.2.1/24 dev eth0
    addr add 2001:db8::1/64 dev eth0 nodad
    route add local 192.0.2.128/25 dev lo
    -n clients link set lo up
    -n clients link set eth0 up
    -n clients addr add 192.0.2.2/24 dev eth0
    -n clients addr add 2001:db8::2/64 dev eth0 nodad
    -n clients route add local 198.51.100.0/24 dev lo
    -n clients route add local 203.0.113.0/24 dev lo
    -n clients addr add 2001:db8:1::1/128 dev lo nodad
    -n clients addr add 2001:db8:1::2/128 dev lo nodad
    -n clients addr add 2001:db8:1::3/128 dev lo nodad
    route add 198.51.100.0/24 via 192.0.2.2
    route add 203.0.113.0/24 via 192.0.2.2
    -6 route add 2001:db8:1::/64 via 2001:db8::2";

/// Namespaces of the server and the clients. They end with this process and the processes that it started.
pub(super) struct Site(());

impl Site {
    /// Moves this process into the server's namespaces of network and mounts, and makes the clients'.
    ///
    /// Children inherit them. `tfo` finds an empty BPF file system, and empty folders for its sockets and its orders.
    pub(super) fn build() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("cannot make namespaces")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .context("cannot make mounts private")?;
        for (kind, path) in [("bpf", "/sys/fs/bpf"), ("tmpfs", "/run"), ("tmpfs", "/var/lib")] {
            mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("cannot mount {kind} on {path}"))?;
        }
        for line in WIRING.lines() {
            run(command("ip").args(line.split_whitespace()))?;
        }
        // Turns Fast Open on for clients and servers in this network namespace.
        let sysctl = "/proc/sys/net/ipv4/tcp_fastopen";
        fs::write(sysctl, "3").with_context(|| format!("cannot write {sysctl}"))?;
        Ok(Self(()))
    }

    /// Returns a command that runs `program` in the clients' namespace.
    pub(super) fn client(&self, program: &str) -> Command {
        let mut client = command("ip");
        client.args(["netns", "exec", CLIENTS, program]);
        client
    }

    /// Starts nginx with Fast Open; its files lie in `folder`.
    pub(super) fn serve(&self, folder: &Path) -> Result<Background> {
        let root = folder.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {root}/{name};\n"))
            .concat();
        let text = format!(
            "daemon off; master_process off; pid {root}/nginx.pid; error_log {root}/nginx.log;\n\
             events {{}}\n\
             http {{ access_log off; {temporary} server {{\n\
             listen 80 fastopen=256; listen [::]:80 fastopen=256 ipv6only=on;\n\
             location / {{ return 200 \"hello\"; }} }} }}\n"
        );
        let config = folder.join("nginx.conf");
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let nginx = Background::start(command("nginx").arg("-c").arg(&config))?;
        wait_until(|| Ok(TcpStream::connect("192.0.2.1:80").is_ok()), || Ok(()))?;
        Ok(nginx)
    }
}

/// Process in the background, killed when dropped.
pub(super) struct Background(Child);

impl Background {
    /// Starts `command`.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("cannot start `{}`", describe(command)))?))
    }

    /// Returns whether the process has ended by itself.
    pub(super) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended already.
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<_> = self.0.wait();
    }
}
