//! Keys in memory: the memory of the real `tfo run` is searched for their bytes and digits.
#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    collections::HashMap,
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use nix::sys::{signal::Signal, socket::setsockopt};
use tfo_common::{
    keyring::{Key, KeyStore},
    names,
};
use tfo_tests::{
    listener::{Listener, TcpFastOpenKey},
    netns::{
        BPFFS, IFACE, Running, eventually, failure, ip, keys_status, rotate, sandbox, server_and_client,
        set_keys, status, tfo,
    },
    scrape,
};
use tfo_userspace::{
    dataplane::pins::Bpffs,
    kernel::sysctl::KernelKeys,
    keys::{
        schedule::Schedule,
        secret::Secret,
        state::{State, random_key},
    },
    model::keys::{fingerprint, key_text},
};

/// Eight bytes to search for. They are unique in practice, and short enough to find half a key.
type Piece = [u8; 8];

/// Returns the two halves of a key as in memory, and the four groups of its text.
fn pieces(key: Key) -> ([Piece; 2], [Piece; 4]) {
    let text = key_text(key);
    let groups: Vec<_> = text.split('-').map(|group| group.as_bytes().try_into().unwrap()).collect();
    ([key.k0.to_le_bytes(), key.k1.to_le_bytes()], groups.try_into().unwrap())
}

/// Addresses of each piece in the memory of a process.
struct Found(HashMap<Piece, Vec<u64>>);

impl Found {
    /// Searches all writable memory of `process` while it is idle.
    fn in_memory_of(process: &Running, sought: &[Piece]) -> Self {
        let mut found: HashMap<_, _> = sought.iter().map(|piece| (*piece, Vec::new())).collect();
        // The first two bytes rule out nearly all positions.
        let mut may_begin = vec![false; 1 << 16];
        for [a, b, ..] in sought {
            may_begin[usize::from(u16::from_le_bytes([*a, *b]))] = true;
        }
        stop_while_idle(process);
        let memory = File::open(proc(process, "mem")).unwrap();
        for Mapping { start, end, .. } in mappings(process) {
            let mut bytes = vec![0; (end - start) as usize];
            memory.read_exact_at(&mut bytes, start).unwrap();
            for (at, window) in bytes.windows(8).enumerate() {
                if may_begin[usize::from(u16::from_le_bytes([window[0], window[1]]))]
                    && let Some(places) = found.get_mut(window)
                {
                    places.push(start + at as u64);
                }
            }
        }
        process.signal(Signal::SIGCONT);
        Self(found)
    }

    fn places(&self, piece: &Piece) -> &[u64] {
        &self.0[piece]
    }
}

fn proc(process: &Running, file: &str) -> String {
    format!("/proc/{}/{file}", process.id())
}

/// Stops `process` when its main thread waits for events, so that no work is in progress.
fn stop_while_idle(process: &Running) {
    let waits = [
        libc::SYS_epoll_pwait,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
    ]
    .map(|call| call.to_string());
    eventually("it waits for events", || {
        process.signal(Signal::SIGSTOP);
        eventually("it is stopped", || fs::read_to_string(proc(process, "stat")).unwrap().contains(") T "));
        let call = fs::read_to_string(proc(process, "syscall")).unwrap();
        let waits = waits.iter().any(|number| call.split(' ').next() == Some(number));
        if !waits {
            process.signal(Signal::SIGCONT);
        }
        waits
    });
}

/// Writable mapping of a process.
struct Mapping {
    start: u64,
    end: u64,
    is_locked: bool,
    /// Whether it belongs to a BPF map. Such memory is the kernel's: it is never swapped out, and can't be locked.
    is_map: bool,
}

