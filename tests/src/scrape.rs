//! Scrapes of `tfo run --metrics`, by a client of a few lines: one that can also be slow, rude, or many.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
};

use crate::netns::{PATIENCE, Running};

/// Where the tests have metrics served, in namespaces of their own.
pub const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9434);
/// It, as an argument.
pub const METRICS: [&str; 2] = ["--metrics", "127.0.0.1:9434"];

/// Starts `tfo run -i INTERFACE MORE` with metrics.
pub fn run(interface: &str, more: &[&str]) -> Running {
    Running::start(&[&["-i", interface], &METRICS as &[&str], more].concat())
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The head, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Connects to [`ADDRESS`].
pub fn connect() -> TcpStream {
    let stream = TcpStream::connect(ADDRESS).expect("metrics are served");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// What is answered to `METHOD PATH` with that `Accept`.
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

/// What is answered to a `GET` of `path`, without wishes.
pub fn get(path: &str) -> Answer {
    ask("GET", path, "*/*").expect("an answer")
}

/// The samples of a scrape: each row as it is written, labels and all, with its value as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples(BTreeMap<String, String>);

impl Samples {
    /// Those that are served now.
    pub fn now() -> Self {
        let answer = get("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Self::of(&answer.body)
    }

    /// Those in `text`.
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

    /// The value of `row`.
    pub fn get(&self, row: &str) -> &str {
        self.0.get(row).unwrap_or_else(|| panic!("no row {row} in {:#?}", self.0))
    }

    /// The value of `row`, a number without a fraction.
    pub fn number(&self, row: &str) -> u64 {
        self.get(row).parse().unwrap_or_else(|error| panic!("{row}: {error}"))
    }

    /// The rows of the metric `name`.
    pub fn rows_of(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(move |row| name_of(row) == name)
    }

    /// The names of all metrics.
    pub fn names(&self) -> std::collections::BTreeSet<&str> {
        self.0.keys().map(|row| name_of(row)).collect()
    }
}

fn name_of(row: &str) -> &str {
    row.split('{').next().unwrap_or(row)
}
