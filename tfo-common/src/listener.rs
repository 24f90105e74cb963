//! State of a listening socket, as the program `iter/tcp` writes it for each listener of a network namespace, and places of
//! fields in the kernel's sockets.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::cookie::Key;

/// Field of a kernel structure that the program reads. Its place in the structure is known at load time only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Field {
    /// Address family: `AF_INET` or `AF_INET6`.
    Family = 0,
    /// State of the socket.
    State,
    /// Local port, in host byte order.
    Port,
    /// Local IPv4 address.
    AddressV4,
    /// Local IPv6 address.
    AddressV6,
    /// Cookie of the socket.
    Cookie,
    /// Byte with the bit for SO_REUSEPORT.
    ReusePort,
    /// Number of connections that wait to be accepted.
    AcceptQueue,
    /// Limit on connections that wait to be accepted.
    AcceptLimit,
    /// Pointer to the group of SO_REUSEPORT, or null.
    Group,
    /// Time of the last overflow, in the group.
    GroupOverflow,
    /// Time of the last overflow, in the socket.
    Overflow,
    /// Number of ordinary handshakes that have not ended.
    SynQueue,
    /// Number of Fast Open connections in their handshake.
    FastOpenQueue,
    /// Limit on Fast Open connections in their handshake.
    FastOpenLimit,
    /// Pointer to the listener's own keys, or null.
    OwnKeys,
    /// Byte with the bit for TCP_FASTOPEN_NO_COOKIE.
    NoCookie,
    /// Size of the receive buffer, in bytes.
    ReceiveBuffer,
    /// Byte with the bit that says that SO_RCVBUF has set this size (`SOCK_RCVBUF_LOCK`).
    UserLocks,
    /// Limit on the receive window (TCP_WINDOW_CLAMP), in bytes; 0 without one.
    WindowClamp,
    /// Pointer to what a client wants of Fast Open (`struct tcp_fastopen_request`), or null.
    FastOpenRequest,
    /// Byte with the bit that says that the SYN had the option.
    SynFastOpen,
    /// Byte with the bit that says that the SYN had data.
    SynData,
    /// Keys of a listener that has its own, at [`OwnKeys`](Self::OwnKeys): the primary one, then the backup.
    Keys,
    /// Number of these keys.
    KeyCount,
}

impl Field {
    /// All fields, by their number.
    pub const ALL: [Self; FIELDS] = [
        Self::Family,
        Self::State,
        Self::Port,
        Self::AddressV4,
        Self::AddressV6,
        Self::Cookie,
        Self::ReusePort,
        Self::AcceptQueue,
        Self::AcceptLimit,
        Self::Group,
        Self::GroupOverflow,
        Self::Overflow,
        Self::SynQueue,
        Self::FastOpenQueue,
        Self::FastOpenLimit,
        Self::OwnKeys,
        Self::NoCookie,
        Self::ReceiveBuffer,
        Self::UserLocks,
        Self::WindowClamp,
        Self::FastOpenRequest,
        Self::SynFastOpen,
        Self::SynData,
        Self::Keys,
        Self::KeyCount,
    ];
}

/// Number of [`Field`]s.
pub const FIELDS: usize = 25;

const _: () = {
    let mut i = 0;
    while i < FIELDS {
        assert!(Field::ALL[i] as usize == i);
        i += 1;
    }
};

/// Places of all fields, by [`Field`]. A place has the offset in bytes in its low [`OFFSET_BITS`] bits. Above them, it
/// has the mask of the bit within its byte, for a field of one bit.
pub type Places = [u32; FIELDS];

/// Number of bits of a place that hold the offset.
pub const OFFSET_BITS: u32 = 24;

/// Length of a [`Record`], in bytes.
pub const RECORD: usize = 64;

/// State of a listening socket. Numbers are in the machine's byte order, unless a field says something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// Cookie of the socket; 0 if nobody has asked for it yet (`sock_gen_cookie`).
    pub cookie: u64,
    /// Local address, in network byte order. An IPv4 address has the first four bytes.
    pub address: [u8; 16],
    /// Local port.
    pub port: u16,
    /// Address family: [`AF_INET`] or [`AF_INET6`].
    pub family: u16,
    /// Sum of [`REUSE_PORT`], [`OWN_KEYS`] and [`NO_COOKIE`].
    pub flags: u32,
    /// Number of ordinary handshakes that have not ended.
    pub syn_queue: u32,
    /// Number of connections that wait to be accepted. Fast Open connections are among them from their SYN on.
    pub accept_queue: u32,
    /// Limit on `accept_queue`, and on `syn_queue`. The kernel takes one connection more.
    pub accept_limit: u32,
    /// Number of Fast Open connections in their handshake, or reset in it less than 60 s ago.
    pub fast_open_queue: u32,
    /// Limit on `fast_open_queue`; 0 means off.
    pub fast_open_limit: u32,
    /// Time of the last overflow of the SYN queue, in jiffies; 0 means never (`tcp_synq_overflow`).
    pub overflow: u32,
    /// Time of this record, in jiffies.
    pub now: u32,
    /// Zero.
    pub reserved: u32,
}

/// Address family of IPv4, from linux/socket.h.
pub const AF_INET: u16 = 2;
/// Address family of IPv6, from linux/socket.h.
pub const AF_INET6: u16 = 10;

/// Flag: the listener has SO_REUSEPORT.
pub const REUSE_PORT: u32 = 1;
/// Flag: the listener has keys of its own (TCP_FASTOPEN_KEY).
pub const OWN_KEYS: u32 = 2;
/// Flag: the listener takes data without a cookie (TCP_FASTOPEN_NO_COOKIE).
pub const NO_COOKIE: u32 = 4;

