//! Faults in system calls: seccomp filters make a call fail, or kill its caller. A process inherits them from the
//! thread that starts it. So the real `tfo` meets a kernel that refuses, without any code for that.

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
    ProgTestRun = 10,
    ObjGetInfoByFd = 15,
    MapFreeze = 22,
    MapLookupBatch = 24,
    LinkCreate = 28,
    LinkUpdate = 29,
    IterCreate = 33,
}

/// Effect on each matching system call.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The call does nothing and returns this errno.
    Fails(i32),
    /// The process dies before the call is carried out, as by kill -9. None of its threads runs on.
    Kills,
}

/// Runs `work` on a new thread. `fault` hits each bpf(2) call with `command`, in that thread and its child processes.
pub fn with<T: Send>(command: Bpf, fault: Fault, work: impl FnOnce() -> T + Send) -> T {
    let is_command = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, command as u64)
        .expect("a condition");
    let rules = vec![SeccompRule::new(vec![is_command]).expect("a rule of one condition")];
    limited(libc::SYS_bpf, rules, fault, work)
}

/// Runs `work` on a new thread. `fault` hits each call of the system call `number`, in that thread and its child
/// processes.
pub fn with_call<T: Send>(number: i64, fault: Fault, work: impl FnOnce() -> T + Send) -> T {
    limited(number, Vec::new(), fault, work)
}

/// Runs `work` under a filter. Without rules, all calls match.
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

/// Returns whether a process ended as by [`Fault::Kills`].
pub fn was_killed(status: std::process::ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    status.signal() == Some(libc::SIGSYS)
}
