//! Screen of `tfo top`, with live rates. It runs in its own process and only reads.

pub mod draw;
pub mod input;
pub mod model;

use std::{
    cmp::Reverse,
    io::{self, stdout},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use crossterm::{
    cursor, event, execute,
    terminal::{EnterAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use input::Action;
use model::{Look, Model, Prefix};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ratatui::DefaultTerminal;
use tfo_common::observed::PrefixTally;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::timeout,
};

use crate::{
    control::{Request, send},
    dataplane::{
        Pinned,
        pins::{Bpffs, Pins},
    },
    kernel::{netns, tcp_ext::TcpExt},
    util::{logging, signals::Signals, time::every},
    view::{
        counters::Report,
        events::{Event, Recent},
        key_listing::Listing,
        network,
    },
};

/// Interval at which the counters are read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Maximum number of key strokes that wait.
const INPUT_QUEUE: usize = 64;
/// Maximum number of events that are shown.
const MAX_EVENTS: usize = 100;
/// Timeout of the request for events. Key strokes are not handled meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);
/// Maximum number of source prefixes that are shown.
const MAX_PREFIXES: usize = 100;

/// Reads the program that is attached with `pins`, but not what only its controller knows.
pub fn look(pins: &Pins) -> Result<Look> {
    let pinned = Pinned::open(pins)?;
    let keys = Listing::of(pins, &pinned)?;
    let is_our_namespace = pinned.info().netns == netns::netns()?;
    Ok(Look {
        at: Instant::now(),
        report: Report::read(pins, &pinned)?,
        kernel: is_our_namespace.then(TcpExt::read).and_then(Result::ok),
        controller: pins.has_controller()?,
        in_step: keys.attestation.in_step(),
        next_secret_in: keys.next_secret_in(),
        keys: keys.keys,
        prefixes: Some(prefixes(&pinned)),
        events: None,
        fleet: None,
    })
}

/// Reads the source prefixes, the one with most SYNs first.
fn prefixes(pinned: &Pinned) -> Vec<Prefix> {
    let mut all = pinned.prefixes();
    let weight = |tally: &PrefixTally| Reverse(tally.requests + tally.valid + tally.unknown);
    all.sort_by_key(|(prefix, tally)| (weight(tally), prefix.family, prefix.bytes.swap_bytes()));
    all.truncate(MAX_PREFIXES);
    let shown = all.into_iter().map(|(prefix, PrefixTally { requests, valid, unknown, .. })| Prefix {
        prefix: network::of_prefix(prefix),
        requests,
        valid,
        unknown,
    });
    shown.collect()
}

/// Shows the screen, first with the interface of this [full name](Pins::full_name), until the user quits or a signal comes. If the program is detached
/// meanwhile, the screen waits for its return.
pub async fn run(interface: &str, bpffs: &Bpffs) -> Result<()> {
    // Signals are caught before the terminal changes, so that it is always restored.
    let mut signals = Signals::new()?;
    let mut continued =
        signal(SignalKind::from_raw(Signal::SIGCONT as i32)).context("cannot catch signals")?;
    let mut tick = every(LOOK_EVERY);
    let mut model = Model::new(interface);
    let mut screen = Screen::open()?;
    let mut input = input()?;
    loop {
        screen.draw(&model)?;
        tokio::select! {
            _ = signals.next() => return Ok(()),
            // The shell had the terminal while this process was stopped.
            _ = continued.recv() => screen.reclaim()?,
            _ = tick.tick() => if !model.paused { update(&mut model, bpffs).await },
            event = input.recv() => {
                let event = event.context("the keyboard is gone")??;
                match input::handle(&event, &mut model) {
                    Action::None => {}
                    Action::Quit => return Ok(()),
                    Action::Suspend => screen.suspend()?,
                    Action::NextInterface => {
                        next_interface(&mut model, bpffs);
                        update(&mut model, bpffs).await;
                    }
                }
            }
        }
    }
}

/// Requests the latest events, newest first; `None` if no controller answers.
async fn events(pins: &Pins) -> Option<Vec<String>> {
    let request = Request::Events { interface: pins.interface().to_owned(), after: 0, most: MAX_EVENTS };
    let answer = timeout(ANSWER_TIMEOUT, send(pins, &request)).await.ok()?.ok()?;
    let recent: Recent = serde_json::from_str(&answer).ok()?;
    Some(recent.events.iter().rev().map(Event::text).collect())
}

/// Reads the interface again, with its events.
async fn update(model: &mut Model, bpffs: &Bpffs) {
    let pins = bpffs.named(&model.interface);
    match pins.has_link() {
        Ok(false) => model.record_error("not attached: waiting for `tfo run`".to_owned()),
        Ok(true) => match look(&pins) {
            Ok(look) => {
                let fleet = match Pinned::open(&pins) {
                    Ok(pinned) => super::fleet::state(&pins, &pinned).await,
                    Err(_) => None,
                };
                model.record(Look { events: events(&pins).await, fleet, ..look });
            }
            Err(error) => model.record_error(format!("{error:#}")),
        },
        Err(error) => model.record_error(format!("{error:#}")),
    }
}

/// Shows the next attached interface by name, if there is another one.
fn next_interface(model: &mut Model, bpffs: &Bpffs) {
    let Ok(attached) = bpffs.attached() else { return };
    let names: Vec<_> = attached.map(|pins| pins.full_name()).collect();
    let next = names.iter().find(|name| **name > model.interface).or(names.first());
    if let Some(next) = next.filter(|next| **next != model.interface) {
        model.switch(next);
    }
}

/// Starts a thread that reads the keyboard, since reading blocks. The thread ends with the process.
fn input() -> Result<mpsc::Receiver<io::Result<event::Event>>> {
    let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
    let read = move || {
        loop {
            let event = event::read();
            let is_over = event.is_err();
            if sender.blocking_send(event).is_err() || is_over {
                return;
            }
        }
    };
    thread::Builder::new().name("keyboard".to_owned()).spawn(read).context("cannot start a thread")?;
    Ok(receiver)
}

/// Terminal in use by the screen. It is restored on drop, and before a panic is reported.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn open() -> Result<Self> {
        let terminal = ratatui::try_init().inspect_err(|_| drop(ratatui::try_restore()));
        let terminal = terminal.context("cannot use this terminal")?;
        // Log lines would spoil the picture.
        logging::hold(true);
        Ok(Self { terminal })
    }

    fn draw(&mut self, model: &Model) -> Result<()> {
        self.terminal.draw(|frame| draw::draw(frame, model)).context("cannot write to the terminal")?;
        Ok(())
    }

    /// Stops the process as Ctrl-Z does, until it is continued.
    fn suspend(&mut self) -> Result<()> {
        self.restore();
        // The signal goes to the whole process group, such as a pipeline. The kernel ignores it for an
        // orphaned group, which no shell could continue.
        kill(Pid::from_raw(0), Signal::SIGTSTP).context("cannot suspend")?;
        self.reclaim()
    }

    /// Sets up the terminal again, whatever state other programs have left it in.
    fn reclaim(&mut self) -> Result<()> {
        let mut reclaim = || {
            disable_raw_mode()?;
            enable_raw_mode()?;
            execute!(stdout(), EnterAlternateScreen, cursor::Hide)?;
            // `clear` would ask the terminal for the cursor's position, but the keyboard thread would read the answer.
            self.terminal.resize(self.terminal.size()?.into())
        };
        reclaim().context("cannot use the terminal again")
    }

    fn restore(&mut self) {
        // Errors mean that the terminal is gone, and then there is nothing to restore.
        let _: io::Result<()> = self.terminal.show_cursor();
        let _: io::Result<()> = ratatui::try_restore();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.restore();
        logging::hold(false);
    }
}
