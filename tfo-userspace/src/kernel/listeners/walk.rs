//! The walk over all listening sockets by a BPF iterator. It sees what sock_diag does not show, such as the SYN queue.

use std::{
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{Iter, SchedClassifier, TestRun as _, TestRunOptions},
};
use nix::unistd::geteuid;
use tfo_common::{
    keyring::STORES,
    listener::{FIELDS, Field, KEY_RECORD, KeyRecord, Places, RECORD, Record},
    names::{LISTENER_KEYS_PROGRAM, LISTENERS_PROGRAM, MARK_PROGRAM, PLACES},
};
use zeroize::Zeroizing;

use crate::{
    kernel::{btf::Structures, locked_memory},
    model::keys::PortKeys,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/listeners"));

/// Length of the buffer that the kernel fills in one call, in bytes (`bpf_iter_inc_seq_num` in kernel/bpf/bpf_iter.c:
/// eight pages). A page may be larger, and then a call fills less than the kernel could.
const BUFFER: usize = 8 * 4096;

/// The loaded programs: that which reads the listeners, that which reads keys, and the one that marks listeners, once it is
/// needed.
pub struct Walk {
    ebpf: Ebpf,
    /// Reason why the program that reads keys is not loaded.
    without_keys: Option<String>,
}

impl Walk {
    /// Loads the program. It needs Linux 5.9 with type information, and takes some 100 ms.
    pub fn load() -> Result<Self> {
        if !geteuid().is_root() {
            bail!("only root can read them: run it with sudo");
        }
        locked_memory::lift_limit();
        let places = places()?;
        let refused = "cannot load the program that reads them (Linux 5.9, CAP_BPF, CAP_PERFMON)";
        // The loader also has the kernel's type information, and is gone before that is read once more.
        let mut ebpf =
            EbpfLoader::new().override_global(PLACES, &places, true).load(OBJECT).context(refused)?;
        let btf = Btf::from_sys_fs().context("cannot read the kernel's type information")?;
        iterator(&mut ebpf, LISTENERS_PROGRAM)?.load("tcp", &btf).context(refused)?;
        let keys = iterator(&mut ebpf, LISTENER_KEYS_PROGRAM)?.load("tcp", &btf).context(refused);
        Ok(Self { ebpf, without_keys: keys.err().map(|error| format!("{error:#}")) })
    }

    /// Loads the program for [`mark`](Self::mark), too, unless it is loaded. It needs Linux 5.3.
    pub fn load_marker(&mut self) -> Result<()> {
        let marker = marker(&mut self.ebpf)?;
        if marker.fd().is_ok() {
            return Ok(());
        }
        marker.load().context("cannot load the program that marks listeners")
    }

    /// Marks the listener of `record`, or its group: from now on, the kernel takes SYN cookies for it for two minutes. The
    /// kernel does that only while `net.ipv4.tcp_syncookies` is 2, or while the listener's SYN queue is full. A listener
    /// that is bound to an interface is found only if it is that with the index `interface`.
    pub fn mark(&mut self, record: &Record, interface: u32) -> Result<()> {
        let frame = syn(record);
        // As `struct __sk_buff`, whose eleventh word is the index of the interface.
        let mut context = [0_u8; 192];
        context[40..44].copy_from_slice(&interface.to_ne_bytes());
        let run = TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), ..TestRunOptions::new() };
        let result =
            marker(&mut self.ebpf)?.test_run(run).context("cannot run the program that marks listeners")?;
        let code = result.return_value.cast_signed();
        ensure!(code >= 0, "the kernel does not mark it ({code})");
        Ok(())
    }

    /// Reads the state of each listener of the calling thread's network namespace (`bpf_iter_init_seq_net`). It takes
    /// about a microsecond for each, and a millisecond for the hash table. Sockets that begin or end meanwhile may be
    /// missing.
    pub fn read(&mut self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let take = |record: &[u8; RECORD]| records.push(Record::from_bytes(record));
        each(iterator(&mut self.ebpf, LISTENERS_PROGRAM)?, take)?;
        Ok(records)
    }

    /// Reads the keys of the listeners that have Fast Open on and keys of their own, by port. There is room for as many ports as
    /// there are key domains; those beyond are left out.
    ///
    /// The kernel's memory is read, so no process has to be asked, in whatever container it runs. Call it below
    /// [`leaving_no_trace`](crate::util::secrecy::leaving_no_trace).
    pub fn read_keys(&mut self) -> Result<Zeroizing<Vec<PortKeys>>> {
        if let Some(why) = &self.without_keys {
            bail!("{why}");
        }
        // The buffer must not grow: growing would leave a copy of the keys behind.
        let mut ports: Zeroizing<Vec<PortKeys>> = Zeroizing::new(Vec::with_capacity(STORES - 1));
        each(iterator(&mut self.ebpf, LISTENER_KEYS_PROGRAM)?, |record: &[u8; KEY_RECORD]| {
            let (port, primary, backup) = KeyRecord::read(record);
            if let Some(keys) = ports.iter_mut().find(|keys| keys.port == port) {
                keys.add(primary, backup);
            } else if ports.len() < STORES - 1 {
                ports.push(PortKeys::new(port, primary, backup));
            }
        })?;
        Ok(ports)
    }
}

