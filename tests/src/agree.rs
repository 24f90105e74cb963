//! Comparison of the program in the kernel with the same code on the host, on millions of frames.
//!
//! One run by BPF_PROG_TEST_RUN takes milliseconds. So the program is attached to a tap or tun interface and the frames
//! are written to that interface. A packet socket behind the program shows the frames that it passes. The counters are
//! read once per batch. `cargo xtask agree` runs the comparison at length, a test runs it briefly.

mod frames;

use std::{
    fmt::{self, Display, Formatter},
    fs,
    io::ErrorKind,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use tfo_common::{
    class::Class,
    counters::{Cell, Counters},
    keyring::{BACKUP, CURRENT, KeyRing, SLOTS},
    parse::{LinkLayer, Malformed, Unsupported},
    policy::{Guard, Policy},
    segment::Family,
    service::OTHER,
    verdict::{Mode, Verdict},
};

use self::frames::Frames;
use crate::{
    cases::rows,
    host,
    kernel::{Kernel, sum},
    keys::{ring, ring_without_next},
    netns::{ip, sandbox},
    packet::{ETHERNET, ether_type},
    tap::Tap,
};

/// Number of frames between two comparisons of the counters.
const BATCH: u64 = 256;
/// Number of batches between two changes of the key ring.
const BATCHES_A_RING: u64 = 64;
/// Number of frames between two progress messages.
const SIGN_OF_LIFE: u64 = 1_000_000;
const NAME: &str = "nic0";

/// Length and seed of a run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number of frames over both link layers and all modes. Frames that the interface refuses are not included.
    pub frames: u64,
    /// Seed of the frames. A longer run with the same seed begins with the same frames.
    pub seed: u64,
    /// Longest duration of the run.
    pub time: Option<Duration>,
}

/// Results of a run without a disagreement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Frames that were written and not refused.
    pub frames: u64,
    /// Frames that the interface refused because they are too short or not IP. No program sees them.
    pub refused: u64,
    /// Frames whose bytes were compared as well.
    pub compared: u64,
    /// Signed SYNs that would have been changed if they were not signed.
    pub spared: u64,
    /// Counters of the kernel, over all frames.
    pub counters: Counters,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.refused += other.refused;
        self.compared += other.compared;
        self.spared += other.spared;
        self.counters.add(&other.counters);
    }

    /// Returns the outcomes that no frame had. The run says nothing about them.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let mut need = |count: u64, what: String| {
            if count == 0 {
                missing.push(what);
            }
        };
        for family in Family::ALL {
            for class in Class::ALL {
                let tally = self.counters.syn[family.index()][class.index()];
                let packets: u64 = tally.iter().map(|tally| tally.packets).sum();
                let with_data: u64 = tally.iter().map(|tally| tally.with_data).sum();
                need(with_data, format!("{family} {class} with data"));
                need(packets - with_data, format!("{family} {class} without data"));
            }
            let rewritten = self.counters.syn[family.index()][Class::CookieRetired.index()];
            need(rewritten[Verdict::Rewrite.index()].packets, format!("{family} rewritten"));
            for class in &Class::ALL[Class::CookieRequest.index()..] {
                let hidden = self.counters.syn[family.index()][class.index()][Verdict::Hide.index()];
                need(hidden.packets, format!("{family} {class} hidden"));
            }
        }
        for guard in [Guard::Hide, Guard::Clamp] {
            let count = self.counters.guards[guard.index()];
            need(count.acted, format!("{guard}, acting"));
            need(count.would, format!("{guard}, as a dry run"));
        }
        need(self.spared, "signed, and spared".to_owned());
        for reason in Malformed::ALL {
            need(self.counters.malformed[reason.index()], format!("malformed: {reason}"));
        }
        for reason in Unsupported::ALL {
            need(self.counters.unsupported[reason.index()], format!("unsupported: {reason}"));
        }
        for slot in 0..SLOTS {
            need(self.counters.hits[slot], format!("a cookie of the key in slot {slot}"));
        }
        missing
    }
}

/// Frame on which kernel and host disagree.
#[derive(Debug)]
pub struct Disagreement {
    link: LinkLayer,
    mode: Mode,
    policy: Policy,
    ring: usize,
    frame: Vec<u8>,
    what: String,
}

impl Display for Disagreement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { link, mode, policy, ring, frame, what } = self;
        writeln!(
            f,
            "kernel and host disagree: link layer {link}, mode {mode}, {policy:x?}, ring {ring}, {} bytes",
            frame.len()
        )?;
        writeln!(f, "{what}")?;
        frame.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Returns the key rings under test. The first holds all keys. The second lacks the next key. The third lacks the
/// backup key, so old cookies are translated into the current key's. The fourth lacks both keys of the kernel. The last
/// is empty.
fn rings() -> [KeyRing; 5] {
    let without = |slots: &[usize]| {
        let mut ring = ring();
        slots.iter().for_each(|slot| ring.set(*slot, None));
        ring
    };
    [ring(), ring_without_next(), without(&[BACKUP]), without(&[CURRENT, BACKUP]), KeyRing::EMPTY]
}