const _: () = assert!(size_of::<Record>() == RECORD);

impl Record {
    /// Reads a record from its bytes in memory.
    pub fn from_bytes(bytes: &[u8; RECORD]) -> Self {
        let mut at = Reader(bytes);
        Self {
            cookie: u64::from_ne_bytes(at.take()),
            address: at.take(),
            port: u16::from_ne_bytes(at.take()),
            family: u16::from_ne_bytes(at.take()),
            flags: at.word(),
            syn_queue: at.word(),
            accept_queue: at.word(),
            accept_limit: at.word(),
            fast_open_queue: at.word(),
            fast_open_limit: at.word(),
            overflow: at.word(),
            now: at.word(),
            reserved: at.word(),
        }
    }

    /// Returns the local address; unspecified for all addresses.
    pub fn local_address(&self) -> IpAddr {
        let [a, b, c, d, ..] = self.address;
        if self.family == AF_INET6 {
            Ipv6Addr::from(self.address).into()
        } else {
            Ipv4Addr::new(a, b, c, d).into()
        }
    }

    /// Returns the jiffies since the last overflow of the SYN queue, if the kernel still takes SYN cookies because of
    /// it (`tcp_synq_no_recent_overflow`). `hz` is the number of jiffies in a second.
    pub fn overflow_age(&self, hz: u32) -> Option<u32> {
        /// `TCP_SYNCOOKIE_VALID`, in seconds.
        const VALID: u32 = 120;
        let age = self.now.wrapping_sub(self.overflow);
        (self.overflow != 0 && age <= VALID.saturating_mul(hz)).then_some(age)
    }
}

/// Bytes that have not been read yet.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// Takes the next bytes; zeros if there are none left.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((taken, rest)) => {
                self.0 = rest;
                *taken
            }
            None => [0; N],
        }
    }

    fn word(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }
}

/// Length of a [`KeyRecord`], in bytes.
pub const KEY_RECORD: usize = 40;

/// Keys of a listener that has its own. It is secret, so it has no `Debug`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct KeyRecord {
    /// Local port, in host byte order.
    pub port: u32,
    /// Number of keys: 1, or 2 with a backup key.
    pub count: u32,
    /// The keys as the kernel has them: two words each (`siphash_key_t`), in the machine's byte order.
    pub keys: [u8; 32],
}

const _: () = assert!(size_of::<KeyRecord>() == KEY_RECORD);

impl KeyRecord {
    /// Reads the local port, the primary key and the backup key from the bytes of a record in memory.
    pub fn read(bytes: &[u8; KEY_RECORD]) -> (u16, Option<Key>, Option<Key>) {
        let mut at = Reader(bytes);
        let (port, count) = (at.word() as u16, at.word());
        let mut key = || Key { k0: u64::from_ne_bytes(at.take()), k1: u64::from_ne_bytes(at.take()) };
        let [primary, backup] = [key(), key()];
        (port, (count > 0).then_some(primary), (count > 1).then_some(backup))
    }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn a_record_is_read_as_it_lies_in_memory() {
        let mut bytes = [0; RECORD];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(offset_of!(Record, cookie), &1_u64.to_ne_bytes());
        put(offset_of!(Record, address), &[2; 16]);
        put(offset_of!(Record, port), &3_u16.to_ne_bytes());
        put(offset_of!(Record, family), &4_u16.to_ne_bytes());
        let words = [
            offset_of!(Record, flags),
            offset_of!(Record, syn_queue),
            offset_of!(Record, accept_queue),
            offset_of!(Record, accept_limit),
            offset_of!(Record, fast_open_queue),
            offset_of!(Record, fast_open_limit),
            offset_of!(Record, overflow),
            offset_of!(Record, now),
            offset_of!(Record, reserved),
        ];
        for (value, at) in (5_u32..).zip(words) {
            put(at, &value.to_ne_bytes());
        }
        let expected = Record {
            cookie: 1,
            address: [2; 16],
            port: 3,
            family: 4,
            flags: 5,
            syn_queue: 6,
            accept_queue: 7,
            accept_limit: 8,
            fast_open_queue: 9,
            fast_open_limit: 10,
            overflow: 11,
            now: 12,
            reserved: 13,
        };
        assert_eq!(Record::from_bytes(&bytes), expected);
    }

    #[test]
    fn a_record_of_keys_is_read_as_it_lies_in_memory() {
        let mut bytes = [0; KEY_RECORD];
        bytes[offset_of!(KeyRecord, port)..][..4].copy_from_slice(&443_u32.to_ne_bytes());
        for (word, value) in bytes[offset_of!(KeyRecord, keys)..].chunks_exact_mut(8).zip(1_u64..) {
            word.copy_from_slice(&value.to_ne_bytes());
        }
        let (first, second) = (Key { k0: 1, k1: 2 }, Key { k0: 3, k1: 4 });
        for (count, keys) in [(0, (None, None)), (1, (Some(first), None)), (2, (Some(first), Some(second)))] {
            bytes[offset_of!(KeyRecord, count)] = count;
            assert!(KeyRecord::read(&bytes) == (443, keys.0, keys.1), "{count} keys");
        }
    }

    #[test]
    fn an_overflow_counts_for_two_minutes() {
        let age = |overflow, now| Record { overflow, now, ..Record::default() }.overflow_age(100);
        assert_eq!(age(0, 50), None, "never");
        assert_eq!(age(50, 50), Some(0));
        assert_eq!(age(50, 12_050), Some(12_000));
        assert_eq!(age(50, 12_051), None);
        assert_eq!(age(u32::MAX, 9), Some(10), "jiffies wrap");
    }
}