fn mappings(process: &Running) -> Vec<Mapping> {
    let mut mappings = Vec::new();
    // VmFlags is the last line of each mapping: wr means writable, lo locked (proc_pid_smaps(5)).
    let (mut range, mut is_map, smaps) = ((0, 0), false, fs::read_to_string(proc(process, "smaps")).unwrap());
    for line in smaps.lines() {
        let (first, rest) = line.split_once(' ').unwrap();
        if let Some((start, end)) = first.split_once('-') {
            let number = |digits| u64::from_str_radix(digits, 16).unwrap();
            range = (number(start), number(end));
            is_map = rest.ends_with(" anon_inode:bpf-map");
        } else if first == "VmFlags:" {
            let has = |flag| rest.split_whitespace().any(|other| other == flag);
            if has("wr") {
                mappings.push(Mapping { start: range.0, end: range.1, is_locked: has("lo"), is_map });
            }
        }
    }
    assert!(!mappings.is_empty());
    mappings
}

/// Panics if `key` is in `found`, even half of it or a group of its text.
fn assert_nowhere(found: &Found, key: Key) {
    let (halves, groups) = pieces(key);
    for piece in halves.iter().chain(&groups) {
        assert_eq!(found.places(piece), [0; 0], "a part of a key is left in memory");
    }
}

/// Panics unless both halves of `key` are in `found` once, side by side in memory that is not swapped out, and its text
/// is nowhere.
fn assert_once_and_locked(process: &Running, found: &Found, key: Key) {
    let (halves, groups) = pieces(key);
    let [low, high] = halves.map(|half| found.places(&half).to_owned());
    assert_eq!(low.len(), 1, "the key is in memory {} times", low.len());
    assert_eq!(high, [low[0] + 8]);
    assert!(is_locked(process, low[0]));
    for group in groups {
        assert_eq!(found.places(&group), [0; 0], "the text of a key is left in memory");
    }
}

fn is_locked(process: &Running, address: u64) -> bool {
    let mappings = mappings(process);
    mappings.iter().any(|mapping| (mapping.start..mapping.end).contains(&address) && mapping.is_locked)
}

fn search(process: &Running, keys: &[Key]) -> Found {
    let pieces = keys.iter().flat_map(|key| {
        let (halves, groups) = pieces(*key);
        halves.into_iter().chain(groups)
    });
    Found::in_memory_of(process, &pieces.collect::<Vec<_>>())
}

/// Starts `tfo run` on [`IFACE`] with keys that it makes and keeps in `state`.
fn with_random_keys(state: &Path, more: &[&str]) -> Running {
    let state = state.to_str().unwrap();
    let keys = ["-i", IFACE, "--keys", "random", "--rotate", "1w", "--key-state", state];
    let running = Running::start(&[&keys, more].concat());
    wait_until_in_step("random");
    running
}

/// Waits until the keys of `source` are in the kernel and in the map.
fn wait_until_in_step(source: &str) {
    eventually("kernel and map are in step", || {
        let status = keys_status(IFACE);
        status["source"] == source && status["in_step"] == true
    });
}

/// Returns whether `tfo run` runs on `interface`.
fn is_attached(interface: &str) -> bool {
    tfo(&["status", "-i", interface]).status.success()
}

fn kernel_keys() -> KernelKeys {
    KernelKeys::read().unwrap()
}

fn import(dir: &Path, key: Key) {
    let file = dir.join("key");
    fs::write(&file, key_text(key)).unwrap();
    let output = tfo(&["keys", "import", file.to_str().unwrap()]);
    assert!(output.status.success(), "{:?}", failure(&output));
}

fn keys_in_file(state: &Path) -> Vec<Key> {
    State::load(state).unwrap().unwrap().keys().iter().map(|made| made.key).collect()
}

/// A key that tfo makes is in the controller's memory once, as in the file. From there it goes into the kernel, and
/// into the map of an interface that returns. A leaked key is nowhere.
//= RFC 7413 section 4.1.2
//# The cookie can only be generated by the server and cannot be
//# fabricated by any other parties, including the client.
#[test]
fn our_own_keys_are_in_memory_once_and_leaked_ones_nowhere() {
    server_and_client(|_| {
        ip("link add v0 type veth peer name v1");
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json");
        let tfo_run = with_random_keys(&state, &["-i", "v0", "--mode", "accelerate", "--retire-below", "1%"]);
        for _ in 0..3 {
            rotate(&[]);
        }
        import(dir.path(), random_key().unwrap());
        rotate(&[]);
        // The keys for a map that is made again come from memory.
        ip("link del v0");
        eventually("the interface is gone", || !is_attached("v0"));
        ip("link add v0 type veth peer name v1");
        eventually("it is attached again", || is_attached("v0"));
        let keys = keys_in_file(&state);
        assert_eq!(keys.len(), 6);
        let found = search(&tfo_run, &keys);
        for key in &keys {
            assert_once_and_locked(&tfo_run, &found, *key);
        }

        rotate(&["--emergency"]);
        let new = keys_in_file(&state);
        assert!(new.len() == 1 && kernel_keys().current == Some(new[0]));
        let found = search(&tfo_run, &[&keys[..], &new].concat());
        assert_once_and_locked(&tfo_run, &found, new[0]);
        for leaked in keys {
            assert_nowhere(&found, leaked);
        }
    });
}

