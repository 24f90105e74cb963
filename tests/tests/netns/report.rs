//! `tfo report` with real traffic, and its page in a browser.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tfo_common::{class::Class, segment::Family};
use tfo_tests::netns::{
    Counts, IFACE, Running, eventually, failure, ip, key, sandbox, server_and_client, set_keys, status, tfo,
};
use tfo_userspace::lab::{
    client::{Syn, fast_open, ordinary},
    net::{SERVERS, server, source},
    server::Listeners,
};

/// Returns the document that a browser makes of the page at `path`.
fn dom(path: &Path) -> String {
    let profile = TempDir::new().expect("a folder");
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--allow-file-access-from-files", "--virtual-time-budget=10000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg("--dump-dom")
        .arg(format!("file://{}", path.display()))
        .env("HOME", profile.path())
        .stdin(Stdio::null())
        .output()
        .expect("Debian's chromium is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {:?}", output.status, failure(&output));
    said
}

/// Writes the page into `path` by `tfo report`, and returns its text.
fn write(path: &Path) -> String {
    let output = tfo(&["report", "--html", path.to_str().expect("a path that is text"), "-i", IFACE]);
    assert!(output.status.success(), "{:?}", failure(&output));
    assert!(output.stdout.is_empty());
    fs::read_to_string(path).expect("the page")
}

/// Returns the cells of the row that begins with `name`, without the spaces between thousands.
fn row(dom: &str, name: &str) -> Vec<String> {
    let (_, rest) =
        dom.split_once(&format!("<tr><td>{name}</td>")).unwrap_or_else(|| panic!("{name}: {dom}"));
    let (cells, _) = rest.split_once("</tr>").expect("the end of the row");
    let text = |cell: &str| cell.strip_suffix("</td>").expect("the end of the cell").replace('\u{202f}', "");
    cells.split("<td>").skip(1).map(text).collect()
}

/// Connects three clients of each family: they request a cookie, use it, and use it after the second change of keys.
/// Forged cookies and plain connections follow.
fn traffic(client: &tfo_userspace::lab::net::Namespace) {
    let from_all = |connect: &(dyn Fn(Family, u16) -> anyhow::Result<()> + Sync)| {
        let all = || {
            for family in Family::ALL {
                (0..3).try_for_each(|n| connect(*family, n))?;
            }
            Ok(())
        };
        client.run(all).expect("all connect");
    };
    let open = |family, n| fast_open(source(family, n), server(family), b"data");
    set_keys(IFACE, key(1), None);
    from_all(&open);
    from_all(&open);
    set_keys(IFACE, key(2), None);
    from_all(&open);
    from_all(&|family, n| ordinary(source(family, n), server(family), b"data"));
    from_all(&|family, n| {
        let syn = Syn::new(40_000 + n, server(family).port(), 1).fast_open(&[7; 8]);
        syn.send(source(family, n), server(family).ip())
    });
    client
        .run(|| {
            let syn = Syn::new(40_100, server(Family::ALL[0]).port(), 1).fin();
            syn.send(source(Family::ALL[0], 9), server(Family::ALL[0]).ip())
        })
        .expect("it is sent");
}

#[test]
fn the_page_has_the_figures_and_fits_a_phone() {
    server_and_client(|client| {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("report.html");
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let _tfo = Running::start(&["-i", IFACE]);
        // Everything is attached before it accepts requests.
        eventually("it takes orders", || tfo(&["report", "--html", "-"]).status.success());
        assert!(write(&path).contains("No SYN came"), "what comes now is in the history");
        traffic(&client);
        eventually("all SYNs are counted", || Counts::of(IFACE).class(Class::CookieUnknown) == 6);
        let html = write(&path);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");

        let dom_ = dom(&path);
        assert!(dom_.contains("30 SYNs came, 80.0% of them with Fast Open."), "{dom_}");
        // Requests and plain SYNs are not judged. The kernel counts retired and forged cookies as refused. If tfo
        // follows connections, only good cookies count as refused.
        let outcomes = Counts::of(IFACE).field("outcomes") == true;
        let refused = if outcomes { "refused 0 good cookies" } else { "refused 12 cookies" };
        assert!(dom_.contains("Fast Open opened 6 connections, which saved"), "{dom_}");
        assert!(dom_.contains(refused) && dom_.contains("of waiting in all") == outcomes, "{dom_}");
        assert!(dom_.contains("6 round trips lost to rotations of keys: --mode accelerate"), "{dom_}");
        for class in Class::ALL {
            let packets = Counts::of(IFACE).class(*class);
            assert_eq!(row(&dom_, class.name())[0], packets.to_string(), "{class}");
        }
        assert_eq!(row(&dom_, "cookie_current")[1..], ["20.0%", "6"]);
        assert_eq!(row(&dom_, "TCPFastOpenPassive"), ["6"]);
        assert_eq!(row(&dom_, "TCPFastOpenPassiveFail"), ["12"]);
        assert_eq!(row(&dom_, "tcp_flags"), ["1"]);
        assert_eq!(row(&dom_, "current").len(), 3);
        // The plots have a line for each class that came, for accepted, refused and saved, and for five counters of the
        // kernel.
        assert_eq!(dom_.matches("stroke-width=\"4\"").count(), 5 + 2 + usize::from(outcomes) + 5, "{dom_}");
        assert_eq!(dom_.contains("nothing on this host measures round trips"), !outcomes, "{dom_}");

        assert_needs_nothing_else(&html);
        for key in status(IFACE)["keys"]["retired"].as_array().unwrap() {
            assert!(!html.contains(key.as_str().unwrap()), "fingerprints are of no use here");
        }
        assert!(!html.contains("198.1") && !html.contains("2001:db8"), "no address is in it");
        for width in [320, 360, 1200] {
            assert_fits(folder.path(), &html, width);
        }
    });
}

