//! Servers, with the configuration by which each asks for Fast Open.

/// Server of a Debian package.
pub(crate) struct Server {
    /// Name of the package.
    pub(crate) package: &'static str,
    /// Line of the configuration, or option, that asks for Fast Open. Empty if the server always asks.
    pub(crate) line: &'static str,
    /// Text in its place when the server shall not ask.
    pub(crate) without: &'static str,
    /// Files in its folder, each with its content. `DIR` is the folder, `LINE` the line.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// Shell commands that become the server by exec, with `DIR` and `LINE`.
    pub(crate) start: &'static str,
    /// Port.
    pub(crate) port: u16,
    /// Client that visits it.
    pub(crate) client: Client,
}

/// Client with Fast Open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// curl, over HTTP.
    Http,
    /// curl, over TLS.
    Https,
    /// kdig.
    Dns,
    /// curl, through ss-local, which has the connections to the server.
    Shadowsocks,
}

/// Content of the page that each web server or its backend has.
pub(crate) const PAGE: &str = "served with Fast Open";
/// Port of the backend of proxies, on the server's loopback address.
pub(crate) const BACKEND: u16 = 8000;
/// Address of the name `example.com` in each name server (RFC 5737).
pub(crate) const ADDRESS: &str = "192.0.2.7";
/// Package that has kdig.
pub(crate) const KDIG: &str = "knot-dnsutils";
/// Port of ss-local.
pub(crate) const SOCKS: u16 = 1080;
/// Command that is a client of [`Client::Shadowsocks`].
pub(crate) const SS_LOCAL: &str =
    "ss-local -s 198.18.0.1 -p 8388 -l 1080 -k secret -m chacha20-ietf-poly1305 --fast-open";

/// Zone of `example.com`.
const ZONE: &str = "@ SOA ns admin 1 7200 1800 259200 900\n@ NS ns\n@ A 192.0.2.7\nns A 192.0.2.1\n";

