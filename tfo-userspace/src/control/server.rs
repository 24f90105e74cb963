//! Taking orders, for as long as the attachment is ours.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::unistd::geteuid;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    FOLDER,
    protocol::{
        Answer, Header, LONGEST, ORDERS, Order, Outcome, Request, VERSION, monotonic_ns, read, write,
    },
    socket,
};
use crate::dataplane::pins::Pins;

/// How long the other side may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// An order, and where its outcome goes.
pub struct Given {
    order: Order,
    deadline_ns: u64,
    reply: Reply,
}

impl Given {
    /// The order, unless it comes too late: whoever gave it has been told that it was not carried out.
    pub fn take(self) -> Option<(Order, Reply)> {
        let Self { order, deadline_ns, reply } = self;
        match monotonic_ns() {
            Ok(now) if now <= deadline_ns => Some((order, reply)),
            _ => {
                reply.send(Err(anyhow!("the order came too late and was not carried out: give it again")));
                None
            }
        }
    }
}

/// The way back to whoever gave an order.
pub struct Reply(oneshot::Sender<Result<String>>);

impl Reply {
    /// Tells what has come of it. Whoever does not wait for that does without.
    pub fn send(self, outcome: Result<String>) {
        let _: Result<(), _> = self.0.send(outcome);
    }
}

/// The sockets of all attachments that are ours.
pub struct Server {
    sockets: Vec<Socket>,
    orders: mpsc::Sender<Given>,
}

/// A socket, which is removed on drop.
struct Socket {
    interface: String,
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens for orders that concern `all`, from now on. Where that can't be, it is said, and there are none.
    pub fn listen<'a>(all: impl Iterator<Item = &'a Pins>) -> (Self, mpsc::Receiver<Given>) {
        let (orders, receiver) = mpsc::channel(1);
        let mut server = Self { sockets: Vec::new(), orders };
        for pins in all {
            if let Err(error) = server.add(pins) {
                warn!(
                    "{}: `tfo keys rotate`, `import`, `tfo reload`, `hide`, `events` and `report` will not be heard: \
                     {error:#}",
                    pins.interface()
                );
            }
        }
        (server, receiver)
    }

    /// Whoever holds the lock on the pins has their socket: what another has left there is removed.
    fn add(&mut self, pins: &Pins) -> Result<()> {
        make_folder()?;
        let path = socket(pins)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))
            .with_context(|| format!("cannot protect {}", path.display()))?;
        let task = tokio::spawn(serve(listener, self.orders.clone()));
        self.sockets.push(Socket { interface: pins.interface().to_owned(), path, task });
        Ok(())
    }

    /// Takes no more orders for interfaces that are not `ours` any more.
    pub fn retain(&mut self, ours: impl Fn(&str) -> bool) {
        self.sockets.retain(|socket| ours(&socket.interface));
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = fs::remove_file(&self.path) {
            debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Makes [`FOLDER`], if need be, and makes sure that nobody else can put a socket there.
fn make_folder() -> Result<()> {
    let folder = Path::new(FOLDER);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make {FOLDER}"))?;
    let found = fs::symlink_metadata(folder).with_context(|| format!("cannot examine {FOLDER}"))?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
        bail!(
            "others could put a socket into {FOLDER} (owner {}, mode {:04o}): remove it, or chmod 700",
            found.uid(),
            found.mode() & 0o7777
        );
    }
    Ok(())
}

async fn serve(listener: UnixListener, orders: mpsc::Sender<Given>) {
    loop {
        match listener.accept().await {
            // Nobody keeps others waiting.
            Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw()) => {
                let orders = orders.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, orders).await {
                        debug!("an order was not answered: {error:#}");
                    }
                });
            }
            Ok(_) => {}
            // Out of descriptors, say: not for ever, it is hoped.
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

async fn converse(mut stream: UnixStream, orders: mpsc::Sender<Given>) -> Result<()> {
    let request = timeout(PATIENCE, read(&mut stream, LONGEST)).await??;
    if request.is_empty() {
        // Whoever only wanted to know who listens.
        return Ok(());
    }
    let outcome = match understand(&request) {
        Ok(Request { deadline_ns, order, .. }) => {
            let (reply, outcome) = oneshot::channel();
            let patience = order.patience();
            let given = Given { order, deadline_ns, reply: Reply(reply) };
            orders.send(given).await.ok().context("the controller is ending")?;
            timeout(patience, outcome)
                .await
                .context("it took too long")?
                .context("the controller is ending")?
        }
        Err(error) => Err(error),
    };
    drop(request);
    let outcome = match outcome {
        Ok(done) => Outcome::Done(done),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    timeout(PATIENCE, write(&mut stream, &Answer { version: VERSION, outcome })).await?
}

/// What `request` says. Errors show nothing of it: it may hold a key.
fn understand(request: &[u8]) -> Result<Request<Order>> {
    let header: Header = serde_json::from_slice(request).map_err(|_| {
        anyhow!("this is no request: it takes a JSON object with version, deadline_ns and order")
    })?;
    if header.version != VERSION {
        bail!(
            "this tfo ({}) understands version {VERSION} of orders, and this one has version {}: use the tfo that runs",
            env!("CARGO_PKG_VERSION"),
            header.version
        );
    }
    serde_json::from_slice(request).map_err(|_| {
        anyhow!(
            "this tfo ({}) does not understand that order; it knows {ORDERS}: use the tfo that runs",
            env!("CARGO_PKG_VERSION")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_said() {
        let why = |request: &str| understand(request.as_bytes()).err().map(|error| error.to_string());
        assert_eq!(why(r#"{"version":1,"deadline_ns":1,"order":"reload"}"#), None);
        assert_eq!(why(r#"{"version":1,"deadline_ns":1,"order":{"rotate":{"emergency":true}}}"#), None);
        let other = why(r#"{"version":2,"new":"thing"}"#).expect("another version");
        assert!(other.contains("version 1 of orders") && other.contains("has version 2"), "{other}");
        for unknown in
            [r#"{"version":1,"deadline_ns":1,"order":"dance"}"#, r#"{"version":1,"order":"reload"}"#]
        {
            let why = why(unknown).expect("no order");
            assert!(why.contains("does not understand") && why.contains("hide_list"), "{why}");
        }
        for nonsense in ["", "{", "[]", "reload"] {
            assert!(why(nonsense).is_some_and(|why| why.contains("no request")), "{nonsense}");
        }
        let secret = why(r#"{"version":1,"deadline_ns":1,"order":{"import":{"key":17,"x":"c0ffee"}}}"#);
        assert!(!secret.expect("no key").contains("c0ffee"));
    }
}
