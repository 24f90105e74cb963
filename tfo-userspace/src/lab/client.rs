//! Clients: real ones in the kernel's own stack, and SYNs that no kernel would send.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::TcpHeader;
use socket2::{Domain, Protocol, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(5);

/// Kind of the Fast Open option.
const FAST_OPEN: u8 = 34;
/// Experimental kind, room for the length, and the magic (RFC 7413, appendix A).
const EXPERIMENTAL: [u8; 4] = [254, 0, 0xf9, 0x89];

/// Connects from `source` to `server` with Fast Open and checks that `data` comes back. The SYN carries `data` if the
/// kernel holds a cookie; otherwise it is sent later.
pub fn fast_open(source: IpAddr, server: SocketAddr, data: &[u8]) -> Result<()> {
    let exchange = || -> Result<()> {
        let socket = bound(source, Type::STREAM, None)?;
        let sent = socket.send_to_with_flags(data, &server.into(), libc::MSG_FASTOPEN)?;
        expect_echo(socket.into(), sent, data)
    };
    exchange().with_context(|| format!("a Fast Open connection from {source} to {server} failed"))
}

/// Does the same without Fast Open.
pub fn ordinary(source: IpAddr, server: SocketAddr, data: &[u8]) -> Result<()> {
    let exchange = || -> Result<()> {
        let socket = bound(source, Type::STREAM, None)?;
        socket.connect(&server.into())?;
        expect_echo(socket.into(), 0, data)
    };
    exchange().with_context(|| format!("a connection from {source} to {server} failed"))
}

fn expect_echo(mut connection: TcpStream, sent: usize, data: &[u8]) -> Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.write_all(&data[sent..])?;
    connection.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    ensure!(answer == data, "sent {} bytes, got {} other ones back", data.len(), answer.len());
    Ok(())
}

/// TCP SYN, made byte by byte. The kernel puts the IP header before it.
#[derive(Clone, Debug)]
pub struct Syn {
    header: TcpHeader,
    options: Vec<u8>,
    data_offset: Option<u8>,
    data: Vec<u8>,
}

impl Syn {
    /// Makes a plain SYN.
    pub fn new(source_port: u16, server_port: u16, sequence: u32) -> Self {
        let mut header = TcpHeader::new(source_port, server_port, sequence, 64_240);
        header.syn = true;
        // Maximum segment size, 1460: without it the kernel falls back to 536.
        Self { header, options: vec![2, 4, 5, 180], data_offset: None, data: Vec::new() }
    }

    /// Adds a Fast Open option (kind 34) that holds `cookie`.
    pub fn fast_open(mut self, cookie: &[u8]) -> Self {
        self.options.extend([FAST_OPEN, cookie.len() as u8 + 2]);
        self.options.extend(cookie);
        self
    }

    /// Adds an option of one byte, so that the next option moves from an even to an odd offset or back.
    pub fn no_operation(mut self) -> Self {
        self.options.push(1);
        self
    }

    /// Adds an experimental Fast Open option (kind 254) that holds `cookie`.
    pub fn experimental(mut self, cookie: &[u8]) -> Self {
        let mut option = EXPERIMENTAL;
        option[1] = cookie.len() as u8 + 4;
        self.options.extend(option);
        self.options.extend(cookie);
        self
    }

    /// Adds data.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    /// Sets FIN, so that no listener takes the SYN.
    pub fn fin(mut self) -> Self {
        self.header.fin = true;
        self
    }

    /// Sets the data offset, in 32-bit words, which may be wrong.
    pub fn data_offset(mut self, words: u8) -> Self {
        self.data_offset = Some(words);
        self
    }

    /// Returns the segment's bytes. The checksum is computed before the data offset is replaced.
    fn bytes(&self, source: IpAddr, server: IpAddr) -> Result<Vec<u8>> {
        let mut header = self.header.clone();
        header.set_options_raw(&self.options)?;
        header.checksum = match (source, server) {
            (IpAddr::V4(source), IpAddr::V4(server)) => {
                header.calc_checksum_ipv4_raw(source.octets(), server.octets(), &self.data)?
            }
            (IpAddr::V6(source), IpAddr::V6(server)) => {
                header.calc_checksum_ipv6_raw(source.octets(), server.octets(), &self.data)?
            }
            _ => bail!("{source} and {server} are of different families"),
        };
        let mut bytes = header.to_bytes().to_vec();
        if let Some(words) = self.data_offset {
            bytes[12] = bytes[12] & 0xf | words << 4;
        }
        bytes.extend(&self.data);
        Ok(bytes)
    }

    /// Sends the SYN from `source`. The kernel resets any answer, since it knows of no such connection.
    pub fn send(&self, source: IpAddr, server: IpAddr) -> Result<()> {
        let bytes = self.bytes(source, server)?;
        let send = || -> io::Result<usize> {
            bound(source, Type::RAW, Some(Protocol::TCP))?.send_to(&bytes, &SocketAddr::new(server, 0).into())
        };
        send().with_context(|| format!("cannot send a SYN from {source} to {server}"))?;
        Ok(())
    }
}

/// Returns a socket bound to `source`, which need not be configured on an interface.
fn bound(source: IpAddr, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
    let address = SocketAddr::new(source, 0);
    let socket = Socket::new(Domain::for_address(address), kind, protocol)?;
    if source.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}
