//! Orders for a running controller: `tfo keys rotate`, `tfo keys import`, `tfo reload`, `tfo hide`, `tfo events`, `tfo report`.
//!
//! A Unix socket with an abstract name, which is of the network namespace, as keys are, and leaves no file behind. Anybody
//! may connect to such a socket, or take its name first, so both sides ask the kernel who the other is, and deal with root
//! only. One request and one answer, each JSON up to its end.

use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use log::warn;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use zeroize::Zeroizing;

use crate::{error::NotRunning, guards::Hidden};

/// The longest order and, where it has to do with keys, the longest answer, in bytes.
const LONGEST: usize = 4096;
/// The longest answer to an order that has nothing to do with keys, in bytes.
pub const LONGEST_ACCOUNT: usize = 2 << 20;
/// How long the other side may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// An order. It has no Debug: it may hold a key.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Make a new key and use it.
    Rotate {
        /// And let nothing that was made with an earlier one be accepted.
        emergency: bool,
    },
    /// Let go of all keys but those that the kernel is to hold: another controller has changed them, since they leaked.
    Forget,
    /// Use this key, in the sysctl's form.
    Import {
        /// The key.
        key: Zeroizing<String>,
    },
    /// Hand out events: see [`EventLog::json`](crate::events::EventLog::json).
    Events {
        /// Of this interface.
        interface: String,
        /// Those behind this number.
        after: u64,
        /// And no more than so many, the newest.
        most: usize,
    },
    /// Hand out what is remembered: see [`History::json`](crate::history::History::json).
    History {
        /// Of this interface.
        interface: String,
    },
    /// Read the configuration file again.
    Reload,
    /// Hide Fast Open from the stack, or hide it no longer.
    Hide {
        /// On this interface.
        interface: String,
        /// Whose.
        what: Hidden,
        /// Whether to hide it.
        on: bool,
    },
    /// Hand out what [`Order::Hide`] has hidden, as a list of [`Hidden`] in JSON.
    HideList {
        /// On this interface.
        interface: String,
    },
}

impl Order {
    /// How long its answer may get, in bytes.
    fn longest_answer(&self) -> usize {
        match self {
            Self::Rotate { .. } | Self::Forget | Self::Import { .. } => LONGEST,
            Self::Events { .. }
            | Self::History { .. }
            | Self::Reload
            | Self::Hide { .. }
            | Self::HideList { .. } => LONGEST_ACCOUNT,
        }
    }
}

/// Its outcome.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done(String),
    Failed(String),
}

/// An order, and where its outcome goes.
pub struct Given {
    /// The order.
    pub order: Order,
    /// The way back to whoever gave it.
    pub reply: Reply,
}

/// The way back to whoever gave an order.
pub struct Reply(oneshot::Sender<Result<String>>);

impl Reply {
    /// Tells what has come of it. Whoever does not wait for that does without.
    pub fn send(self, outcome: Result<String>) {
        let _: Result<(), _> = self.0.send(outcome);
    }
}

/// Listens for orders that concern any of `interfaces`, from now on. Where that can't be, it is said, and there are none.
pub fn listen(interfaces: &[String]) -> mpsc::Receiver<Given> {
    let (sender, receiver) = mpsc::channel(1);
    let mut names: Vec<_> = interfaces.iter().collect();
    names.sort();
    names.dedup();
    for interface in names {
        let listen = || {
            let listener = StdListener::bind_addr(&address(interface)?)?;
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        match listen() {
            Ok(listener) => drop(tokio::spawn(serve(listener, sender.clone()))),
            Err(error) => {
                warn!(
                    "{interface}: `tfo keys rotate`, `import`, `tfo reload`, `hide`, `events` and `report` will not be heard: \
                     {error}"
                )
            }
        }
    }
    receiver
}

async fn serve(listener: UnixListener, orders: mpsc::Sender<Given>) {
    loop {
        match listener.accept().await {
            // Whoever is not root gets no answer, and nobody keeps others waiting.
            Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) => {
                let orders = orders.clone();
                tokio::spawn(async move { timeout(PATIENCE, answer(stream, orders)).await });
            }
            Ok(_) => {}
            // Out of descriptors, say: not for ever, it is hoped.
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

async fn answer(mut stream: UnixStream, orders: mpsc::Sender<Given>) -> Result<()> {
    let order = serde_json::from_slice(&read(&mut stream, LONGEST).await?);
    let (reply, outcome) = oneshot::channel();
    let outcome = match order {
        Ok(order) => {
            orders
                .send(Given { order, reply: Reply(reply) })
                .await
                .ok()
                .context("the controller is ending")?;
            outcome.await?
        }
        Err(error) => Err(error.into()),
    };
    let answer = match outcome {
        Ok(done) => Answer::Done(done),
        Err(error) => Answer::Failed(format!("{error:#}")),
    };
    write(&mut stream, &answer).await
}

/// All that the other side says. It is read into its final place, which does not grow: it may hold a key.
async fn read(stream: &mut UnixStream, longest: usize) -> Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(longest));
    stream.take(longest as u64).read_to_end(&mut text).await?;
    Ok(text)
}

/// Says `what`, and nothing more. What holds a key does not grow.
async fn write(stream: &mut UnixStream, what: &impl Serialize) -> Result<()> {
    let mut text = Zeroizing::new(Vec::with_capacity(LONGEST));
    serde_json::to_writer(&mut *text, what)?;
    stream.write_all(&text).await?;
    Ok(stream.shutdown().await?)
}

/// Gives `order` to the controller of `interface` and waits for the answer.
pub async fn give(interface: &str, order: &Order) -> Result<String> {
    let connect = || {
        let stream = StdStream::connect_addr(&address(interface)?)?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    };
    let Ok(mut stream) = connect() else {
        let why = format!("no tfo that takes orders runs on {interface} in this network namespace");
        return Err(NotRunning(why).into());
    };
    if stream.peer_cred().map_or(true, |peer| peer.uid() != 0) {
        bail!("whoever answers for the tfo on {interface} is not root: nothing was said to it");
    }
    let exchange = async {
        write(&mut stream, order).await?;
        anyhow::Ok(serde_json::from_slice(&read(&mut stream, order.longest_answer()).await?)?)
    };
    let answer = timeout(PATIENCE, exchange).await.context("no answer")?;
    match answer.with_context(|| format!("no answer from the tfo that runs on {interface}"))? {
        Answer::Done(done) => Ok(done),
        Answer::Failed(why) => bail!(why),
    }
}

fn address(interface: &str) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("tfo/{interface}"))
}
