//! Commands of bpf(2) on links, which aya lacks for some kinds of program.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `BPF_OBJ_GET` and `BPF_LINK_UPDATE` of `enum bpf_cmd` (linux/bpf.h).
const OBJ_GET: libc::c_int = 7;
const LINK_UPDATE: libc::c_int = 29;

/// Variant of `union bpf_attr` (linux/bpf.h) for pinned objects.
#[repr(C)]
struct ObjectAttr {
    pathname: *const libc::c_char,
    bpf_fd: u32,
    file_flags: u32,
}

/// Variant called `link_update`.
#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

// The union has 64 bits for a pointer on every architecture.
const _: () = assert!(size_of::<ObjectAttr>() == 16 && size_of::<LinkUpdateAttr>() == 16);

/// Opens the BPF object that is pinned at `path`.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { pathname: path.as_ptr(), bpf_fd: 0, file_flags: 0 };
    // SAFETY: the kernel reads a string that lives until the call returns, and the attributes, which are as large as it
    // is told.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &raw mut attr, size_of::<ObjectAttr>()) };
    match libc::c_int::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Replaces the program of `link` by `program`, in one step: no packet or connection passes without a program.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let [link_fd, new_prog_fd] = [link, program].map(|fd| fd.as_raw_fd() as u32);
    let mut attr = LinkUpdateAttr { link_fd, new_prog_fd, flags: 0, old_prog_fd: 0 };
    // SAFETY: the kernel reads the attributes, which are as large as it is told; it checks the descriptors.
    match unsafe { libc::syscall(libc::SYS_bpf, LINK_UPDATE, &raw mut attr, size_of::<LinkUpdateAttr>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
