//! Samples of the scenarios.

use std::{
    fs,
    net::{IpAddr, TcpListener},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ProgramArray},
    programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp, XdpMode},
};
use nix::{
    sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use tfo_common::{
    counters::{Counters, VERDICT_SLOTS},
    keyring::Key,
    parse::LinkLayer,
    policy::Policy,
    verdict::Verdict,
};
use tfo_tests::{
    cases::{CLIENT_V6, SERVER_V4, SERVER_V6},
    host,
    kernel::Kernel,
    keys::{BACKUP, CURRENT, TestKey},
    listener::Listener,
    netns::ip,
    tap::Tap,
};
use tfo_userspace::kernel::{
    listeners::Walk,
    sysctl::{SERVER, write_mode},
};

use crate::scenarios::{Scenario, Setup, Subject};

const SYNCOOKIES: &str = "/proc/sys/net/ipv4/tcp_syncookies";

/// Number of samples and runs.
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) loads: u32,
    pub(crate) repeat: u32,
}

/// Samples of one scenario, one per round.
pub(crate) struct Measured {
    pub(crate) scenario: Scenario,
    pub(crate) samples: Vec<Sample>,
}

/// Nanoseconds per run.
pub(crate) struct Sample {
    /// Time of the program that does nothing, measured just before and just after.
    pub(crate) pass: f64,
    /// Time of the program under test.
    pub(crate) gross: f64,
}

/// Loaded programs, each attached to an interface of its own.
///
/// A test run of a program that is attached nowhere makes the kernel patch its call of XDP programs, at the start and
/// at the end (`bpf_prog_change_xdp`). That takes some 16 ms of CPU time, and much longer on a busy machine.
pub(crate) struct Bench {
    yardsticks: Ebpf,
    tfo: Vec<(Setup, Kernel)>,
    measured: Vec<(Measured, Option<Varied>)>,
    interfaces: Vec<Tap>,
    /// Listener of the answered SYNs, and the program that marks it.
    listener: Option<(TcpListener, Walk)>,
}

/// Two programs that change the frame before each run.
struct Varied {
    /// Changes the frame and calls the real program.
    tfo: Ebpf,
    /// Changes the frame and calls the program that does nothing.
    pass: Ebpf,
    /// Name of the program that changes the frame.
    name: &'static str,
}

impl Bench {
    /// Loads the programs that `scenarios` need.
    pub(crate) fn new(yardsticks: &Path, scenarios: Vec<Scenario>) -> Result<Self> {
        stay_on_one_cpu()?;
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let object = fs::read(yardsticks).with_context(|| format!("cannot read {}", yardsticks.display()))?;
        let mut bench = Self {
            yardsticks: Ebpf::load(&object)?,
            tfo: Vec::new(),
            measured: Vec::new(),
            interfaces: Vec::new(),
            listener: None,
        };
        let keys = bench.yardsticks.map_mut("KEYS").context("the yardsticks have no map KEYS")?;
        Array::<_, [u64; 4]>::try_from(keys)?.set(0, words([CURRENT, BACKUP].map(TestKey::key)), 0)?;
        bench.load_yardstick("pass")?;
        for scenario in scenarios {
            let mut varied = None;
            match &scenario.subject {
                Subject::Yardstick("pass") => {}
                Subject::Yardstick(name) => bench.load_yardstick(name)?,
                Subject::Tfo(setup) => {
                    bench.tfo(*setup)?;
                }
                Subject::Varied { setup, sources, key } => {
                    let pass = program(&mut bench.yardsticks, "pass")?.fd()?.try_clone()?;
                    let tfo = bench.tfo(*setup)?.program().fd()?.try_clone()?;
                    let mut vary = |then| {
                        let mut object = vary(&object, &scenario.frame, *sources, *key, &then)?;
                        attach(program(&mut object, "vary")?, &mut bench.interfaces)?;
                        Ok::<_, anyhow::Error>(object)
                    };
                    varied = Some(Varied { tfo: vary(tfo)?, pass: vary(pass)?, name: "vary" });
                }
                Subject::Leaving(setup) => {
                    bench.tfo(*setup)?;
                    let leave = leave(&mut bench.yardsticks)?;
                    if leave.fd().is_err() {
                        leave.load()?;
                    }
                }
                subject @ (Subject::Restored(_) | Subject::RestoredYardstick(_)) => {
                    let pass = program(&mut bench.yardsticks, "pass")?.fd()?.try_clone()?;
                    let tfo = match subject {
                        Subject::Restored(setup) => bench.tfo(*setup)?.program(),
                        Subject::RestoredYardstick(name) => {
                            bench.load_yardstick(name)?;
                            program(&mut bench.yardsticks, name)?
                        }
                        _ => continue,
                    };
                    let tfo = tfo.fd()?.try_clone()?;
                    let mut restore = |then| {
                        let mut object = restore(&object, &scenario.frame, &then)?;
                        attach(program(&mut object, "restore")?, &mut bench.interfaces)?;
                        Ok::<_, anyhow::Error>(object)
                    };
                    varied = Some(Varied { tfo: restore(tfo)?, pass: restore(pass)?, name: "restore" });
                    bench.listen()?;
                }
            }
            bench.measured.push((Measured { scenario, samples: Vec::new() }, varied));
        }
        Ok(bench)
    }

