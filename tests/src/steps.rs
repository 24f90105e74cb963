//! The real `tfo run` under ptrace(2), killed between two steps of its work.
//!
//! A step is a system call that changes something outside of the process. kill -9 between two steps leaves nothing else
//! behind, so finer steps are not needed. The main thread makes all steps, except that another thread writes the log,
//! which is not traced.

use std::{
    ffi::c_long,
    fmt::{self, Display, Formatter},
    fs,
    mem::offset_of,
    os::unix::fs::FileExt as _,
};

use aya::maps::{Array, Map, MapData};
use nix::{
    sys::{
        ptrace::{self, Options},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tfo_common::keyring::KeyStore;

use crate::{fault::Bpf, netns::Running};

/// Stopped `tfo run`.
#[derive(Debug)]
pub struct Stopped {
    process: Running,
    main_thread: Pid,
}

/// Killed `tfo run`.
#[derive(Debug)]
pub struct Killed {
    /// Names of the steps that it made.
    pub made: Vec<String>,
    /// Next step, which was not made. `None` if the work was over.
    pub before: Option<String>,
}

impl Display for Killed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "killed after {} steps ({})", self.made.len(), self.made.join(", "))?;
        self.before.iter().try_for_each(|step| write!(f, ", in front of {step}"))
    }
}

/// Calls `round` for each step of the same work, to kill `tfo run` in front of it. The argument is the number of steps
/// before it. The last round kills it after the whole work. Returns the steps, and prints them.
pub fn at_each_step(mut round: impl FnMut(usize) -> Killed) -> Vec<String> {
    let mut steps = Vec::new();
    loop {
        let Killed { made, before } = round(steps.len());
        assert_eq!(made, steps, "the same work takes the same steps");
        match before {
            Some(step) => steps.push(step),
            None => {
                println!(
                    "killed in front of each of {} steps ({}), and behind them",
                    steps.len(),
                    steps.join(", ")
                );
                return steps;
            }
        }
    }
}

impl Stopped {
    /// Stops `process`, wherever it is. This and [`kill_after`](Self::kill_after) must be called on one thread: the
    /// kernel accepts no other as the tracer.
    pub fn new(process: Running) -> Self {
        let main_thread = Pid::from_raw(process.id() as i32);
        let threads = fs::read_dir(format!("/proc/{main_thread}/task")).expect("it runs").count();
        assert_eq!(
            threads, 2,
            "the main thread, and that which writes the log: another one may make steps unseen"
        );
        ptrace::seize(main_thread, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)
            .and_then(|()| ptrace::interrupt(main_thread))
            .expect("root may trace a running child");
        let stopped = Self { process, main_thread };
        stopped.wait();
        stopped
    }

    /// Lets it make `count` steps, and kills it in front of the next one, or as soon as `is_over`.
    pub fn kill_after(self, count: usize, mut is_over: impl FnMut() -> bool) -> Killed {
        let mut made = Vec::new();
        let mut signal = None;
        let before = loop {
            if is_over() {
                break None;
            }
            ptrace::syscall(self.main_thread, signal.take()).expect("it is stopped");
            match self.wait() {
                WaitStatus::PtraceSyscall(_) => match self.step() {
                    Some(step) if made.len() == count => break Some(step),
                    step => made.extend(step),
                },
                WaitStatus::Stopped(_, sent) => signal = Some(sent),
                _ => {}
            }
        };
        // The system call in front of which it is killed is not carried out.
        self.process.kill();
        Killed { made, before }
    }

