//! Client that sends a request to the controller. Each wait has a limit, even if the controller hangs.

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
    protocol::{Answer, Envelope, Outcome, Request, VERSION, monotonic_ns, read, write},
    socket,
};
use crate::{control::NotRunning, dataplane::pins::Pins};

/// Time within which the controller must take up a request. Later it does not carry the request out, even if it was
/// stopped meanwhile and goes on.
const DEADLINE: Duration = Duration::from_secs(5);
/// Additional time for the transfer of the answer.
const MARGIN: Duration = Duration::from_secs(1);

/// Sends the request `order` to the controller of `pins`, and returns the answer.
pub async fn send(pins: &Pins, order: &Request) -> Result<String> {
    let interface = pins.interface();
    let mut stream = connect(pins)?;
    let request = Envelope {
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
            "no answer from the tfo that runs on {interface}: is it stopped? A request that it has not \
             taken up after {} s is not carried out",
            DEADLINE.as_secs()
        )
    })??;
    if answer.is_empty() {
        bail!("the tfo that ran on {interface} ended without an answer");
    }
    let answer: Answer = serde_json::from_slice(&answer).with_context(|| {
        format!("the tfo that runs on {interface} sent an answer that this one does not understand")
    })?;
    match answer.outcome {
        Outcome::Done(done) => Ok(done),
        Outcome::Failed(why) => bail!(why),
    }
}

/// Returns the process id of the controller of `pins`, or `None` if no controller runs. A stopped process is found,
/// too.
pub fn process(pins: &Pins) -> Option<u32> {
    let peer = connect(pins).ok()?.peer_cred().ok()?;
    peer.pid().and_then(|pid| u32::try_from(pid).ok())
}

fn connect(pins: &Pins) -> Result<UnixStream> {
    let interface = pins.interface();
    let nobody = || NotRunning(format!("no controller runs on {interface}"));
    let path = socket(pins).map_err(|_| nobody())?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).context("cannot make a socket")?;
    // If the backlog of the socket is full, `connect` returns at once with an error.
    socket.set_nonblocking(true).context("cannot make a socket")?;
    match socket.connect(&SockAddr::unix(path).context("cannot name the socket")?) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("the tfo that runs on {interface} takes no requests: is it stopped?")
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