    fn load_yardstick(&mut self, name: &str) -> Result<()> {
        // Several scenarios may have it.
        if program(&mut self.yardsticks, name)?.fd().is_ok() {
            return Ok(());
        }
        load(&mut self.yardsticks, name)?;
        attach(program(&mut self.yardsticks, name)?, &mut self.interfaces)
    }

    /// Begins to listen at the server's addresses.
    fn listen(&mut self) -> Result<()> {
        if self.listener.is_some() {
            return Ok(());
        }
        ip("link set lo up");
        ip(&format!("address add {SERVER_V4}/32 dev lo"));
        ip(&format!("address add {SERVER_V6}/128 dev lo nodad"));
        write_mode(SERVER)?;
        let listener = Listener::on("[::]:80").fast_open(64).listen();
        let mut walk = Walk::load()?;
        walk.load_marker()?;
        self.listener = Some((listener, walk));
        Ok(())
    }

    /// Marks the listener, for longer than a sample takes.
    fn mark(&mut self) -> Result<()> {
        let (_, walk) = self.listener.as_mut().context("there is no listener")?;
        fs::write(SYNCOOKIES, "2")?;
        let records = walk.read()?;
        let marked = records.iter().try_for_each(|record| walk.mark(record, 0));
        fs::write(SYNCOOKIES, "1")?;
        marked
    }

    /// Returns the real program as `setup` describes it.
    fn tfo(&mut self, setup: Setup) -> Result<&mut Kernel> {
        let loaded = self.tfo.iter().position(|(loaded, _)| *loaded == setup);
        let index = match loaded {
            Some(index) => index,
            None => {
                let mut kernel = setup.load();
                attach(kernel.program(), &mut self.interfaces)?;
                self.tfo.push((setup, kernel));
                self.tfo.len() - 1
            }
        };
        Ok(&mut self.tfo[index].1)
    }

    /// Measures each scenario once per round, for the rounds of the `load`-th load, counted from zero.
    pub(crate) fn run(mut self, plan: &Plan, load: u32) -> Result<Vec<Measured>> {
        let mut measured = std::mem::take(&mut self.measured);
        for round in (1..=plan.rounds).filter(|round| round % plan.loads == load) {
            eprint!("\rload {} of {}, round {round} of {} ", load + 1, plan.loads, plan.rounds);
            for (Measured { scenario, samples }, varied) in &mut measured {
                let sample = self.sample(scenario, varied.as_mut(), plan.repeat);
                samples.push(sample.with_context(|| scenario.name.clone())?);
            }
        }
        eprintln!();
        Ok(measured.into_iter().map(|(measured, _)| measured).collect())
    }