/// Panics if the page refers to anything that a browser would fetch or run.
fn assert_needs_nothing_else(html: &str) {
    // This is a name, not an address.
    let html = html.replace("http://www.w3.org/2000/svg", "");
    for reference in
        ["://", "src=", "href", "url(", "@import", "<script", "<link", "<iframe", "<img", "<object"]
    {
        assert!(!html.contains(reference), "{reference}");
    }
    assert!(html.contains("default-src 'none'"));
}

/// Panics unless the page fits into a window of this width. On most phones, all text must be at least 14 pixels high.
fn assert_fits(folder: &Path, html: &str, width: u32) {
    // A script in a copy measures the page in a frame, since a window can't be as narrow as a phone.
    let measure = "<script>onload = () => {
        let smallest = 1000, furthest = 0;
        const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) {
            if (!texts.currentNode.data.trim()) continue;
            const element = texts.currentNode.parentElement;
            const svg = element.ownerSVGElement;
            const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
            smallest = Math.min(smallest, parseFloat(getComputedStyle(element).fontSize) * scale);
            furthest = Math.max(furthest, element.getBoundingClientRect().right);
        }
        parent.postMessage([document.documentElement.scrollWidth, innerWidth, furthest, smallest].join(' '), '*');
    }</script></body>";
    let without_policy = html.replace("default-src 'none'; style-src 'unsafe-inline'", "");
    assert_ne!(without_policy, html);
    fs::write(folder.join("copy.html"), without_policy.replace("</body>", measure)).expect("it is written");
    let frame = format!(
        "<script>onmessage = message => document.title = message.data</script>
         <iframe src='copy.html' style='width: {width}px; height: 800px; border: 0'></iframe>"
    );
    let frame_path = folder.join("frame.html");
    fs::write(&frame_path, frame).expect("it is written");
    let dom = dom(&frame_path);
    let title = dom.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
    let (title, _) = title.unwrap_or_else(|| panic!("the script did not run: {dom}"));
    let numbers: Vec<f64> = title.split(' ').map(|number| number.parse().expect("a number")).collect();
    let [page, window, furthest, smallest] = numbers[..] else { panic!("{title}") };
    assert_eq!(window, f64::from(width));
    assert!(page <= window && furthest <= window, "at {width}: {page}, {furthest}");
    assert!(smallest >= 14.0 || width < 360, "at {width}: {smallest}");
}

#[test]
fn only_a_file_is_replaced_and_a_controller_must_run() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let report = |to: &str| tfo(&["report", "--html", to]);
        assert_eq!(report("-").status.code(), Some(3));

        let running = Running::start(&["-i", "v0"]);
        eventually("it takes orders", || report("-").status.success());
        let page = String::from_utf8(report("-").stdout).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<h2>v0</h2>"), "{page}");

        fs::write(path("mine"), "precious").unwrap();
        symlink(path("mine"), path("link")).unwrap();
        for (to, why) in
            [("link", "no regular file"), ("", "no regular file"), ("no/where", "cannot make a file")]
        {
            let (code, said) = failure(&report(&path(to)));
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains(why) && said.contains(&path(to)), "{said}");
        }
        let (code, said) = failure(&report("/dev/null"));
        assert_eq!((code, said.contains("no regular file")), (Some(1), true), "{said}");
        assert_eq!(fs::read_to_string(path("mine")).unwrap(), "precious");
        assert!(report(&path("mine")).status.success());
        assert!(fs::read_to_string(path("mine")).unwrap().starts_with("<!DOCTYPE html>"));

        // A program without a controller has no history.
        running.kill();
        let (code, said) = failure(&report(&path("mine")));
        assert_eq!((code, said.contains("v0")), (Some(3), true), "{said}");
        Running::start(&["-i", "v0"]).end(Signal::SIGINT);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    });
}
