//! Flood of forged SYNs at a steady rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tfo_userspace::lab::net::Namespace;

use crate::wire::Wire;

/// Time between two bursts.
const BURST_EVERY: Duration = Duration::from_micros(200);
/// Most frames in a burst: a quarter of a veth pair's queue (VETH_RING_SIZE), so that it has room for others.
const BURST: u64 = 64;

/// Thread that sends frames again and again. It ends when this is dropped.
pub struct Flood {
    is_over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    begun: Instant,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Sends `frames` in turn from `interface` in the namespace `of`, as many as `per_second`. Each time, their source port
    /// at `port` is that of the time before plus one.
    pub fn start(
        of: &Namespace,
        interface: &str,
        frames: Vec<Vec<u8>>,
        port: usize,
        per_second: u64,
    ) -> Self {
        let (is_over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let wire = of.run(|| Ok(Wire::blind(interface))).expect("an interface");
        let (over, count, begun) = (is_over.clone(), sent.clone(), Instant::now());
        let thread = thread::spawn(move || {
            let (mut frames, mut next, mut skipped) = (frames, 0, 0);
            while !over.load(Ordering::Relaxed) {
                let due = begun.elapsed().as_micros() as u64 * per_second / 1_000_000;
                let waiting = due - skipped - count.load(Ordering::Relaxed);
                // A busy machine may have delayed us.
                skipped += waiting.saturating_sub(BURST);
                for _ in 0..waiting.min(BURST) {
                    wire.send(&frames[next]);
                    advance(&mut frames[next], port);
                    next = (next + 1) % frames.len();
                    count.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(BURST_EVERY);
            }
        });
        Self { is_over, sent, begun, thread: Some(thread) }
    }

    /// Returns the number of frames that were sent in each second so far.
    pub fn rate(&self) -> f64 {
        self.sent.load(Ordering::Relaxed) as f64 / self.begun.elapsed().as_secs_f64()
    }
}

/// Adds one to the source port at `port`, and corrects the TCP checksum (RFC 1624, equation 3).
fn advance(frame: &mut [u8], port: usize) {
    let read = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let (old, sum) = (read(port), read(port + 16));
    let new = old.wrapping_add(1);
    let changed = u32::from(!sum) + u32::from(!old) + u32::from(new);
    let changed = (changed & 0xffff) + (changed >> 16);
    let changed = (changed & 0xffff) + (changed >> 16);
    frame[port..port + 2].copy_from_slice(&new.to_be_bytes());
    frame[port + 16..port + 18].copy_from_slice(&(!(changed as u16)).to_be_bytes());
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