    fn sample(&mut self, scenario: &Scenario, varied: Option<&mut Varied>, repeat: u32) -> Result<Sample> {
        let frame = scenario.frame.as_slice();
        let (before, gross, after) = match (&scenario.subject, varied) {
            (Subject::Varied { setup, .. } | Subject::Restored(setup), Some(Varied { tfo, pass, name })) => {
                if setup.answers {
                    self.mark()?;
                }
                let before = time(program(pass, name)?, frame, repeat)?;
                let kernel = self.tfo(*setup)?;
                let gross =
                    counted(*setup, kernel, frame, repeat, |_| time(program(tfo, name)?, frame, repeat))?;
                (before, gross, time(program(pass, name)?, frame, repeat)?)
            }
            (Subject::RestoredYardstick(_), Some(Varied { tfo, pass, name })) => {
                let before = time(program(pass, name)?, frame, repeat)?;
                let gross = time(program(tfo, name)?, frame, repeat)?;
                (before, gross, time(program(pass, name)?, frame, repeat)?)
            }
            (Subject::Leaving(setup), _) => {
                let before = time(leave(&mut self.yardsticks)?, frame, repeat)?;
                let gross = time(self.tfo(*setup)?.egress(), frame, repeat)?;
                (before, gross, time(leave(&mut self.yardsticks)?, frame, repeat)?)
            }
            (subject, _) => {
                let before = time(program(&mut self.yardsticks, "pass")?, frame, repeat)?;
                let gross = match subject {
                    Subject::Yardstick(name) | Subject::RestoredYardstick(name) => {
                        time(program(&mut self.yardsticks, name)?, frame, repeat)?
                    }
                    Subject::Tfo(setup)
                    | Subject::Varied { setup, .. }
                    | Subject::Restored(setup)
                    | Subject::Leaving(setup) => {
                        let kernel = self.tfo(*setup)?;
                        counted(*setup, kernel, frame, repeat, |kernel| {
                            time(kernel.program(), frame, repeat)
                        })?
                    }
                };
                (before, gross, time(program(&mut self.yardsticks, "pass")?, frame, repeat)?)
            }
        };
        Ok(Sample { pass: f64::midpoint(before, after), gross })
    }
}

/// Runs `measure`, and checks that `frame`, or others of its class, were counted that many times and nothing else was.
/// So the scenario measures what its name says.
fn counted(
    setup: Setup,
    kernel: &mut Kernel,
    frame: &[u8],
    repeat: u32,
    measure: impl FnOnce(&mut Kernel) -> Result<f64>,
) -> Result<f64> {
    let packets = |counters: &Counters| -> Vec<u64> {
        counters.syn.as_flattened().as_flattened().iter().map(|tally| tally.packets).collect()
    };
    let before = packets(&kernel.counters());
    let time = measure(kernel)?;
    let after = packets(&kernel.counters());
    let policy = Policy { portable: setup.policy.portable, ..Policy::of_mode(setup.mode) };
    let one = packets(&host::count(frame, LinkLayer::Ethernet, &policy, &setup.ring()));
    let one = if setup.answers && setup.policy == setup.policy.with(tfo_common::policy::Guard::Answer, true) {
        answered(&one)
    } else {
        one
    };
    let is_counted = before.iter().zip(&one).map(|(before, one)| before + one * u64::from(repeat)).eq(after);
    ensure!(is_counted, "the program did not count what it was given");
    Ok(time)
}

/// Returns the counts by family, class and verdict for SYNs that are answered instead of passed.
fn answered(passed: &[u64]) -> Vec<u64> {
    let mut counts = passed.to_vec();
    for verdicts in counts.chunks_mut(VERDICT_SLOTS) {
        verdicts.swap(Verdict::Pass.index(), Verdict::Answer.index());
    }
    counts
}

/// Loads the program that writes `frame` anew and then calls `then`.
fn restore(object: &[u8], frame: &[u8], then: &ProgramFd) -> Result<Ebpf> {
    const WORDS: usize = 16;
    let len = frame.len();
    ensure!((8..=8 * WORDS).contains(&len), "a frame of {len} bytes does not fit");
    let mut loader = EbpfLoader::new();
    let len_word = len as u32;
    loader.override_global("FRAME_LEN", &len_word, true);
    let mut object = loader.load(object)?;
    let words = std::array::from_fn(|word| {
        let at = if 8 * word + 8 <= len { 8 * word } else { len - 8 };
        frame[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    });
    let map = object.map_mut("FRAME").context("the yardsticks have no map FRAME")?;
    Array::<_, [u64; WORDS]>::try_from(map)?.set(0, words, 0)?;
    let map = object.map_mut("THEN").context("the yardsticks have no map THEN")?;
    ProgramArray::try_from(map)?.set(0, then, 0)?;
    load(&mut object, "restore")?;
    Ok(object)
}

/// Returns the CPU time of this thread for each of `repeat` runs, in nanoseconds.
fn time<P>(program: &P, frame: &[u8], repeat: u32) -> Result<f64>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let clock = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    let start = clock()?;
    program.test_run(TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() })?;
    let end = clock()?;
    let nanoseconds = (end.tv_sec() - start.tv_sec()) * 1_000_000_000 + (end.tv_nsec() - start.tv_nsec());
    Ok(nanoseconds as f64 / f64::from(repeat))
}

