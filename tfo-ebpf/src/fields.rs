//! Fields of the kernel's structures, at places that are known at load time only.

use core::mem::MaybeUninit;

use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel};
use tfo_common::listener::{FIELDS, Field, OFFSET_BITS, Places, REUSE_PORT};

/// [`tfo_common::names::PLACES`].
#[unsafe(no_mangle)]
static TFO_PLACES: Global<Places> = Global::new([0; FIELDS]);

/// Reads the time of the last overflow: the group's, if the listener is in one (`tcp_synq_overflow`).
#[inline(always)]
pub(crate) fn overflow(socket: *const u8, flags: u32) -> u32 {
    let group: *const u8 = read(socket, Field::Group);
    if flags & REUSE_PORT != 0 && !group.is_null() {
        read(group, Field::GroupOverflow)
    } else {
        read(socket, Field::Overflow)
    }
}

/// Returns the place of `field`, a constant for the verifier.
#[inline(always)]
pub(crate) fn place(field: Field) -> u32 {
    // SAFETY: a global has the layout of its value, and the index is below FIELDS. `Global::load` would copy all places.
    unsafe { (&raw const TFO_PLACES).cast::<u32>().add(field as usize).read_volatile() }
}

/// Reads a field of the structure at `base`. It is all zeros if the memory can't be read.
#[inline(always)]
pub(crate) fn read<T: Plain>(base: *const u8, field: Field) -> T {
    let offset = place(field) & ((1 << OFFSET_BITS) - 1);
    let from = base.wrapping_add(offset as usize);
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the helper writes at most `size_of::<T>()` bytes to `value`. It checks every access to `from`.
    unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, from.cast()) };
    // SAFETY: `T` is valid for any bytes, and these are all initialised.
    unsafe { value.assume_init() }
}

/// Reads a field of one bit.
#[inline(always)]
pub(crate) fn read_bit(base: *const u8, field: Field) -> bool {
    u32::from(read::<u8>(base, field)) & place(field) >> OFFSET_BITS != 0
}

/// Type that is valid for any bytes.
///
/// # Safety
///
/// Any bytes must be a valid value.
pub(crate) unsafe trait Plain {}

// SAFETY: any bytes are a valid number.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above, and nobody dereferences it.
unsafe impl Plain for *const u8 {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u8; N] {}