/// Runs `program`, which writes records of `N` bytes, and passes each to `take`.
fn each<const N: usize>(program: &mut Iter, mut take: impl FnMut(&[u8; N])) -> Result<()> {
    let link = program.attach().context("cannot begin to read the listeners")?;
    let mut file = program.take_link(link)?.into_file().context("cannot begin to read the listeners")?;
    let mut buffer = Zeroizing::new([0; BUFFER]);
    loop {
        match file.read(&mut *buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => buffer[..length].as_chunks::<N>().0.iter().for_each(&mut take),
            // The program has come to the first socket that does not listen.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot read the listeners"),
        }
    }
}

fn iterator<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Iter> {
    let program = ebpf.program_mut(name);
    Ok(program.with_context(|| format!("there is no program {name}"))?.try_into()?)
}

fn marker(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
    let program = ebpf.program_mut(MARK_PROGRAM);
    Ok(program.with_context(|| format!("there is no program {MARK_PROGRAM}"))?.try_into()?)
}

/// Destination of SYNs for a listener on all addresses. No other listener has these addresses of documentation (RFC 5737,
/// RFC 3849), as one may have a loopback address. The look-up does not ask whether they are the host's.
const NOBODY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 255);
/// See [`NOBODY_V4`].
const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xfffe);

/// Returns a SYN for the listener of `record`, for the program that marks it. It is never sent.
fn syn(record: &Record) -> Vec<u8> {
    const SOURCE_PORT: u16 = 1;
    const DATA_OFFSET: u8 = 5 << 4;
    const SYN: u8 = 2;

    let mut frame = vec![0; 12];
    match record.local_address() {
        IpAddr::V4(address) => {
            let address = if address.is_unspecified() { NOBODY_V4.octets() } else { address.octets() };
            frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
            frame.extend(address.repeat(2));
        }
        IpAddr::V6(address) => {
            let address = if address.is_unspecified() { NOBODY_V6.octets() } else { address.octets() };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend(address.repeat(2));
        }
    }
    frame.extend(SOURCE_PORT.to_be_bytes());
    frame.extend(record.port.to_be_bytes());
    frame.extend([0; 8]);
    frame.extend([DATA_OFFSET, SYN, 0, 0, 0, 0, 0, 0]);
    frame
}

/// Name of the helper that makes SYN cookies for XDP, in the kernel's list of helpers. Linux 6.0 and later.
const MAKER: &str = "BPF_FUNC_tcp_raw_gen_syncookie_ipv4";

/// Whether this kernel can make SYN cookies for XDP.
pub fn makes_cookies() -> Result<bool> {
    found().map(|found| found.makes_cookies)
}

/// Name of the helper that tells the length of a frame in several buffers. Linux 5.18 and later.
const WHOLE_LENGTH: &str = "BPF_FUNC_xdp_get_buff_len";

