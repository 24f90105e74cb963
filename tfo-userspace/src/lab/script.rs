//! Script of the lab's clients. Each round sends every class, in both families, with two key changes for each family.

use std::{
    fs::File,
    io::Read as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use tfo_common::{cookie, keyring::Key, segment::Family};

use super::{
    client::{Syn, fast_open, ordinary},
    net::{Namespace, server, source},
};
use crate::{
    dataplane::{Pinned, pins::Pins},
    kernel::sysctl::KeySysctl,
    model::keys::addresses,
};

/// Longest time until a new key is in the map.
const KEY_PATIENCE: Duration = Duration::from_secs(5);
/// Number of sources that a round uses of each family.
const SOURCES: u16 = 4;

/// Running script, on a thread in the clients' namespace.
#[derive(Debug)]
pub struct Script {
    thread: JoinHandle<Result<()>>,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
}

impl Script {
    /// Starts the script, with clients in the namespace `client`, the server's keys in `sysctl`, and the program's maps
    /// in `pins`.
    ///
    /// The caller keeps the namespace: the veth pair ends with it, and so does the server's interface.
    pub fn start(client: Arc<Namespace>, sysctl: KeySysctl, pins: Pins) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = thread::Builder::new().name("clients".to_owned()).spawn(move || {
            client.enter()?;
            let mut server = Server::new(sysctl, pins)?;
            for round in 0_u16.. {
                for family in Family::ALL {
                    play(*family, round.wrapping_mul(SOURCES), &mut server)?;
                }
                counted.fetch_add(1, Ordering::Relaxed);
                if stopped.load(Ordering::Relaxed) || round == u16::MAX {
                    break;
                }
            }
            Ok(())
        })?;
        Ok(Self { thread, stop, rounds })
    }

    /// Returns the number of whole rounds so far.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Asks the script to end after this round.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the script has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the script after this round, and returns the number of whole rounds.
    pub fn join(self) -> Result<u64> {
        self.stop();
        self.thread
            .join()
            .map_err(|_| anyhow!("the lab's clients panicked"))?
            .context("the lab's clients failed")?;
        Ok(self.rounds.load(Ordering::Relaxed))
    }
}

/// Plays a round of one family, from [`SOURCES`] new clients.
fn play(family: Family, first: u16, keys: &mut Server) -> Result<()> {
    let server = server(family);
    let [early, late, plain, crafted] = [0, 1, 2, 3].map(|n| source(family, first.wrapping_add(n)));
    let data = b"data in the SYN";

    // Two clients ask for a cookie, then use it.
    for client in [early, late] {
        fast_open(client, server, data)?; // cookie_request
        fast_open(client, server, data)?; // cookie_current
    }
    // The key becomes the backup key: its cookie is still taken, and a fresh one is handed out.
    keys.rotate()?;
    fast_open(early, server, data)?; // cookie_backup
    fast_open(early, server, data)?; // cookie_current
    // The key is gone: its cookie is refused, but the connection is made, and a fresh cookie is handed out.
    keys.rotate()?;
    fast_open(late, server, data)?; // cookie_retired
    fast_open(late, server, data)?; // cookie_current
    ordinary(plain, server, data)?; // plain_syn

    // SYNs that no honest kernel sends.
    let addresses = addresses(crafted, server.ip())?;
    let valid = cookie::make(&keys.current, &addresses).to_le_bytes();
    let forged = cookie::make(&random_key()?, &addresses).to_le_bytes();
    let mut port = 1024;
    let mut syn = || -> Result<Syn> {
        port += 1;
        Ok(Syn::new(port, server.port(), u32::from_le_bytes(random()?)))
    };
    let syns = [
        syn()?.data(data),                         // plain_syn, with data
        syn()?.fast_open(&[]).data(data),          // cookie_request, with data
        syn()?.fast_open(&valid),                  // cookie_current, without data
        syn()?.experimental(&valid).data(data),    // cookie_current, the experimental option
        syn()?.fast_open(&forged).data(data),      // cookie_unknown
        syn()?.fast_open(&forged[..4]).data(data), // cookie_bad_length
        syn()?.fast_open(&[0; 16]),                // cookie_bad_length
        syn()?.fast_open(&valid[..7]).data(data),  // option_ignored: of odd length
        syn()?.fast_open(&[0; 18]),                // option_ignored: too long
        syn()?.fast_open(&valid).data_offset(4),   // malformed
        syn()?.fast_open(&valid).fin(),            // malformed
    ];
    syns.iter().try_for_each(|syn| syn.send(crafted, server.ip()))
}

/// Server's keys.
struct Server {
    sysctl: KeySysctl,
    pins: Pins,
    current: Key,
}

impl Server {
    /// Gives the server a first key.
    fn new(sysctl: KeySysctl, pins: Pins) -> Result<Self> {
        let server = Self { sysctl, pins, current: random_key()? };
        server.set(None)?;
        Ok(server)
    }

    /// Sets a new key. The current key becomes the backup key.
    fn rotate(&mut self) -> Result<()> {
        let backup = std::mem::replace(&mut self.current, random_key()?);
        self.set(Some(backup))
    }

    /// Writes the sysctl and waits until the program has the keys, too.
    fn set(&self, backup: Option<Key>) -> Result<()> {
        self.sysctl.write(self.current, backup)?;
        let pinned = Pinned::open(&self.pins)?;
        let deadline = Instant::now() + KEY_PATIENCE;
        loop {
            let ring = pinned.key_ring()?;
            if ring.get(0) == Some(self.current) && ring.get(1) == backup {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the program does not have the kernel's new key after {} s", KEY_PATIENCE.as_secs());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn random_key() -> Result<Key> {
    let words: [u8; 16] = random()?;
    let (words, _) = words.as_chunks();
    Ok(Key::from_words([0, 1, 2, 3].map(|i| u32::from_le_bytes(words[i]))))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let path = "/dev/urandom";
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .with_context(|| format!("cannot read {path}"))?;
    Ok(bytes)
}
