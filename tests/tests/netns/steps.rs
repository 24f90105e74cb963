//! kill -9 between any two steps of a rotation. Each time nothing is lost, and the next start finishes the rotation.
//!
//! A step is a system call of the real `tfo run` that changes something outside of the process (see
//! [`steps`](tfo_tests::steps)). So the exact moment between two steps makes no difference to others.
#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use aya::maps::{Array, Map, MapData};
use tfo_common::{
    class::Class,
    keyring::{Key, KeyStore},
    names,
    segment::Family,
};
use tfo_tests::{
    netns::{
        BPFFS, Counts, IFACE, Running, binary, eventually, keys_status, linked, rotate, server_and_client,
        xdp_on,
    },
    steps::{Killed, Stopped, at_each_step},
};
use tfo_userspace::{
    dataplane::{
        Pinned,
        pins::{Bpffs, Pins},
    },
    kernel::{sysctl::KernelKeys, tcp_ext::TcpExt},
    keys::{
        schedule::Schedule,
        secret::Secret,
        state::{REMEMBERED, State},
    },
    lab::{
        client::fast_open,
        net::{Namespace, SERVERS, server, source},
        server::Listeners,
    },
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// Numbers of clients. The kernel remembers the cookies of some five clients for each server
/// (TCP_METRICS_RECLAIM_DEPTH).
type Clients = [u16; 2];
/// Clients with cookies from before the last rotation.
const OLD: Clients = [0, 1];
/// Clients with cookies of the current key.
const CURRENT: Clients = [2, 3];
/// Clients that come back while no controller runs.
const WHILE_DEAD: Clients = [OLD[0], CURRENT[0]];
/// Clients that come back after the next start.
const AFTERWARDS: Clients = [OLD[1], CURRENT[1]];

/// Server and clients, with the expected link and start time of the counters.
struct Scene {
    client: Namespace,
    link: u32,
    since: u64,
}

impl Scene {
    /// Runs `test` with a Fast Open listener and the `tfo run` that `start` starts.
    fn with(start: impl FnOnce() -> Running + Send, test: impl FnOnce(&Self, Running) + Send) {
        server_and_client(|client| {
            let _listeners = Listeners::start(&SERVERS).unwrap();
            let before = TcpExt::read().unwrap();
            let tfo_run = start();
            let scene = Self { client, link: linked(IFACE).link, since: pinned().info().since_unix_ns };
            test(&scene, tfo_run);
            // The counts by key are left out. If the map did not know the kernel's new key yet, tfo counted by the old
            // roles.
            let of = |counts: TcpExt| (counts.cookie_reqd, counts.passive, counts.passive_fail);
            let (counted, kernel) = (Counts::of(IFACE).as_kernel(), TcpExt::read().unwrap() - before);
            assert_eq!(of(counted), of(kernel), "counts went on, whoever was killed");
        });
    }

    /// Connects from each client, over IPv4 and IPv6.
    fn connect(&self, clients: Clients) {
        for family in Family::ALL {
            let connect = |number: &u16| fast_open(source(*family, *number), server(*family), DATA);
            self.client.run(|| clients.iter().try_for_each(connect)).unwrap();
        }
    }

    /// Gives the clients their cookies. `rotate` rotates the keys between the old and the current ones.
    fn give_cookies(&self, rotate: impl FnOnce()) {
        self.connect(OLD);
        rotate();
        self.connect(CURRENT);
    }

    /// Connects from `clients` with their cookies and data. Returns how many were accepted and how many refused.
    fn come_back(&self, clients: Clients) -> (u64, u64) {
        let (kernel, data) = (TcpExt::read().unwrap(), with_data());
        self.connect(clients);
        assert_eq!(with_data() - data, 4);
        let kernel = TcpExt::read().unwrap() - kernel;
        (kernel.passive, kernel.passive_fail)
    }

    /// Panics unless the program is attached by the same link, its counts continue, and its map has the kernel's keys.
    fn assert_on_and_covered(&self, killed: &Killed) -> KernelKeys {
        let (linked, pinned, kernel) = (linked(IFACE), pinned(), KernelKeys::read().unwrap());
        assert_eq!((linked.link, Some(linked.program)), (self.link, xdp_on(IFACE)), "{killed}");
        assert_eq!(pinned.info().since_unix_ns, self.since, "{killed}");
        let ring = pinned.key_ring().unwrap();
        let mut keys = [kernel.current, kernel.backup].into_iter().flatten();
        assert!(keys.all(|key| ring.find(key).is_some()), "{killed}: a key of the kernel is not in the map");
        kernel
    }
}

const ALL_ACCEPTED: (u64, u64) = (4, 0);
const ALL_REFUSED: (u64, u64) = (0, 4);

fn pins() -> Pins {
    Bpffs::new(Path::new(BPFFS)).pins(IFACE)
}

fn pinned() -> Pinned {
    Pinned::open(&pins()).unwrap()
}

/// Returns the number of SYNs with data.
fn with_data() -> u64 {
    let counters = pinned().counters().unwrap();
    Class::ALL.iter().map(|class| counters.class(*class).with_data).sum()
}

/// `tfo keys rotate` in the background.
struct Order(Child);

impl Order {
    fn give(args: &[&str]) -> Self {
        let mut command = Command::new(binary());
        let command = command.args(["keys", "rotate"]).args(args).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn is_over(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Waits for the end. Returns whether it reports success.
    fn says_done(mut self) -> bool {
        self.0.wait().unwrap().success()
    }
}

/// Waits until keys come from `source`, and kernel, map and source agree.
fn wait_until_in_step(source: &str) {
    eventually("kernel, map and source are in step", || {
        let status = keys_status(IFACE);
        status["source"] == source && status["in_step"] == true
    });
}

/// Starts `tfo run` by `start`, and waits until its generation is in force. Before that, the status is the earlier
/// controller's.
fn take_over(start: impl FnOnce() -> Running) -> Running {
    let in_force = || pins().in_force().unwrap().map(|generation| generation.number());
    let before = in_force();
    let tfo_run = start();
    eventually("its generation is in force", || in_force() != before);
    tfo_run
}

/// Starts `tfo run` with keys that it makes and keeps in `state`.
fn with_random_keys(state: &Path) -> Running {
    let state = state.to_str().unwrap();
    let keys = ["--keys", "random", "--rotate", "1w", "--key-state", state];
    let tfo_run = take_over(|| Running::start(&[&["-i", IFACE, "--mode", "accelerate"], &keys[..]].concat()));
    wait_until_in_step("random");
    tfo_run
}

/// Returns the keys in the state file, newest first.
fn keys_in_file(state: &State) -> Vec<Key> {
    state.keys().iter().map(|made| made.key).collect()
}

fn load(path: &Path) -> State {
    State::load(path).unwrap().expect("a state file")
}

/// Panics if there is any file beside the state file and its lock.
fn assert_tidy(state: &Path, killed: &Killed) {
    let entries = fs::read_dir(state.parent().unwrap()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["keys.json", "keys.json.lock"], "{killed}");
}

#[test]
fn kill_9_between_any_two_steps_of_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let start = || with_random_keys(&path);
    Scene::with(start, |scene, first| {
        let mut tfo_run = Some(first);
        let steps = at_each_step(|count| {
            scene.give_cookies(|| drop(rotate(&[])));
            let before = keys_in_file(&load(&path));
            let stopped = Stopped::new(tfo_run.take().unwrap());
            let mut order = Order::give(&[]);
            let killed = stopped.kill_after(count, || order.is_over());

            // Without a controller, the file has all earlier keys and the kernel's.
            let kernel = scene.assert_on_and_covered(&killed);
            let state = load(&path);
            let after = keys_in_file(&state);
            let is_new = after[0] != before[0];
            let new = usize::from(is_new);
            let remembered = before.len().min(REMEMBERED - new);
            assert!(after[new..] == before[..remembered], "{killed}: keys are lost");
            let has = |key: Option<Key>| key.is_some_and(|key| after.contains(&key));
            assert!(has(kernel.current) && has(kernel.backup), "{killed}: a key of the kernel is not kept");
            let wanted = KernelKeys::from(state.held());
            if order.says_done() {
                let map = KernelKeys::from(pinned().key_ring().unwrap().held());
                assert!(
                    is_new && kernel == wanted && map == wanted,
                    "{killed}: that it is done was no truth"
                );
            } else {
                assert!(killed.before.is_some(), "no answer");
            }
            assert_eq!(scene.come_back(WHILE_DEAD), ALL_ACCEPTED, "{killed}");

            // The next start finishes the rotation by itself.
            tfo_run = Some(start());
            assert!(scene.assert_on_and_covered(&killed) == wanted, "{killed}");
            let ring = pinned().key_ring().unwrap();
            assert!(after.iter().all(|key| ring.find(*key).is_some()), "{killed}: keys are lost");
            assert!(keys_in_file(&load(&path)) == after, "{killed}: it is not rotated again");
            assert_tidy(&path, &killed);
            assert_eq!(scene.come_back(AFTERWARDS), ALL_ACCEPTED, "{killed}");
            killed
        });
        // These are at least the file (created, written, synced, renamed), map, kernel, map, and the answer.
        assert!(steps.len() >= 8, "{steps:?}");
    });
}

/// After the next start, a leaked key is nowhere. No command reports success before that.
#[test]
fn kill_9_between_any_two_steps_of_an_emergency() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let start = || with_random_keys(&path);
    Scene::with(start, |scene, first| {
        let mut tfo_run = Some(first);
        let steps = at_each_step(|count| {
            scene.give_cookies(|| drop(rotate(&[])));
            let leaked = keys_in_file(&load(&path));
            assert!(leaked.len() >= 2 && leaked.iter().all(|key| is_in_map(*key)));
            let is_gone = || {
                let KernelKeys { current, backup } = KernelKeys::read().unwrap();
                leaked.iter().all(|key| ![current, backup].contains(&Some(*key)) && !is_in_map(*key))
            };
            let stopped = Stopped::new(tfo_run.take().unwrap());
            let mut order = Order::give(&["--emergency"]);
            let killed = stopped.kill_after(count, || order.is_over());

            // Without a controller, success is reported only if the emergency is complete.
            let kernel = scene.assert_on_and_covered(&killed);
            let state = load(&path);
            let after = keys_in_file(&state);
            let is_begun = after[0] != leaked[0];
            if is_begun {
                assert_eq!(after.len(), 1, "{killed}");
                assert!(state.is_purging() || is_gone(), "{killed}: the file says that it is over");
            } else {
                assert!(after == leaked && KernelKeys::from(state.held()) == kernel, "{killed}");
            }
            if order.says_done() {
                assert!(is_begun && is_gone(), "{killed}: that it is done was no truth");
            } else {
                assert!(killed.before.is_some(), "no answer");
            }

            // The next start finishes the emergency by itself.
            tfo_run = Some(start());
            if is_begun {
                eventually("the leaked keys are nowhere", is_gone);
                eventually("the file says so", || !load(&path).is_purging());
            }
            assert!(keys_in_file(&load(&path)) == after, "{killed}");
            let kernel = scene.assert_on_and_covered(&killed);
            assert!(kernel == state.held().into(), "{killed}");
            assert_tidy(&path, &killed);
            let expected = if is_begun { ALL_REFUSED } else { ALL_ACCEPTED };
            assert_eq!(scene.come_back(AFTERWARDS), expected, "{killed}");
            killed
        });
        // These are at least the file, map, kernel, map (both rings), the file, and the answer.
        assert!(steps.len() >= 13, "{steps:?}");
    });
}

/// Returns whether `key` is anywhere in the map, the inactive ring included.
fn is_in_map(key: Key) -> bool {
    const WORDS: usize = size_of::<KeyStore>() / 8;
    // `ExpandedKey` has the key in its last two words, combined with these: SipHash's "lygenera" and "tedbytes".
    let words = [key.k0 ^ 0x6c79_6765_6e65_7261, key.k1 ^ 0x7465_6462_7974_6573];
    let map = Map::Array(MapData::from_pin(pins().current().unwrap().map(names::KEYS)).unwrap());
    let store = Array::<_, [u64; WORDS]>::try_from(map).unwrap().get(&0, 0).unwrap();
    store.windows(2).any(|window| window == words)
}

/// Kills `tfo run` while the clock alone changes the keys of a secret. In one half of an interval the backup key
/// changes, in the other the current one.
fn by_the_clock(half: u32) {
    const INTERVAL: Duration = Duration::from_hours(7 * 24);
    let dir = tempfile::tempdir().unwrap();
    let (secret, clock) = (dir.path().join("secret"), dir.path().join("clock"));
    fs::write(&secret, [0x3c; 32]).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let secret = secret.to_str().unwrap();
    let (keys, schedule) = (Secret::read(secret).unwrap(), Schedule::new(INTERVAL).unwrap());

    // Offset of the clock. The first one leads to one hour after the beginning of an interval, or of its second half.
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let to_next = Duration::from_secs(INTERVAL.as_secs() - now().as_secs() % INTERVAL.as_secs());
    let mut ahead = to_next + INTERVAL / 2 * half + Duration::from_hours(1);
    let set = |ahead: Duration| {
        // The file is replaced in one step, since it may be read at any moment.
        let next = clock.with_extension("new");
        fs::write(&next, format!("+{}s", ahead.as_secs())).unwrap();
        fs::rename(next, &clock).unwrap();
    };
    set(ahead);
    let wanted = |ahead: Duration| KernelKeys::from(schedule.held(&keys, (now() + ahead).as_secs()));
    let is_described = |ahead: Duration| pinned().info().wanted == wanted(ahead).fingerprints();

    let source = format!("secret:{secret}");
    let args = ["-i", IFACE, "--mode", "accelerate", "--keys", &source, "--rotate", "1w"];
    let start = |ahead: Duration| {
        let tfo_run = take_over(|| Running::start_with_clock(&clock, &args));
        eventually("it knows what the clock wants", || is_described(ahead));
        wait_until_in_step("secret");
        tfo_run
    };
    let first = ahead;
    Scene::with(
        || start(first),
        |scene, first| {
            let mut tfo_run = Some(first);
            let steps = at_each_step(|count| {
                scene.give_cookies(|| {
                    ahead += INTERVAL / 2;
                    set(ahead);
                    eventually("it has followed the clock", || is_described(ahead));
                    wait_until_in_step("secret");
                });
                let before = pinned().key_ring().unwrap();
                let stopped = Stopped::new(tfo_run.take().unwrap());
                ahead += INTERVAL / 2;
                set(ahead);
                let killed = stopped.kill_after(count, || is_described(ahead));

                scene.assert_on_and_covered(&killed);
                assert_eq!(scene.come_back(WHILE_DEAD), ALL_ACCEPTED, "{killed}");

                tfo_run = Some(start(ahead));
                assert!(scene.assert_on_and_covered(&killed) == wanted(ahead), "{killed}");
                let (after, held) = (pinned().key_ring().unwrap(), before.held());
                let mut kept = [held.current, held.backup].into_iter().flatten();
                assert!(kept.all(|key| after.find(key).is_some()), "{killed}: a key is lost");
                assert_eq!(scene.come_back(AFTERWARDS), ALL_ACCEPTED, "{killed}");
                killed
            });
            // These are at least map, kernel, map, and the status for other commands.
            assert!(steps.len() >= 4, "{steps:?}");
        },
    );
}

#[test]
fn kill_9_between_any_two_steps_when_the_clock_changes_the_current_key() {
    by_the_clock(0);
}

#[test]
fn kill_9_between_any_two_steps_when_the_clock_changes_the_backup_key() {
    by_the_clock(1);
}
