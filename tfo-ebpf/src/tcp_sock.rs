//! A socket whose type the verifier knows, so that its fields are read without a helper. The kernel catches a read of memory
//! that is not there. `fields.rs` reads the structures whose type the verifier does not know.

use aya_ebpf::{bindings::tcp_sock, helpers::generated::bpf_skc_to_tcp_sock};
use tfo_common::listener::{Field, OFFSET_BITS};

use crate::{fields::place, maps::Socket};

/// The kernel's `struct tcp_sock`.
#[derive(Clone, Copy)]
pub(crate) struct TcpSock(*const u8);

impl TcpSock {
    /// Returns what `socket` is for TCP, or `None` if it is of another protocol.
    #[inline(always)]
    pub(crate) fn of(socket: Socket) -> Option<Self> {
        // SAFETY: the socket is the kernel's. The helper returns null or the same socket.
        let socket: *mut tcp_sock = unsafe { bpf_skc_to_tcp_sock(socket.pointer().cast()) };
        if socket.is_null() { None } else { Some(Self(socket.cast())) }
    }

    /// Returns whether the pointer in `field` is null.
    #[inline(always)]
    pub(crate) fn is_null(self, field: Field) -> bool {
        // SAFETY: the verifier refuses the program unless the structure has a pointer there.
        unsafe { self.at(field).cast::<*const u8>().read_volatile() }.is_null()
    }

    /// Reads a field of one bit.
    #[inline(always)]
    pub(crate) fn bit(self, field: Field) -> bool {
        // SAFETY: the verifier refuses the program unless the structure has a bit field there.
        u32::from(unsafe { self.at(field).read_volatile() }) & place(field) >> OFFSET_BITS != 0
    }

    /// Returns the address of `field`.
    #[inline(always)]
    fn at(self, field: Field) -> *const u8 {
        self.0.wrapping_add((place(field) & ((1 << OFFSET_BITS) - 1)) as usize)
    }
}
