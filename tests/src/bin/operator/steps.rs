//! The steps, in the order in which an operator takes them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::{
    counts::{self, Watch},
    machine::{eventually, leftovers, note_names, outcome, run},
    step,
    traffic::{INTERFACE, PORT, Traffic, make_network, syns_sent},
};

/// Configuration of the service.
const CONFIGURATION: &str = "/etc/tfo/tfo.toml";
/// Source of the order that has to outlive all steps.
const HIDDEN: &str = "192.0.2.0/24";

/// Steps until the reboot. `packages` has the two packages, `first.deb` and `second.deb`.
pub(crate) fn before_reboot(packages: &Path) -> Result<()> {
    let [first, second] = ["first.deb", "second.deb"].map(|name| packages.join(name).display().to_string());
    note_names()?;
    make_network()?;
    step("install", || {
        run(&format!("apt-get install --yes {first}"))?;
        let enabled = outcome("systemctl is-enabled tfo")?;
        ensure!(!enabled.status.success(), "the package has enabled its service");
        installed()
    })?;
    step("turn Fast Open on", || {
        // It also judges what this machine does not have, such as other listeners.
        drop(outcome("tfo check --fix")?);
        run("cat /proc/sys/net/ipv4/tcp_fastopen; ls /etc/sysctl.d/30-tcp_fastopen.conf")
    })?;
    let traffic = Traffic::start()?;
    step("enable", || {
        configure(&["web"])?;
        run("systemctl enable --now tfo")?;
        eventually(|| {
            let valid = counts::class("cookie_current")?;
            ensure!(valid > 0, "no valid cookie was counted");
            Ok(())
        })?;
        run("systemctl show --property StatusText --value tfo")
    })?;
    // SYNs before the program was attached, which nobody has counted.
    let uncounted = traffic.paused(|| Ok(syns_sent()? - counts::total()?))?;
    let watch = Watch::start();
    let settled = |seen: String| {
        let served = traffic.served()?;
        watch.check()?;
        eventually(|| run("systemctl is-active tfo"))?;
        eventually(is_hidden)?;
        let counted = traffic.paused(|| {
            let (sent, counted) = (syns_sent()? - uncounted, counts::total()?);
            ensure!(sent == counted, "{sent} SYNs were sent since it is attached, and {counted} counted");
            Ok(counted)
        })?;
        Ok(format!("{seen}; {served} connections, 0 lost; {counted} SYNs, all counted"))
    };

    step("hide", || settled(run(&format!("tfo hide --source {HIDDEN}"))?))?;
    step("reload", || {
        configure(&["web", "mail"])?;
        run("systemctl reload tfo")?;
        ensure!(run("tfo counters")?.contains("mail"), "the new service is not counted");
        settled("the new service is counted".to_owned())
    })?;
    step("reload of a file with a fault", || {
        configure(&["web", "no such name; it has blanks \" and a quote"])?;
        let reload = outcome("systemctl reload tfo")?;
        ensure!(!reload.status.success(), "it did not fail");
        configure(&["web", "mail"])?;
        settled("refused".to_owned())
    })?;
    step("restart", || settled(format!("another process: {}", other_process("systemctl restart tfo")?)))?;
    step("crash", || {
        settled(format!("another process: {}", other_process("systemctl kill --signal KILL tfo")?))
    })?;
    let before = installed()?;
    step("upgrade", || {
        let pid = other_process(&format!("apt-get install --yes {second}"))?;
        let now = installed()?;
        ensure!(now != before, "it is still {before}");
        settled(format!("{before} -> {now}, another process: {pid}"))
    })?;
    let after = installed()?;
    step("downgrade", || {
        let downgrade = outcome(&format!("apt-get install --yes --allow-downgrades {first}"))?;
        ensure!(!downgrade.status.success(), "it was not refused");
        ensure!(installed()? == after, "{after} became {}", installed()?);
        let said = String::from_utf8_lossy(&downgrade.stderr) + String::from_utf8_lossy(&downgrade.stdout);
        let why = said.lines().find(|line| line.starts_with("tfo: ")).context("no line says why")?.to_owned();
        settled(format!("refused: {why}"))
    })?;
    step("all until here", || {
        let readings = watch.end()?;
        Ok(format!("the counters were read {readings} times, and none has shrunk"))
    })
}

/// Steps after the reboot.
pub(crate) fn after_reboot() -> Result<()> {
    step("boot without the interface", || {
        eventually(|| {
            let status = run("systemctl show --property StatusText --value tfo")?;
            ensure!(status.contains(INTERFACE), "the status says nothing of {INTERFACE}: {status}");
            Ok(status)
        })
    })?;
    make_network()?;
    step("reboot with an order in force", || {
        eventually(|| run("systemctl is-active tfo"))?;
        eventually(is_hidden)?;
        run("tfo hide --list")
    })?;
    let traffic = Traffic::start()?;
    step("serve after the reboot", || {
        eventually(|| {
            ensure!(counts::class("cookie_current")? > 0, "no valid cookie was counted");
            Ok(())
        })?;
        Ok(format!("{} connections, 0 lost", traffic.served()?))
    })?;
    step("purge", || {
        run("apt-get purge --yes tfo")?;
        let before = traffic.served()?;
        eventually(|| {
            let left = leftovers()?;
            ensure!(left.is_empty(), "these are left: {}", left.join(", "));
            let link = run(&format!("ip link show dev {INTERFACE}"))?;
            ensure!(!link.contains("xdp"), "a program is attached: {link}");
            ensure!(traffic.served()? > before + 10, "no connection since");
            Ok(())
        })?;
        Ok(format!("nothing is left; {} connections, 0 lost", traffic.served()?))
    })
}

/// Returns the state and the version of the package.
fn installed() -> Result<String> {
    let state = run("dpkg-query --show --showformat '${db:Status-Abbrev} ${Version}' tfo")?;
    ensure!(state.starts_with("ii "), "the package is half installed: {state}");
    let versions: serde_json::Value = serde_json::from_str(&run("tfo version --json")?)?;
    Ok(format!("{state}, layout {}", versions["map_layout"]))
}

/// Writes the configuration, with these services.
fn configure(services: &[&str]) -> Result<()> {
    let example =
        fs::read_to_string(CONFIGURATION).with_context(|| format!("cannot read {CONFIGURATION}"))?;
    let own = example.split("\n# Added\n").next().unwrap_or_default();
    let mut text = own.replace("interfaces = [\"eth0\"]", &format!("interfaces = [\"{INTERFACE}\"]"));
    text.push_str("\n# Added\n");
    for (port, service) in (PORT..).zip(services) {
        text.push_str(&format!("[[service]]\nname = '{service}'\nports = [{port}]\nmode = \"shield\"\n"));
    }
    fs::write(CONFIGURATION, text).with_context(|| format!("cannot write {CONFIGURATION}"))
}

/// Runs a line of the shell, and returns the new process of the service, which has to be another one.
fn other_process(line: &str) -> Result<String> {
    let pid = || run("systemctl show --property MainPID --value tfo");
    let before = pid()?;
    run(line)?;
    eventually(|| {
        let now = pid()?;
        ensure!(now != before && now != "0", "the process is still {before}");
        Ok(now)
    })
}

/// Fails unless the order is in force.
fn is_hidden() -> Result<()> {
    let list = run("tfo hide --list")?;
    ensure!(list.contains(HIDDEN), "`tfo hide --list` says: {list}");
    Ok(())
}
