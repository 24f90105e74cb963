//! Reads whole arrays, with one system call for many entries. aya makes a call for each entry. For the counters of a
//! thousand services that takes three times as long, because each time the kernel allocates room for the values of all
//! CPUs.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    ptr,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{Pod, maps::Map, util::nr_cpus};

/// Number of entries that are read at once. They stay in a CPU's cache.
const EXPLAINED_PER_KIND: usize = 16;
/// `BPF_MAP_LOOKUP_ELEM` and `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd` (linux/bpf.h).
const LOOKUP_ELEM: libc::c_int = 1;
const LOOKUP_BATCH: libc::c_int = 24;
/// The kernel's `ENOTSUPP`, which no header of user space has. Maps of this kind lack the operation.
const NOT_SUPPORTED: i32 = 524;

/// Variant of `union bpf_attr` (linux/bpf.h) for one entry.
#[repr(C)]
struct Elem {
    map_fd: u32,
    _padding: u32,
    key: *const u32,
    value: *mut u8,
    flags: u64,
}

/// Variant for many entries, called `batch`.
#[repr(C)]
struct Batch {
    in_batch: *const u32,
    out_batch: *mut u32,
    keys: *mut u32,
    values: *mut u8,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

// The union has 64 bits for a pointer on every architecture.
const _: () = assert!(size_of::<Elem>() == 32 && size_of::<Batch>() == 56);

/// Reader of an array. An entry has one `V`, or one for each CPU.
pub(super) struct BatchReader<V> {
    map: OwnedFd,
    entries: u32,
    /// Number of `V` in an entry.
    width: usize,
    /// Initial value of buffers.
    empty: V,
}

impl<V: Pod> BatchReader<V> {
    /// Returns a reader of the array `map`. Buffers are filled with `empty`, which may be any value.
    pub(super) fn of(map: &Map, empty: V) -> Result<Self> {
        let (data, width) = match map {
            Map::PerCpuArray(data) => (data, nr_cpus().map_err(|(_, error)| error)?),
            Map::Array(data) => (data, 1),
            _ => bail!("a map is no array"),
        };
        let info = data.info().context("cannot ask for the layout of a map")?;
        let size = info.value_size() as usize;
        // The kernel pads the value of a CPU to eight bytes. A `Vec<V>` has no such padding.
        let is_padded = width > 1 && !size.is_multiple_of(8);
        ensure!(size == size_of::<V>() && !is_padded, "a map has values of {size} bytes");
        let map = data.fd().as_fd().try_clone_to_owned().context("cannot duplicate a descriptor")?;
        Ok(Self { map, entries: info.max_entries(), width, empty })
    }

    /// Passes each entry to `see`, in the order of the indices.
    pub(super) fn each(&self, mut see: impl FnMut(u32, &[V])) -> io::Result<()> {
        let mut values = vec![self.empty; EXPLAINED_PER_KIND * self.width];
        let mut seen = 0;
        while seen < self.entries {
            match self.batch(seen, &mut values) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    (seen..).zip(values.chunks_exact(self.width)).take(count).for_each(|(i, v)| see(i, v));
                    seen += count as u32;
                }
                // Before Linux 5.13, arrays with values for each CPU have no batch look-up.
                Err(error) if seen == 0 && error.raw_os_error() == Some(NOT_SUPPORTED) => break,
                Err(error) => return Err(error),
            }
        }
        for index in seen..self.entries {
            self.elem(index, &mut values)?;
            see(index, &values[..self.width]);
        }
        Ok(())
    }

    /// Reads the entry at `index` into the beginning of `values`.
    fn elem(&self, index: u32, values: &mut [V]) -> io::Result<()> {
        assert!(values.len() >= self.width);
        let value = values.as_mut_ptr().cast();
        let map_fd = self.map.as_raw_fd() as u32;
        let mut elem = Elem { map_fd, _padding: 0, key: &raw const index, value, flags: 0 };
        // SAFETY: the kernel reads the index, which lives until the call returns. It writes one entry of `width`
        // values, for which there is room: `of` has checked that a value has the size of `V`. Any bytes are a valid
        // `V`, which is Pod.
        match unsafe { libc::syscall(libc::SYS_bpf, LOOKUP_ELEM, &raw mut elem, size_of::<Elem>()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads entries from index `first` on into `values`, and returns their number.
    fn batch(&self, first: u32, values: &mut [V]) -> io::Result<usize> {
        let (mut keys, mut last) = ([0_u32; EXPLAINED_PER_KIND], 0_u32);
        assert!(values.len() >= keys.len() * self.width);
        // The kernel begins behind the key at `in_batch`.
        let before = first.checked_sub(1);
        let mut batch = Batch {
            in_batch: before.as_ref().map_or(ptr::null(), ptr::from_ref),
            out_batch: &raw mut last,
            keys: keys.as_mut_ptr(),
            values: values.as_mut_ptr().cast(),
            count: EXPLAINED_PER_KIND as u32,
            map_fd: self.map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel writes one key to `last`, at most EXPLAINED_PER_KIND keys to `keys` (in arrays, keys are u32), and at
        // most EXPLAINED_PER_KIND entries to `values`, for which there is room: see `elem`.
        let done = unsafe { libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut batch, size_of::<Batch>()) };
        let error = io::Error::last_os_error();
        match (done, error.raw_os_error()) {
            // ENOENT: the array ends with these entries.
            (0, _) | (_, Some(libc::ENOENT)) => Ok(batch.count as usize),
            _ => Err(error),
        }
    }
}