/// Returns the policies under test. In mode `shield`, they are those whose guards keep no state.
fn policies(mode: Mode) -> Vec<Policy> {
    let mut policy = Policy::of_mode(mode);
    if mode != Mode::Shield {
        return vec![policy];
    }
    policy.clamp = 3;
    let hidden = Policy { flags: policy.flags | Policy::HIDDEN_ALL, ..policy };
    vec![
        policy,
        policy.with(Guard::Hide, true),
        policy.with(Guard::Hide, false),
        policy.with(Guard::Clamp, true),
        policy.with(Guard::Clamp, false),
        hidden,
        hidden.with(Guard::Hide, false).with(Guard::Clamp, true),
        Policy { clamp: 0, ..policy }.with(Guard::Hide, false).with(Guard::Clamp, true),
    ]
}

/// Compares as many frames as `options` say, and fails at the first on which kernel and host disagree. Needs root.
///
/// Each link layer gets the same number of frames in each mode, in its own namespace.
pub fn run(options: &Options) -> Result<Seen, Box<Disagreement>> {
    let end = options.time.map(|time| Instant::now() + time);
    let run = Run { end, stop: AtomicBool::new(false), done: AtomicU64::new(0) };
    let lanes = [
        (LinkLayer::Ethernet, Mode::Observe),
        (LinkLayer::Ethernet, Mode::Accelerate),
        (LinkLayer::Ethernet, Mode::Shield),
        (LinkLayer::Ip, Mode::Observe),
        (LinkLayer::Ip, Mode::Accelerate),
        (LinkLayer::Ip, Mode::Shield),
    ];
    let result = Mutex::new(Ok(Seen::default()));
    thread::scope(|scope| {
        for (number, (link, mode)) in (0..).zip(lanes) {
            let (run, result) = (&run, &result);
            // The last lanes take the remainder.
            let share = (options.frames + number) / lanes.len() as u64;
            let seed = options.seed.wrapping_mul(lanes.len() as u64).wrapping_add(number);
            scope.spawn(move || {
                sandbox(|| {
                    let outcome = Lane::new(link, mode, seed).run(share, run);
                    let mut result = result.lock().expect("no lane panics while it adds up");
                    match (&mut *result, outcome) {
                        (Ok(sum), Ok(seen)) => sum.add(&seen),
                        (Ok(_), Err(disagreement)) => *result = Err(disagreement),
                        (Err(_), _) => {}
                    }
                });
            });
        }
    });
    result.into_inner().expect("no lane panics while it adds up")
}

/// State that all lanes share.
struct Run {
    end: Option<Instant>,
    /// Tells all lanes to stop, since kernel and host disagree.
    stop: AtomicBool,
    done: AtomicU64,
}

impl Run {
    fn is_over(&self) -> bool {
        self.stop.load(Relaxed) || self.end.is_some_and(|end| Instant::now() > end)
    }

    fn count(&self, frames: u64) {
        let before = self.done.fetch_add(frames, Relaxed);
        let millions = (before + frames) / SIGN_OF_LIFE;
        if millions > before / SIGN_OF_LIFE {
            eprintln!("{millions} million frames");
        }
    }
}

/// Interface with the program on it.
struct Lane {
    link: LinkLayer,
    mode: Mode,
    tap: Tap,
    kernel: Kernel,
    rings: [KeyRing; 5],
    /// Index of the key ring in force.
    ring: usize,
    policies: Vec<Policy>,
    policy: Policy,
    /// Packet socket that sees the frames that the program passes.
    behind: OwnedFd,
    buffer: Vec<u8>,
    frames: Frames,
    /// Counters of the kernel after the last batch.
    counters: Counters,
    seen: Seen,
}