/// All servers, in the order of the table.
pub(crate) const SERVERS: [Server; 14] = [
    Server {
        package: "nginx",
        line: "listen 80 fastopen=256;",
        without: "listen 80;",
        files: &[(
            "nginx.conf",
            "daemon off; master_process off; pid DIR/pid; error_log stderr; events {}\n\
             http { access_log off; client_body_temp_path DIR/a; proxy_temp_path DIR/b;\n\
             fastcgi_temp_path DIR/c; uwsgi_temp_path DIR/d; scgi_temp_path DIR/e;\n\
             server { LINE\nlocation / { return 200 \"served with Fast Open\"; } } }\n",
        )],
        start: "exec nginx -c DIR/nginx.conf",
        port: 80,
        client: Client::Http,
    },
    Server {
        package: "haproxy",
        line: "bind :80 tfo",
        without: "bind :80",
        files: &[(
            "haproxy.cfg",
            "defaults\n mode http\n timeout client 5s\n timeout server 5s\n timeout connect 5s\n\
             frontend web\n LINE\n http-request return status 200 content-type text/plain string \"served with Fast Open\"\n",
        )],
        start: "exec haproxy -db -f DIR/haproxy.cfg",
        port: 80,
        client: Client::Http,
    },
    Server {
        package: "h2o",
        line: "tcp-fastopen: 256",
        without: "",
        files: &[
            (
                "h2o.conf",
                "LINE\nuser: root\nlisten:\n  port: 80\nhosts:\n  default:\n    paths:\n      /:\n        file.dir: DIR/web\n",
            ),
            ("web/index.html", PAGE),
        ],
        start: "exec h2o -c DIR/h2o.conf",
        port: 80,
        client: Client::Http,
    },
    Server {
        package: "unbound",
        line: "",
        without: "",
        files: &[(
            "unbound.conf",
            "server:\n  username: \"\"\n  chroot: \"\"\n  directory: \"DIR\"\n  pidfile: \"DIR/pid\"\n  use-syslog: no\n\
             \x20 interface: 0.0.0.0\n  access-control: 0.0.0.0/0 allow\n  module-config: iterator\n\
             \x20 local-zone: \"example.com.\" static\n  local-data: \"example.com. A 192.0.2.7\"\n",
        )],
        start: "exec unbound -d -c DIR/unbound.conf",
        port: 53,
        client: Client::Dns,
    },
    Server {
        package: "knot",
        line: "",
        without: "",
        files: &[
            (
                "knot.conf",
                "server:\n  rundir: DIR\n  listen: 0.0.0.0@53\ndatabase:\n  storage: DIR\n\
                 log:\n  - target: stderr\n    any: info\nzone:\n  - domain: example.com\n    file: DIR/zone\n",
            ),
            ("zone", ZONE),
        ],
        start: "exec knotd -c DIR/knot.conf",
        port: 53,
        client: Client::Dns,
    },
    Server {
        package: "knot-resolver",
        line: "",
        without: "",
        files: &[(
            "kresd.conf",
            "net.listen(\"0.0.0.0\", 53, {kind = \"dns\"})\nmodules.load(\"hints\")\nhints[\"example.com\"] = \"192.0.2.7\"\n",
        )],
        start: "exec kresd -n -c DIR/kresd.conf DIR",
        port: 53,
        client: Client::Dns,
    },
    Server {
        package: "pdns-recursor",
        line: "tcp-fast-open=256",
        without: "",
        files: &[
            (
                "recursor.conf",
                "local-address=0.0.0.0\nsocket-dir=DIR\nauth-zones=example.com=DIR/zone\nLINE\ndaemon=no\n\
                 security-poll-suffix=\nallow-from=0.0.0.0/0\n",
            ),
            ("zone", ZONE),
        ],
        start: "exec pdns_recursor --config-dir=DIR",
        port: 53,
        client: Client::Dns,
    },
    Server {
        package: "dnsdist",
        line: "setLocal(\"0.0.0.0:53\", {tcpFastOpenQueueSize=256})",
        without: "setLocal(\"0.0.0.0:53\")",
        files: &[(
            "dnsdist.conf",
            "LINE\nsetACL(\"0.0.0.0/0\")\nsetSecurityPollSuffix(\"\")\naddAction(AllRule(), SpoofAction(\"192.0.2.7\"))\n",
        )],
        start: "exec dnsdist --supervised --disable-syslog -C DIR/dnsdist.conf",
        port: 53,
        client: Client::Dns,
    },
    Server {
        package: "gdnsd",
        line: "tcp_fastopen => 512",
        without: "",
        files: &[
            (
                "config",
                "options => { listen => 0.0.0.0, run_dir => DIR/run, state_dir => DIR/state, LINE }\n",
            ),
            ("zones/example.com", ZONE),
        ],
        start: "exec gdnsd -c DIR start",
        port: 53,
        client: Client::Dns,
    },
    Server {
        package: "nghttp2-proxy",
        line: "fastopen=256",
        without: "",
        files: &[("nghttpx.conf", "frontend=0.0.0.0,80;no-tls\nbackend=127.0.0.1,8000\nworkers=1\nLINE\n")],
        start: "exec nghttpx --conf=DIR/nghttpx.conf",
        port: 80,
        client: Client::Http,
    },
    Server {
        package: "varnish",
        line: "-p tcp_fastopen=on",
        without: "",
        files: &[(
            "varnish.vcl",
            "vcl 4.1;\nbackend none none;\nsub vcl_recv { return (synth(200, \"served with Fast Open\")); }\n",
        )],
        start: "exec varnishd -F -a :80 -f DIR/varnish.vcl -n DIR/varnish -j none -s malloc,10m LINE",
        port: 80,
        client: Client::Http,
    },
    Server {
        package: "hitch",
        line: "tcp-fastopen = on",
        without: "",
        files: &[(
            "hitch.conf",
            "frontend = \"[0.0.0.0]:443\"\nbackend = \"[127.0.0.1]:8000\"\npem-file = \"DIR/pem\"\nworkers = 1\n\
             daemon = off\nuser = \"nobody\"\nLINE\n",
        )],
        start: "openssl req -x509 -newkey rsa:2048 -nodes -keyout DIR/key -out DIR/certificate -subj /CN=example.com\n\
                cat DIR/key DIR/certificate > DIR/pem\nexec hitch --config=DIR/hitch.conf",
        port: 443,
        client: Client::Https,
    },
    Server {
        package: "trafficserver",
        line: "CONFIG proxy.config.net.sock_option_flag_in INT 9",
        without: "CONFIG proxy.config.net.sock_option_flag_in INT 1",
        files: &[
            (
                "etc/trafficserver/records.config",
                "CONFIG proxy.config.http.server_ports STRING 80\nLINE\n\
                 CONFIG proxy.config.admin.user_id STRING nobody\nCONFIG proxy.config.http.cache.http INT 0\n\
                 CONFIG proxy.config.log.logging_enabled INT 0\nCONFIG proxy.config.log.logfile_dir STRING DIR\n\
                 CONFIG proxy.config.diags.logfile.enabled INT 0\n",
            ),
            ("etc/trafficserver/storage.config", ""),
            ("etc/trafficserver/remap.config", "map / http://127.0.0.1:8000/\n"),
        ],
        start: "mkdir /run/trafficserver\nchmod -R a+rwX DIR /run/trafficserver\nexec traffic_server",
        port: 80,
        client: Client::Http,
    },
    Server {
        package: "shadowsocks-libev",
        line: "\"fast_open\": true",
        without: "\"fast_open\": false",
        files: &[(
            "config.json",
            "{\"server\": \"0.0.0.0\", \"server_port\": 8388, \"password\": \"secret\", \"method\": \"chacha20-ietf-poly1305\", LINE}\n",
        )],
        start: "exec ss-server -c DIR/config.json",
        port: 8388,
        client: Client::Shadowsocks,
    },
];

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// The page has the line that was tried.
    #[test]
    fn docs_have_every_line() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/servers.md");
        let page = fs::read_to_string(page).unwrap();
        for Server { package, line, .. } in &SERVERS {
            let row = page.lines().find(|row| row.starts_with(&format!("| {package} |")));
            let row = row.unwrap_or_else(|| panic!("docs/servers.md has no row for {package}"));
            assert!(line.is_empty() || row.contains(&format!("`{line}`")), "{package}: {row}");
        }
    }

    #[test]
    fn the_line_is_in_files_or_command() {
        for Server { package, line, files, start, .. } in &SERVERS {
            let has = start.contains("LINE") || files.iter().any(|(_, text)| text.contains("LINE"));
            assert_eq!(has, !line.is_empty(), "{package}");
        }
    }
}
