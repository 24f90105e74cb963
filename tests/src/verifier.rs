//! Cost of verifying the program, as the kernel's verifier reports it.

use aya::programs::ProgramError;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tfo_userspace::dataplane::{LoadOptions, Object};

/// Cost of verifying one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Number of instructions that the verifier has followed, repeated ones included. Its limit is a million.
    pub instructions: u32,
    /// Bytes of stack: of the deepest call chain, or before Linux 7.3 of all functions together. The limit is 512.
    pub stack: u32,
}

impl Cost {
    /// Verifies the program with these options.
    ///
    /// aya keeps the verifier's log only for programs that fail to load. So this load fails on purpose: the program is
    /// verified as usual, but gets no file descriptor (`bpf_prog_new_fd` comes after `bpf_check`, in every version of
    /// the kernel). Meanwhile no other thread of the process gets one either.
    pub fn of(options: &LoadOptions) -> Self {
        let mut object = Object::prepare(options, None).expect("the maps are made (is this root?)");
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).expect("a lower limit");
        let result = object.program().expect("the object has its program").load();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("the limit that was");
        let Err(ProgramError::LoadError { io_error, verifier_log }) = result else {
            panic!("a program was loaded without a file descriptor: {result:?}")
        };
        let log = verifier_log.to_string();
        assert_eq!(
            io_error.raw_os_error(),
            Some(libc::EMFILE),
            "the verifier has refused it: {io_error}\n{log}"
        );
        Self::parse(&log).unwrap_or_else(|| panic!("the verifier's log has another form:\n{log}"))
    }

    /// Parses the output of `print_verification_stats` (kernel/bpf/verifier.c).
    fn parse(log: &str) -> Option<Self> {
        let value = |label| log.lines().find_map(|line| line.strip_prefix(label)?.split_whitespace().next());
        let depths = value("stack depth max ").or_else(|| value("stack depth "))?;
        Some(Self {
            instructions: value("processed ")?.parse().ok()?,
            stack: depths.split('+').map(str::parse::<u32>).sum::<Result<_, _>>().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_forms_are_known() {
        let log = "verification time 5206 usec\nstack depth 104+16\nprocessed 2153 insns (limit 1000000) \
                   max_states_per_insn 4 total_states 95 peak_states 95 mark_read 1\n";
        assert_eq!(Cost::parse(log), Some(Cost { instructions: 2153, stack: 120 }));
        let log = "stack depth max 176\nsubprog 0 (tfo_ingress) main insns_self 9 insns_total 9 stack 176\n\
                   processed 9 insns (limit 1000000) max_states_per_insn 0\n";
        assert_eq!(Cost::parse(log), Some(Cost { instructions: 9, stack: 176 }), "Linux 7.3");
        assert_eq!(Cost::parse("stack depth 8\n"), None);
    }
}
