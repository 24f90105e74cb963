//! Scrapes of `tfo run --metrics` by a minimal client, which can also be slow.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
};

use crate::netns::{PATIENCE, Running, ip, sandbox};

/// Address of the metrics in tests. Each test has its own namespace.
pub const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9434);
/// Arguments that make `tfo run` serve metrics at [`ADDRESS`].
pub const METRICS: [&str; 2] = ["--metrics", "127.0.0.1:9434"];

/// Runs `test` in a sandbox with an interface `v0`, and with the loopback up, over which metrics are served.
pub fn with_interface(test: impl FnOnce() + Send) {
    sandbox(|| {
        ip("link set lo up");
        ip("link add v0 type veth peer name v1");
        test();
    });
}

/// Starts `tfo run -i INTERFACE MORE` with metrics.
pub fn run(interface: &str, more: &[&str]) -> Running {
    Running::start(&[&["-i", interface], &METRICS as &[&str], more].concat())
}

/// Answer to an HTTP request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Head, in lower case.
    pub head: String,
    /// Body.
    pub body: String,
}

/// Connects to [`ADDRESS`].
pub fn connect() -> TcpStream {
    let stream = TcpStream::connect(ADDRESS).expect("metrics are served");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// Returns the answer to `METHOD PATH` with this `Accept` header.
pub fn ask(method: &str, path: &str, accept: &str) -> io::Result<Answer> {
    let mut stream = connect();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: tfo\r\nAccept: {accept}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
}

/// Returns the answer to a `GET` of `path`, in any format.
pub fn get(path: &str) -> Answer {
    ask("GET", path, "*/*").expect("an answer")
}

/// Samples of a scrape: each row as text, labels included, with its value as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples(BTreeMap<String, String>);

impl Samples {
    /// Scrapes the metrics.
    pub fn now() -> Self {
        let answer = get("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Self::of(&answer.body)
    }

    /// Reads the samples in `text`.
    pub fn of(text: &str) -> Self {
        let rows = text.lines().filter(|line| !line.starts_with('#'));
        let rows = rows.map(|line| line.rsplit_once(' ').expect("a sample and its value"));
        let mut samples = BTreeMap::new();
        for (row, value) in rows {
            let earlier = samples.insert(row.to_owned(), value.to_owned());
            assert_eq!(earlier, None, "{row} is there twice");
        }
        Self(samples)
    }

    /// Returns the value of `row`.
    pub fn get(&self, row: &str) -> &str {
        self.0.get(row).unwrap_or_else(|| panic!("no row {row} in {:#?}", self.0))
    }

    /// Returns the value of `row` as an integer.
    pub fn number(&self, row: &str) -> u64 {
        self.get(row).parse().unwrap_or_else(|error| panic!("{row}: {error}"))
    }

    /// Returns the rows of the metric `name`.
    pub fn rows_of(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(move |row| name_of(row) == name)
    }

    /// Returns the names of all metrics.
    pub fn names(&self) -> std::collections::BTreeSet<&str> {
        self.0.keys().map(|row| name_of(row)).collect()
    }
}

fn name_of(row: &str) -> &str {
    row.split('{').next().unwrap_or(row)
}