/// Whether this kernel shows frames in several buffers to XDP programs. False without its type information.
pub fn shows_multi_buffers() -> bool {
    found().is_ok_and(|found| found.shows_multi_buffers)
}

/// Finds the fields of sockets in this kernel's structures. Later calls return the first result.
pub fn places() -> Result<Places> {
    found().map(|found| found.places)
}

/// Whether this kernel's structures have the fields that tell how a client's connection began.
pub fn shows_clients() -> Result<bool> {
    found().map(|found| found.shows_clients)
}

/// Facts from the kernel's type information. Nothing can change them while it runs.
#[derive(Clone, Copy)]
struct Found {
    places: Places,
    makes_cookies: bool,
    shows_multi_buffers: bool,
    shows_clients: bool,
}

fn found() -> Result<Found> {
    static FOUND: OnceLock<Result<Found, String>> = OnceLock::new();
    FOUND
        .get_or_init(|| find().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!("{error}"))
}

fn find() -> Result<Found> {
    let structures = Structures::read()?;
    let mut places = [0; FIELDS];
    let mut shows_clients = true;
    for field in Field::ALL {
        let (structure, path) = path(field);
        let place = structures.place(structure, path);
        places[field as usize] = match field {
            // A kernel without IPv6 has neither this field nor sockets that have it.
            Field::AddressV6 => place.unwrap_or_default(),
            // Without these, connections to this host are followed all the same.
            Field::FastOpenRequest | Field::SynFastOpen | Field::SynData => {
                shows_clients &= place.is_ok();
                place.unwrap_or_default()
            }
            _ => place?,
        };
    }
    let [makes_cookies, shows_multi_buffers] = [MAKER, WHOLE_LENGTH].map(|name| structures.has_name(name));
    Ok(Found { places, makes_cookies, shows_multi_buffers, shows_clients })
}

/// Returns the structure that has `field`, and the path to it.
const fn path(field: Field) -> (&'static str, &'static str) {
    let path = match field {
        Field::GroupOverflow => return ("sock_reuseport", "synq_overflow_ts"),
        Field::Keys => return ("tcp_fastopen_context", "key"),
        Field::KeyCount => return ("tcp_fastopen_context", "num"),
        Field::Family => "inet_conn.icsk_inet.sk.__sk_common.skc_family",
        Field::State => "inet_conn.icsk_inet.sk.__sk_common.skc_state",
        Field::Port => "inet_conn.icsk_inet.sk.__sk_common.skc_num",
        Field::AddressV4 => "inet_conn.icsk_inet.sk.__sk_common.skc_rcv_saddr",
        Field::AddressV6 => "inet_conn.icsk_inet.sk.__sk_common.skc_v6_rcv_saddr",
        Field::Cookie => "inet_conn.icsk_inet.sk.__sk_common.skc_cookie",
        Field::ReusePort => "inet_conn.icsk_inet.sk.__sk_common.skc_reuseport",
        Field::AcceptQueue => "inet_conn.icsk_inet.sk.sk_ack_backlog",
        Field::AcceptLimit => "inet_conn.icsk_inet.sk.sk_max_ack_backlog",
        Field::Group => "inet_conn.icsk_inet.sk.sk_reuseport_cb",
        Field::Overflow => "rx_opt.ts_recent_stamp",
        Field::SynQueue => "inet_conn.icsk_accept_queue.qlen",
        Field::FastOpenQueue => "inet_conn.icsk_accept_queue.fastopenq.qlen",
        Field::FastOpenLimit => "inet_conn.icsk_accept_queue.fastopenq.max_qlen",
        Field::OwnKeys => "inet_conn.icsk_accept_queue.fastopenq.ctx",
        Field::NoCookie => "fastopen_no_cookie",
        Field::ReceiveBuffer => "inet_conn.icsk_inet.sk.sk_rcvbuf",
        Field::UserLocks => "inet_conn.icsk_inet.sk.sk_userlocks:1",
        Field::WindowClamp => "window_clamp",
        Field::FastOpenRequest => "fastopen_req",
        Field::SynFastOpen => "syn_fastopen",
        Field::SynData => "syn_data",
    };
    ("tcp_sock", path)
}