/// After a start with keys from the file, nothing of its text is left.
#[test]
fn the_text_of_the_state_file_is_wiped() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json");
        let first = with_random_keys(&state, &[]);
        (0..10).for_each(|_| drop(rotate(&[])));
        first.end(Signal::SIGINT);
        let tfo_run = with_random_keys(&state, &[]);
        let keys = keys_in_file(&state);
        assert_eq!(keys.len(), 10);
        let found = search(&tfo_run, &keys);
        keys.iter().for_each(|key| assert_once_and_locked(&tfo_run, &found, *key));
    });
}

/// The kernel's keys are read, compared and written into the map five times a second, and read for metrics. They are
/// kept nowhere else.
#[test]
fn keys_that_are_followed_are_not_kept() {
    server_and_client(|_| {
        let tfo_run = scrape::run(IFACE, &["--mode", "accelerate"]);
        let keys: Vec<_> = (0..4).map(|_| random_key().unwrap()).collect();
        for pair in keys.windows(2) {
            set_keys(IFACE, pair[1], Some(pair[0]));
        }
        assert_eq!(["/metrics", "/healthz"].map(|path| scrape::get(path).status), [200, 200]);
        let found = search(&tfo_run, &keys);
        keys.iter().for_each(|key| assert_nowhere(&found, *key));
    });
}

/// Keys of listeners that have their own are read and put into the maps twice a second. They are kept nowhere else.
#[test]
fn keys_of_listeners_are_not_kept() {
    server_and_client(|_| {
        let tfo_run = scrape::run(IFACE, &["--mode", "accelerate"]);
        let listeners: Vec<_> = (100..103)
            .map(|port| Listener::on(&format!("0.0.0.0:{port}")).fast_open(5).own_key([1; 16]).listen())
            .collect();
        let keys: Vec<_> = (0..4).map(|_| random_key().unwrap()).collect();
        let generation = Bpffs::new(Path::new(BPFFS)).pins(IFACE).current().unwrap();
        let map = Map::Array(MapData::from_pin(generation.map(names::KEYS)).unwrap());
        let map: Array<_, [u64; size_of::<KeyStore>() / 8]> = map.try_into().unwrap();
        // Each publication flips the first word.
        let published = || (1..4).map(|index| map.get(&index, 0).unwrap()[0]).collect::<Vec<_>>();
        eventually("they are known", || published() == [1; 3]);
        for (key, flipped) in keys.iter().zip([0, 1, 0, 1]) {
            let bytes: [u8; 16] = pieces(*key).0.concat().try_into().unwrap();
            listeners.iter().for_each(|listener| setsockopt(listener, TcpFastOpenKey, &bytes).unwrap());
            eventually("the new key is known", || published() == [flipped; 3]);
        }
        assert_eq!(["/metrics", "/healthz"].map(|path| scrape::get(path).status), [200, 200]);
        let found = search(&tfo_run, &keys);
        keys.iter().for_each(|key| assert_nowhere(&found, *key));
        let log = tfo_run.end(Signal::SIGTERM);
        let last = fingerprint(keys[3]);
        assert!(log.contains(&last), "the last keys were read: {log}");
    });
}

