//! System calls that fail, or kill who makes them: seccomp filters, which a process inherits from the thread that starts it.
//! So the real `tfo` meets a kernel that refuses, and needs no code for that.

use std::{collections::BTreeMap, thread};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Commands of bpf(2): `enum bpf_cmd` in linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's names")]
pub enum Bpf {
    MapCreate = 0,
    MapLookupElem = 1,
    MapUpdateElem = 2,
    MapGetNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ObjGetInfoByFd = 15,
    MapFreeze = 22,
    MapLookupBatch = 24,
    LinkCreate = 28,
    LinkUpdate = 29,
}

/// What becomes of every call of the kind that is chosen.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It does nothing and returns this errno.
    Fails(i32),
    /// The process dies before it is carried out, as by kill -9: nothing of the process runs any more.
    Kills,
}

/// Runs `work` on a thread for which, and for whose children, `fault` becomes of each bpf(2) with `command`.
pub fn with<T: Send>(command: Bpf, fault: Fault, work: impl FnOnce() -> T + Send) -> T {
    let is_command = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, command as u64)
        .expect("a condition");
    let rules = vec![SeccompRule::new(vec![is_command]).expect("a rule of one condition")];
    limited(libc::SYS_bpf, rules, fault, work)
}

/// Runs `work` on a thread for which, and for whose children, `fault` becomes of each call of the system call `number`.
pub fn with_call<T: Send>(number: i64, fault: Fault, work: impl FnOnce() -> T + Send) -> T {
    limited(number, Vec::new(), fault, work)
}

/// With no rules, every call is meant.
fn limited<T: Send>(
    number: i64,
    rules: Vec<SeccompRule>,
    fault: Fault,
    work: impl FnOnce() -> T + Send,
) -> T {
    let filter = filter(number, rules, fault).expect("a filter of one system call");
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            seccompiler::apply_filter(&filter).expect("a thread may limit itself");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn filter(
    number: i64,
    rules: Vec<SeccompRule>,
    fault: Fault,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(number, rules)]);
    let then = match fault {
        Fault::Fails(errno) => SeccompAction::Errno(errno.unsigned_abs()),
        Fault::Kills => SeccompAction::KillProcess,
    };
    SeccompFilter::new(rules, SeccompAction::Allow, then, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// Whether a process ended as [`Fault::Kills`] ends it.
pub fn was_killed(status: std::process::ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    status.signal() == Some(libc::SIGSYS)
}
