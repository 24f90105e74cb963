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

/// `BPF_OBJ_GET`, `BPF_OBJ_GET_INFO_BY_FD`, `BPF_LINK_UPDATE` and `BPF_LINK_DETACH` of `enum bpf_cmd` (linux/bpf.h).
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

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

/// Variant called `info`.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: *mut LinkOnInterface,
}

/// Beginning of `struct bpf_link_info` (linux/bpf.h), for links of XDP and tcx.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(8))]
pub(super) struct LinkOnInterface {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) program_id: u32,
    /// Room that the union behind it needs in front.
    padding: u32,
    /// Index of the interface in its network namespace; 0 once it is gone.
    pub(super) ifindex: u32,
    attach_type: u32,
}

impl LinkOnInterface {
    /// `BPF_LINK_TYPE_TCX` of `enum bpf_link_type`.
    pub(super) const TCX: u32 = 11;
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

/// Returns what the kernel says of `link`, which attaches a program to an interface.
pub(super) fn link_on_interface(link: BorrowedFd<'_>) -> io::Result<LinkOnInterface> {
    let mut info = LinkOnInterface::default();
    let mut attr = InfoAttr {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<LinkOnInterface>() as u32,
        info: &raw mut info,
    };
    // SAFETY: the kernel reads the attributes, which are as large as it is told, and writes no more of the information than
    // there is room for.
    match unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, &raw mut attr, size_of::<InfoAttr>()) } {
        0 => Ok(info),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Detaches the program of `link` at once, whoever else holds the link.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut link_fd = link.as_raw_fd() as u32;
    // SAFETY: the kernel reads the attributes, which are as large as it is told.
    match unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw mut link_fd, size_of::<u32>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
