//! Common servers and clients: nginx with `fastopen=`, curl with `--tcp-fastopen`.

use std::{
    fs,
    net::{IpAddr, TcpStream},
    process::{Child, Command, Stdio},
};

use tfo_common::{class::Class, segment::Family};
use tfo_tests::netns::{Counts, IFACE, Running, eventually, key, server_and_client, set_keys};
use tfo_userspace::{
    kernel::tcp_ext::TcpExt,
    lab::net::{Namespace, SERVERS},
};

const PAGE: &str = "hello from nginx";

/// nginx in the calling thread's namespace, ended when dropped.
struct Nginx {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Nginx {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = dir.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {root}/{name};\n"))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;\n\
             events {{}}\n\
             http {{ access_log off; {temporary} server {{\n\
             listen 80 fastopen=256; listen [::]:80 fastopen=256 ipv6only=on;\n\
             location / {{ return 200 \"{PAGE}\"; }} }} }}\n"
        );
        let path = dir.path().join("nginx.conf");
        fs::write(&path, config).expect("a file in it");
        let child = Command::new("nginx")
            .arg("-c")
            .arg(path)
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx is installed");
        let nginx = Self { child, _dir: dir };
        eventually("nginx listens", || {
            SERVERS.iter().all(|server| TcpStream::connect((server.ip(), 80)).is_ok())
        });
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.child.kill().expect("nginx runs");
        self.child.wait().expect("nginx ends");
    }
}

/// Returns the page that curl gets with Fast Open from `client`'s namespace.
fn curl(client: &Namespace, server: IpAddr) -> String {
    let host = if server.is_ipv6() { format!("[{server}]") } else { server.to_string() };
    let output = client.run(|| {
        Ok(Command::new("curl")
            .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "10", "--tcp-fastopen"])
            .arg(format!("http://{host}/"))
            .output()?)
    });
    let output = output.expect("curl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn nginx_and_curl() {
    server_and_client(|client| {
        // nginx's own connections use the loopback, on which there is no program.
        let _nginx = Nginx::start();
        let before = TcpExt::read().unwrap();
        let _tfo = Running::start(&["-i", IFACE]);
        set_keys(IFACE, key(1), None);

        for (family, server) in Family::ALL.iter().zip(SERVERS) {
            set_keys(IFACE, key(1), None);
            // The client requests a cookie, uses it, uses it again under the backup key, and then uses the fresh
            // cookie.
            let visits = [
                (Class::CookieRequest, 0),
                (Class::CookieCurrent, 1),
                (Class::CookieBackup, 1),
                (Class::CookieCurrent, 2),
            ];
            for (class, with_data) in visits {
                if class == Class::CookieBackup {
                    set_keys(IFACE, key(2), Some(key(1)));
                }
                assert_eq!(curl(&client, server.ip()), PAGE);
                let tally = Counts::of(IFACE).syn(*family, class);
                assert_eq!(tally.with_data, with_data, "{family} {class}: the request is in the SYN");
                assert_eq!(tally.packets, with_data.max(1));
                Counts::of(IFACE).assert_agree(before);
            }
        }
        let kernel = TcpExt::read().unwrap() - before;
        assert_eq!((kernel.cookie_reqd, kernel.passive, kernel.passive_alt_key), (2, 6, 2));
    });
}
