//! The walk over all listening sockets by a BPF iterator. It sees what sock_diag does not show, such as the SYN queue.

use std::io::{self, Read as _};

use anyhow::{Context as _, Result, bail};
use aya::{Btf, Ebpf, EbpfLoader, programs::Iter};
use nix::unistd::geteuid;
use tfo_common::{
    listener::{FIELDS, Field, Places, RECORD, Record},
    names::{LISTENERS_PROGRAM, PLACES},
};

use crate::kernel::{btf::Structures, locked_memory};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/listeners"));

/// Length of the buffer that the kernel fills in one call, in bytes (`bpf_iter_inc_seq_num` in kernel/bpf/bpf_iter.c:
/// eight pages). A page may be larger, and then a call fills less than the kernel could.
const BUFFER: usize = 8 * 4096;

/// The loaded program.
pub struct Walk(Ebpf);

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
        iterator(&mut ebpf)?.load("tcp", &btf).context(refused)?;
        Ok(Self(ebpf))
    }

    /// Reads the state of each listener of the calling thread's network namespace (`bpf_iter_init_seq_net`). It takes
    /// about a microsecond for each, and a millisecond for the hash table. Sockets that begin or end meanwhile may be
    /// missing.
    pub fn read(&mut self) -> Result<Vec<Record>> {
        let program = iterator(&mut self.0)?;
        let link = program.attach().context("cannot begin to read the listeners")?;
        let mut file = program.take_link(link)?.into_file().context("cannot begin to read the listeners")?;
        let mut records = Vec::new();
        let mut buffer = [0; BUFFER];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(records),
                Ok(length) => {
                    records.extend(buffer[..length].as_chunks::<RECORD>().0.iter().map(Record::from_bytes));
                }
                // The program has come to the first socket that does not listen.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(records),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read the listeners"),
            }
        }
    }
}

fn iterator(ebpf: &mut Ebpf) -> Result<&mut Iter> {
    let program = ebpf.program_mut(LISTENERS_PROGRAM);
    Ok(program.with_context(|| format!("there is no program {LISTENERS_PROGRAM}"))?.try_into()?)
}

/// Finds the fields that the program reads.
fn places() -> Result<Places> {
    let structures = Structures::read()?;
    let mut places = [0; FIELDS];
    for field in Field::ALL {
        let (structure, path) = path(field);
        let place = structures.place(structure, path);
        places[field as usize] = match field {
            // A kernel without IPv6 has neither this field nor sockets that have it.
            Field::AddressV6 => place.unwrap_or_default(),
            _ => place?,
        };
    }
    Ok(places)
}

/// Returns the structure that has `field`, and the path to it.
const fn path(field: Field) -> (&'static str, &'static str) {
    let path = match field {
        Field::GroupOverflow => return ("sock_reuseport", "synq_overflow_ts"),
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
    };
    ("tcp_sock", path)
}