/// The secret is in memory once, and its keys nowhere.
#[test]
fn a_secret_is_in_memory_once() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        let random: Vec<_> = (0..2).map(|_| random_key().unwrap()).collect();
        let parts: Vec<_> = random.iter().flat_map(|key| pieces(*key).0).collect();
        fs::write(&file, parts.concat()).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let file = file.to_str().unwrap();
        let tfo_run = Running::start(&["-i", IFACE, "--keys", &format!("secret:{file}"), "--rotate", "1w"]);
        wait_until_in_step("secret");

        let found = Found::in_memory_of(&tfo_run, &parts);
        let places: Vec<_> = parts.iter().map(|part| found.places(part)).collect();
        assert_eq!(places[0].len(), 1);
        let start = places[0][0];
        assert_eq!(places, [[start], [start + 8], [start + 16], [start + 24]]);
        assert!(is_locked(&tfo_run, start));

        let (secret, schedule) =
            (Secret::read(file).unwrap(), Schedule::new(Duration::from_hours(7 * 24)).unwrap());
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let number = schedule.number(now);
        let keys: Vec<_> = (number - 9..=number + 1).map(|number| secret.key(number)).collect();
        assert!(keys.iter().any(|key| kernel_keys().current == Some(*key)));
        let found = search(&tfo_run, &keys);
        keys.iter().for_each(|key| assert_nowhere(&found, *key));
    });
}

/// The writable memory of the process is locked, whatever the source of keys.
#[test]
fn memory_is_locked() {
    server_and_client(|_| {
        let tfo_run = Running::start(&["-i", IFACE]);
        assert!(mappings(&tfo_run).iter().all(|mapping| mapping.is_locked || mapping.is_map));
    });
}

/// A second controller in the network namespace follows the kernel, so its map has the leaked key, too.
#[test]
fn an_emergency_reaches_every_map_of_the_namespace() {
    server_and_client(|_| {
        // Its name comes first, so the request to rotate must go to the other one.
        ip("link add a0 type veth peer name a1");
        let dir = tempfile::tempdir().unwrap();
        let _follows = Running::start(&["-i", "a0"]);
        let _makes = with_random_keys(&dir.path().join("keys.json"), &[]);
        let first = kernel_keys().current.unwrap();
        let holds = |key: Key| keys_status("a0")["keys"].to_string().contains(&fingerprint(key));
        // It follows a few times a second, and rotations may be faster.
        eventually("it has followed", || holds(first));
        (0..3).for_each(|_| drop(rotate(&[])));
        let leaked = kernel_keys().current.unwrap();
        eventually("it has followed", || holds(first) && holds(leaked));
        rotate(&["--emergency"]);
        assert!(!holds(first) && !holds(leaked));
        assert!(holds(kernel_keys().current.unwrap()));
    });
}

/// Maps of an absent interface still belong to its controller. When it returns, the leaked key is nowhere.
#[test]
fn an_emergency_reaches_the_maps_of_an_interface_that_is_gone() {
    server_and_client(|_| {
        ip("link add v0 type veth peer name v1");
        let dir = tempfile::tempdir().unwrap();
        let tfo_run = with_random_keys(&dir.path().join("keys.json"), &["-i", "v0"]);
        let leaked = kernel_keys().current.unwrap();
        let holds = |key: Key| keys_status("v0")["keys"].to_string().contains(&fingerprint(key));
        assert!(holds(leaked));
        ip("link del v0");
        eventually("it is gone", || !is_attached("v0"));
        rotate(&["--emergency", "-i", IFACE]);
        let now = kernel_keys();
        assert!(now.current != Some(leaked) && now.backup.is_none());
        assert!(!holds(leaked) && holds(now.current.unwrap()));
        ip("link add v0 type veth peer name v1");
        eventually("it is attached again", || is_attached("v0"));
        assert!(!holds(leaked) && holds(now.current.unwrap()));
        tfo_run.end(Signal::SIGINT);
    });
}

