//! Giving an order. Nothing here waits for ever, whatever the controller does.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::unistd::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{net::UnixStream, time::timeout};

use super::{
    protocol::{Answer, Order, Outcome, Request, VERSION, monotonic_ns, read, write},
    socket,
};
use crate::{control::NotRunning, dataplane::pins::Pins};

/// How long an order may wait to be taken up: after that, a controller that was stopped does not carry it out any more.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long the answer may take besides, on its way.
const MARGIN: Duration = Duration::from_secs(1);

/// Gives `order` to the controller of `pins` and waits for the answer.
pub async fn give(pins: &Pins, order: &Order) -> Result<String> {
    let interface = pins.interface();
    let mut stream = connect(pins)?;
    let request = Request {
        version: VERSION,
        deadline_ns: monotonic_ns()?.saturating_add(u64::try_from(DEADLINE.as_nanos())?),
        order,
    };
    let exchange = async {
        write(&mut stream, &request).await?;
        anyhow::Ok(read(&mut stream, order.longest_answer()).await?)
    };
    let patience = DEADLINE + order.patience() + MARGIN;
    let answer = timeout(patience, exchange).await.map_err(|_| {
        anyhow!(
            "no answer from the tfo that runs on {interface}: is it stopped? What it had not taken up after {} s it does not \
             carry out any more",
            DEADLINE.as_secs()
        )
    })??;
    if answer.is_empty() {
        bail!("the tfo that ran on {interface} ended without an answer");
    }
    let answer: Answer = serde_json::from_slice(&answer).with_context(|| {
        format!("the tfo that runs on {interface} gives no answer that this one understands")
    })?;
    match answer.outcome {
        Outcome::Done(done) => Ok(done),
        Outcome::Failed(why) => bail!(why),
    }
}

/// The process that takes orders for `pins`; `None` where there is none. A controller that is stopped is found, too.
pub fn process(pins: &Pins) -> Option<u32> {
    let peer = connect(pins).ok()?.peer_cred().ok()?;
    peer.pid().and_then(|pid| u32::try_from(pid).ok())
}

fn connect(pins: &Pins) -> Result<UnixStream> {
    let interface = pins.interface();
    let nobody = || NotRunning(format!("no controller runs on {interface}"));
    let path = socket(pins).map_err(|_| nobody())?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).context("cannot make a socket")?;
    // Where more wait than the kernel keeps, it says so.
    socket.set_nonblocking(true).context("cannot make a socket")?;
    match socket.connect(&SockAddr::unix(path).context("cannot name the socket")?) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("the tfo that runs on {interface} takes no orders: is it stopped?")
        }
        Err(_) => return Err(nobody().into()),
        Ok(()) => {}
    }
    let stream = StdStream::from(OwnedFd::from(socket));
    let stream = UnixStream::from_std(stream).context("cannot talk to the controller")?;
    if stream.peer_cred().map_or(true, |peer| peer.uid() != geteuid().as_raw()) {
        bail!("the process behind the socket of {interface} belongs to another user: no request was sent");
    }
    Ok(stream)
}