pub(crate) fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program =
        object.program_mut(name).with_context(|| format!("the yardsticks have no program {name}"))?;
    Ok(program.try_into()?)
}

/// Returns the yardstick on packets that leave.
fn leave(object: &mut Ebpf) -> Result<&mut SchedClassifier> {
    Ok(object.program_mut("leave").context("the yardsticks have no program leave")?.try_into()?)
}

pub(crate) fn load(object: &mut Ebpf, name: &str) -> Result<()> {
    program(object, name)?.load().with_context(|| format!("the kernel refused the yardstick {name}"))
}

/// Attaches `program` to a new interface, to which nothing is ever sent.
pub(crate) fn attach(program: &mut Xdp, interfaces: &mut Vec<Tap>) -> Result<()> {
    let name = format!("bench{}", interfaces.len());
    interfaces.push(Tap::new(&name, LinkLayer::Ethernet));
    program.attach(&name, XdpMode::Driver).with_context(|| format!("cannot attach to {name}"))?;
    Ok(())
}

/// Loads the program that gives `frame` the next of `sources` addresses and then calls `then`.
fn vary(object: &[u8], frame: &[u8], sources: u32, key: TestKey, then: &ProgramFd) -> Result<Ebpf> {
    let is_ipv4 = frame[12..14] == [8, 0];
    // Offsets of the addresses (in IPv6, from the second half of the source on), of the cookie behind Linux's options,
    // and of the window, in an untagged frame.
    let [source_at, cookie_at, window_at]: [u32; 3] = if is_ipv4 { [26, 76, 48] } else { [30, 96, 68] };
    let (window, _) = frame[window_at as usize..].split_first_chunk().context("a frame with a TCP header")?;
    let window = u32::from_ne_bytes(*window);
    let mut loader = EbpfLoader::new();
    loader.override_global("COUNT", &sources, true);
    loader.override_global("SOURCE_AT", &source_at, true);
    loader.override_global("COOKIE_AT", &cookie_at, true);
    loader.override_global("WINDOW_AT", &window_at, true);
    loader.override_global("WINDOW", &window, true);
    let mut object = loader.load(object)?;
    let map = object.map_mut("VARIANTS").context("the yardsticks have no map VARIANTS")?;
    let mut variants = Array::<_, [u64; 2]>::try_from(map)?;
    for number in 0..sources {
        let host = (1 << 24 | number).to_be_bytes();
        let (addresses, cookie) = if is_ipv4 {
            ([host, SERVER_V4.octets()].concat(), key.cookie(IpAddr::from(host), SERVER_V4.into()))
        } else {
            let mut source = CLIENT_V6.octets();
            source[12..].copy_from_slice(&host);
            (source[8..].to_vec(), key.cookie(IpAddr::from(source), SERVER_V6.into()))
        };
        let words = [addresses.as_slice(), &cookie].concat();
        let (words, _) = words.as_chunks();
        variants.set(number, [words[0], words[1]].map(u64::from_le_bytes), 0)?;
    }
    let map = object.map_mut("THEN").context("the yardsticks have no map THEN")?;
    ProgramArray::try_from(map)?.set(0, then, 0)?;
    load(&mut object, "vary")?;
    Ok(object)
}

fn words([first, second]: [Key; 2]) -> [u64; 4] {
    [first.k0, first.k1, second.k0, second.k1]
}

/// Pins this thread to one CPU, since a move to another would be measured, too.
fn stay_on_one_cpu() -> Result<()> {
    let cpus = allowed_cpus()?;
    pin(Pid::from_raw(0), *cpus.last().context("no CPU is allowed")?)
}

/// Returns the CPUs on which the calling thread may run.
pub(crate) fn allowed_cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect())
}

/// Pins `thread` to `cpu`; 0 is the calling thread.
pub(crate) fn pin(thread: Pid, cpu: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu)?;
    Ok(sched_setaffinity(thread, &one)?)
}