/// An emergency succeeds even if its only interface is absent.
#[test]
fn an_emergency_with_its_only_interface_gone_succeeds() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json");
        let _tfo = Running::start(&["-i", "v0", "--keys", "random", "--key-state", state.to_str().unwrap()]);
        eventually("its key is the kernel's", || kernel_keys().current.is_some());
        let leaked = kernel_keys().current;
        ip("link del v0");
        eventually("it is gone", || !is_attached("v0"));
        rotate(&["--emergency"]);
        assert!(kernel_keys().current != leaked && kernel_keys().backup.is_none());
        assert!(!keys_status("v0")["keys"].to_string().contains(&fingerprint(leaked.unwrap())));
    });
}

/// Maps that can't be opened may hold the leaked key. The emergency names them, and fails.
#[test]
fn an_emergency_skips_no_map_that_it_cannot_open() {
    server_and_client(|_| {
        ip("link add a0 type veth peer name a1");
        let dir = tempfile::tempdir().unwrap();
        Running::start(&["-i", "a0"]).kill();
        let _makes = with_random_keys(&dir.path().join("keys.json"), &[]);
        fs::remove_file(Bpffs::new(Path::new(BPFFS)).pins("a0").current().unwrap().map(names::INFO)).unwrap();
        let leaked = kernel_keys().current;
        let (code, error) = failure(&tfo(&["keys", "rotate", "--emergency", "-i", IFACE]));
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains("a0: its map may still contain old keys"), "{error}");
        assert!(kernel_keys().current != leaked, "what can be done is done");
    });
}

/// Commands name the place that is out of step in the same words.
#[test]
fn keys_out_of_step_are_seen() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let tfo_run = with_random_keys(&dir.path().join("keys.json"), &[]);
        rotate(&[]);
        let shown = |key: Option<Key>| serde_json::Value::from(key.map(fingerprint));
        let expect = |in_step: bool, map: KernelKeys, kernel: KernelKeys, schedule: Option<KernelKeys>| {
            let pair = |keys: KernelKeys| serde_json::json!({"current": shown(keys.current), "backup": shown(keys.backup)});
            let (status, keys) = (&status(IFACE)["keys"], &keys_status(IFACE));
            let schedule = schedule.map_or(serde_json::Value::Null, pair);
            for report in [status, keys] {
                assert_eq!(report["in_step"], in_step);
                assert_eq!((&report["kernel"], &report["schedule"]), (&pair(kernel), &schedule));
            }
            assert_eq!((&status["current"], &status["backup"]), (&shown(map.current), &shown(map.backup)));
            for command in [&["status"] as &[&str], &["keys", "status"]] {
                let text = String::from_utf8(tfo(command).stdout).unwrap();
                let row = |place: &str| {
                    let row = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
                    row.into_iter().find(|row| row[0] == place).map(|row| row[1..].join(" "))
                };
                let pair = |keys: KernelKeys| {
                    [keys.current, keys.backup]
                        .map(|key| key.map_or("none".to_owned(), fingerprint))
                        .join(" ")
                };
                assert_eq!(text.contains("OUT OF STEP"), !in_step, "{text}");
                assert_eq!((row("map"), row("kernel")), (Some(pair(map)), Some(pair(kernel))), "{text}");
            }
        };
        let ours = kernel_keys();
        expect(true, ours, ours, Some(ours));
        set_keys(IFACE, random_key().unwrap(), None);
        expect(false, kernel_keys(), kernel_keys(), Some(ours));
        // Without a controller, the sysctl is still read, but the wanted keys are unknown.
        tfo_run.kill();
        let followed = kernel_keys();
        expect(true, followed, followed, None);
        let other = random_key().unwrap();
        tfo_userspace::kernel::sysctl::KeySysctl::open().unwrap().write(other, None).unwrap();
        expect(false, followed, kernel_keys(), None);
    });
}

/// The map can't be compared with the kernel of another network namespace, which has another key.
#[test]
fn keys_of_another_namespace_are_not_compared() {
    server_and_client(|client| {
        let _tfo = Running::start(&["-i", IFACE]);
        client
            .run(|| {
                let status = keys_status(IFACE);
                assert!(status["in_step"].is_null() && status["kernel"].is_null(), "{status}");
                let text = String::from_utf8(tfo(&["keys", "status"]).stdout).unwrap();
                assert!(text.contains("keys not compared"), "{text}");
                Ok(())
            })
            .unwrap();
    });
}
