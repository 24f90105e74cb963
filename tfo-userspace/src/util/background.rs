//! A writer that never blocks its caller. A stopped terminal (Ctrl-S) or an unread pipe must not keep the controller
//! from following keys and signals.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::util::privileges;

/// A writer with its own thread, which has no capabilities. A write that finds the queue full is dropped.
///
/// `tracing_appender::non_blocking` is similar. But if its queue stays full at the end, it says so on standard output,
/// and blocks for ever if that is not read either.
#[derive(Clone, Debug)]
pub struct Background {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Text(Vec<u8>),
    /// Mark of [`Background::drain`]. The writer answers it after all earlier text.
    Mark(SyncSender<()>),
}

impl Background {
    /// Starts a thread that writes to `out`. At most `queue` writes wait for it.
    pub fn new(out: impl Write + Send + 'static, queue: usize) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(queue);
        thread::Builder::new().name("writer".to_owned()).spawn(move || {
            // To write into an open file takes none. If this fails, the thread is no worse off than the others.
            drop(privileges::drop_all());
            write_all(out, &receiver);
        })?;
        Ok(Self { queue: sender, dropped: Arc::default() })
    }

    /// Number of writes that were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all text is written, but no longer than `patience`.
    pub fn drain(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let (done, is_done) = sync_channel(1);
        let mut mark = Message::Mark(done);
        // The queue may be full for ever, or only until the writer's next turn.
        while let Err(TrySendError::Full(back)) = self.queue.try_send(mark) {
            if Instant::now() >= end {
                return;
            }
            mark = back;
            thread::sleep(Duration::from_millis(1));
        }
        let _: Result<(), _> = is_done.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

impl Write for Background {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Message::Text(text.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(mut out: impl Write, queue: &Receiver<Message>) {
    for message in queue {
        match message {
            // The thread goes on after a failed write, since later writes may succeed.
            Message::Text(text) => drop(out.write_all(&text).and_then(|()| out.flush())),
            Message::Mark(done) => drop(done.try_send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// Counts the bytes that are written.
    struct Counter(Arc<AtomicUsize>);

    impl Write for Counter {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.fetch_add(text.len(), Ordering::Relaxed);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// An unread pipe takes 64 KiB, then blocks its writer for ever.
    #[test]
    fn a_blocked_reader_makes_nobody_wait() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut background = Background::new(writer, 4).unwrap();
        for _ in 0..100 {
            background.write_all(&[b'x'; 65_536]).unwrap();
        }
        background.drain(Duration::from_millis(1));
        // One write is in the pipe, one blocks, and four wait; fewer if the writer has not begun.
        assert!((94..100).contains(&background.dropped()), "{}", background.dropped());
    }

    /// The queue has room for one write only, so the write before the mark fills it.
    #[test]
    fn drain_waits_until_all_is_written() {
        for _ in 0..1000 {
            let count = Arc::new(AtomicUsize::new(0));
            let mut background = Background::new(Counter(Arc::clone(&count)), 1).unwrap();
            background.write_all(b"it").unwrap();
            background.drain(Duration::from_secs(20));
            assert_eq!(count.load(Ordering::Relaxed), 2);
        }
    }

    #[test]
    fn writes_arrive_in_order() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut background = Background::new(writer, 16).unwrap();
        background.write_all(b"one ").unwrap();
        background.write_all(b"two").unwrap();
        background.drain(Duration::from_secs(20));
        drop(background);
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "one two");
    }
}