impl Lane {
    /// Makes the interface in the calling thread's namespace, which must be empty.
    fn new(link: LinkLayer, mode: Mode, seed: u64) -> Self {
        // The stack behind the program gets no addresses and no frame for this host. So it has little to do and sends
        // nothing.
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("IPv6 can be switched off");
        let tap = Tap::new(NAME, link);
        if link == LinkLayer::Ethernet {
            ip(&format!("link set {NAME} address 02:00:00:00:00:03"));
        }
        let behind =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll);
        let behind = behind.expect("root can have a packet socket");
        let rings = rings();
        let mut kernel = Kernel::load(link, mode, &rings[0]);
        kernel.attach(NAME, link);
        let counters = kernel.counters();
        let (frames, buffer, seen) = (Frames::new(link, seed), vec![0; 1 << 16], Seen::default());
        let (policies, policy) = (policies(mode), Policy::of_mode(mode));
        Self {
            link,
            mode,
            tap,
            kernel,
            rings,
            ring: 0,
            policies,
            policy,
            behind,
            buffer,
            frames,
            counters,
            seen,
        }
    }

    fn run(mut self, share: u64, run: &Run) -> Result<Seen, Box<Disagreement>> {
        let mut batch = Vec::new();
        for number in 0.. {
            let left = share.saturating_sub(self.seen.frames);
            if left == 0 || run.is_over() {
                break;
            }
            if number % BATCHES_A_RING == 0 {
                self.ring = (number / BATCHES_A_RING) as usize % self.rings.len();
                self.kernel.publish(&self.rings[self.ring]);
            }
            self.policy = self.policies[number as usize % self.policies.len()];
            self.kernel.set_policy(OTHER, &self.policy);
            batch.clear();
            batch.extend((0..left.min(BATCH)).map(|_| self.frames.next()));
            self.compare(&batch).inspect_err(|_| run.stop.store(true, Relaxed))?;
            run.count(batch.len() as u64);
        }
        Ok(self.seen)
    }

    fn compare(&mut self, batch: &[Vec<u8>]) -> Result<(), Box<Disagreement>> {
        let mut more = Cell::EMPTY;
        for frame in batch {
            if self.receive(frame)? {
                self.seen.spared += u64::from(self.count_on_host(&mut more, frame));
            }
        }
        let more = more.counters();
        let expected = sum(&self.counters, &more);
        self.counters = self.kernel.counters();
        if self.counters != expected {
            return Err(self.find(batch));
        }
        let spared = self.kernel.watch().signed_spared;
        if spared != self.seen.spared {
            let what = format!("the kernel has spared {spared} signed SYNs, the host {}", self.seen.spared);
            return Err(self.disagreement(&[], what));
        }
        self.seen.counters.add(&more);
        Ok(())
    }

    /// Counts `frame` as the host does. Returns whether it is a signed SYN that is spared.
    fn count_on_host(&self, cell: &mut Cell, frame: &[u8]) -> bool {
        host::count_in(cell, frame, self.link, &self.policy, &self.rings[self.ring])
    }

    /// Writes `frame` to the interface, and checks what the program passes. Returns false if the interface refuses the
    /// frame.
    fn receive(&mut self, frame: &[u8]) -> Result<bool, Box<Disagreement>> {
        match self.tap.receive(frame) {
            Ok(()) if !frame.is_empty() => {}
            Err(error) if error.kind() != ErrorKind::InvalidInput => panic!("{NAME}: {error}"),
            _ => {
                self.seen.refused += 1;
                return Ok(false);
            }
        }
        self.seen.frames += 1;
        // The stack removes the outer tag before a packet socket sees the frame, and drops the frame if it can't
        // (skb_vlan_untag). So the bytes of the tag can't be compared.
        let tag = ETHERNET - 2..ETHERNET + 2;
        let is_tagged = self.link == LinkLayer::Ethernet
            && [ether_type::VLAN, ether_type::SERVICE_VLAN]
                .contains(&u16::from_be_bytes([frame[12], frame[13]]));
        if is_tagged && frame.len() < tag.end + 4 {
            return Ok(true);
        }
        let read = recv(self.behind.as_raw_fd(), &mut self.buffer, MsgFlags::empty());
        let wrong = match read {
            Err(error) => format!("nothing came out: {error}"),
            Ok(len) => {
                let mut out = self.buffer[..len].to_vec();
                if is_tagged {
                    out.splice(tag.start..tag.start, frame[tag].iter().copied());
                }
                match host::check(frame, &out, self.link, &self.policy, &self.rings[self.ring]) {
                    Ok(_) => {
                        self.seen.compared += 1;
                        return Ok(true);
                    }
                    Err(wrong) => format!("{wrong}: {out:02x?}"),
                }
            }
        };
        Err(self.disagreement(frame, wrong))
    }

    /// Sends the frames of a batch again, one at a time, to find the one that the kernel counts differently.
    fn find(&mut self, batch: &[Vec<u8>]) -> Box<Disagreement> {
        for frame in batch {
            let mut more = Cell::EMPTY;
            match self.receive(frame) {
                Ok(true) => _ = self.count_on_host(&mut more, frame),
                Ok(false) => continue,
                Err(disagreement) => return disagreement,
            }
            let more = more.counters();
            let before = std::mem::replace(&mut self.counters, self.kernel.counters());
            if self.counters != sum(&before, &more) {
                return self.only(frame, &more);
            }
        }
        self.disagreement(&[], "a batch was counted otherwise, but none of its frames when sent again".into())
    }

    /// Sends `frame` again, through a program with fresh counters.
    fn only(&mut self, frame: &[u8], host: &Counters) -> Box<Disagreement> {
        self.kernel = Kernel::load(self.link, self.mode, &self.rings[self.ring]);
        self.kernel.set_policy(OTHER, &self.policy);
        self.kernel.attach(NAME, self.link);
        if let Err(disagreement) = self.receive(frame) {
            return disagreement;
        }
        let what = format!("host: {:?}\nkernel: {:?}", rows(host), rows(&self.kernel.counters()));
        self.disagreement(frame, what)
    }

    fn disagreement(&self, frame: &[u8], what: String) -> Box<Disagreement> {
        let Self { link, mode, policy, ring, .. } = *self;
        Box::new(Disagreement { link, mode, policy, ring, frame: frame.to_vec(), what })
    }
}