    fn wait(&self) -> WaitStatus {
        let status = waitpid(self.main_thread, Some(WaitPidFlag::__WALL)).expect("a child can be waited for");
        let ended = matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..));
        assert!(!ended, "tfo run ended by itself: {status:?}");
        status
    }

    /// Returns the step in front of which it is stopped, if the system call is a step.
    fn step(&self) -> Option<String> {
        let stop = ptrace::syscall_info(self.main_thread).expect("it is stopped at a system call");
        if stop.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return None;
        }
        // The line has the call's number in decimal, then six arguments and two registers in hexadecimal:
        // proc_pid_syscall(5).
        let text = fs::read_to_string(format!("/proc/{}/syscall", self.main_thread)).expect("it is stopped");
        let mut words = text.split_whitespace();
        let call: c_long = words.next().and_then(|word| word.parse().ok()).expect("a number");
        let argument = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).expect("a number");
        let arguments: Vec<u64> = words.map(argument).collect();
        self.is_step(call, &arguments).then(|| name(call))
    }

    /// Returns whether a map update with the attributes at `attr` only confirms the keys, as the controller does each
    /// second.
    fn only_confirms(&self, attr: u64) -> bool {
        const WORDS: usize = size_of::<KeyStore>() / 8;
        const CONFIRMED: usize = offset_of!(KeyStore, confirmed_ns) / 8;
        let memory = fs::File::open(format!("/proc/{}/mem", self.main_thread)).expect("it is traced");
        let word = |at: u64| {
            let mut word = [0; 8];
            memory.read_exact_at(&mut word, at).map(|()| u64::from_le_bytes(word))
        };
        // Descriptor of the map, and value: `union bpf_attr` (linux/bpf.h).
        let [Ok(fd), Ok(value)] = [attr, attr + 16].map(word) else { return false };
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{}", self.main_thread, fd as u32))
            .unwrap_or_default();
        let number = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|number| number.trim().parse::<usize>().ok())
        };
        let (Some(id), Some(size)) = (number("map_id:"), number("value_size:")) else { return false };
        if size != size_of::<KeyStore>() {
            return false;
        }
        let map = Map::Array(MapData::from_id(id as u32).expect("it is there"));
        let map: Array<_, [u64; WORDS]> = map.try_into().expect("an array of key rings");
        let now = map.get(&0, 0).expect("it can be read");
        (0..WORDS).all(|at| at == CONFIRMED || word(value + at as u64 * 8).is_ok_and(|word| word == now[at]))
    }

    fn is_step(&self, call: c_long, arguments: &[u64]) -> bool {
        const WRITES: i32 = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
        const LOOKS: [Bpf; 5] =
            [Bpf::MapLookupElem, Bpf::MapLookupBatch, Bpf::MapGetNextKey, Bpf::ObjGet, Bpf::ObjGetInfoByFd];
        match call {
            libc::SYS_openat => arguments[2] as i32 & WRITES != 0,
            libc::SYS_bpf if arguments[0] == Bpf::MapUpdateElem as u64 => !self.only_confirms(arguments[1]),
            libc::SYS_bpf => !LOOKS.iter().any(|look| *look as u64 == arguments[0]),
            // A message with an address is a request to rtnetlink, which reads.
            libc::SYS_sendto => arguments[4] == 0,
            // A process wakes itself by writing to an eventfd.
            libc::SYS_write => {
                let file = fs::read_link(format!("/proc/{}/fd/{}", self.main_thread, arguments[0]));
                !file.is_ok_and(|file| file.as_os_str() == "anon_inode:[eventfd]")
            }
            _ => !HARMLESS.contains(&call),
        }
    }
}

/// System calls that read, wait, or change nothing but the process itself. Any other call is a step.
const HARMLESS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getdents64,
    libc::SYS_geteuid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_newfstatat,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_socket,
    libc::SYS_statx,
];

fn name(call: c_long) -> String {
    let name = match call {
        libc::SYS_openat => "openat",
        libc::SYS_write => "write",
        libc::SYS_pwrite64 => "pwrite64",
        libc::SYS_fsync => "fsync",
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename => "rename",
        libc::SYS_renameat => "renameat",
        libc::SYS_renameat2 => "renameat2",
        libc::SYS_bpf => "bpf",
        libc::SYS_sendto => "sendto",
        libc::SYS_shutdown => "shutdown",
        _ => return format!("system call {call}"),
    };
    name.to_owned()
}
