//! Server of the control sockets of our interfaces.

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
        Answer, Envelope, Header, LONGEST, NAMES, Outcome, Request, VERSION, monotonic_ns, read, write,
    },
    socket,
};
use crate::dataplane::pins::Pins;

/// Time that a client may take to send its request, and again to read the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Received request, with the way back to its client.
pub struct PendingRequest {
    order: Request,
    deadline_ns: u64,
    reply: Reply,
}

impl PendingRequest {
    /// Takes the request up. After its deadline it is refused instead, since its client may have given up.
    pub fn take(self) -> Option<(Request, Reply)> {
        let Self { order, deadline_ns, reply } = self;
        match monotonic_ns() {
            Ok(now) if now <= deadline_ns => Some((order, reply)),
            _ => {
                reply.send(Err(anyhow!("the request came too late and was not carried out: give it again")));
                None
            }
        }
    }
}

/// Way back to the client of a request.
pub struct Reply(oneshot::Sender<Result<String>>);

impl Reply {
    /// Sends the outcome to the client. It is lost if the client does not wait any more.
    pub fn send(self, outcome: Result<String>) {
        let _: Result<(), _> = self.0.send(outcome);
    }
}

/// Sockets of all interfaces that are ours.
pub struct Server {
    sockets: Vec<Socket>,
    requests: mpsc::Sender<PendingRequest>,
}

/// Socket of one interface. Dropping it removes its file.
struct Socket {
    interface: String,
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens for requests to the controller of `all` pins, and returns the channel of the requests. A socket that
    /// can't be opened is logged and left out.
    pub fn listen<'a>(all: impl Iterator<Item = &'a Pins>) -> (Self, mpsc::Receiver<PendingRequest>) {
        let (requests, receiver) = mpsc::channel(1);
        let mut server = Self { sockets: Vec::new(), requests };
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

    /// Opens the socket for `pins`, whose lock we hold. A file that an earlier controller has left there is removed.
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
        let task = tokio::spawn(serve(listener, self.requests.clone()));
        self.sockets.push(Socket { interface: pins.interface().to_owned(), path, task });
        Ok(())
    }

    /// Closes the sockets of interfaces that are not `ours` any more.
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

/// Makes [`FOLDER`] if it is missing. Fails if another user could put a socket there.
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

/// Accepts clients of our own user, each on a task of its own, so that a slow client delays no other.
async fn serve(listener: UnixListener, requests: mpsc::Sender<PendingRequest>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw()) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, requests).await {
                        debug!("a request was not answered: {error:#}");
                    }
                });
            }
            Ok(_) => {}
            // For example, no descriptor is free.
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Receives a request, passes it on, and sends the answer.
async fn converse(mut stream: UnixStream, requests: mpsc::Sender<PendingRequest>) -> Result<()> {
    let request = timeout(PATIENCE, read(&mut stream, LONGEST)).await??;
    if request.is_empty() {
        // The client only wanted the id of our process: see `client::process`.
        return Ok(());
    }
    let outcome = match parse(&request) {
        Ok(Envelope { deadline_ns, order, .. }) => {
            let (reply, outcome) = oneshot::channel();
            let patience = order.patience();
            let pending = PendingRequest { order, deadline_ns, reply: Reply(reply) };
            requests.send(pending).await.ok().context("the controller is ending")?;
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

/// Parses a request. Errors do not quote it, since it may hold a key.
fn parse(request: &[u8]) -> Result<Envelope<Request>> {
    let header: Header = serde_json::from_slice(request).map_err(|_| {
        anyhow!("this is no request: it takes a JSON object with version, deadline_ns and order")
    })?;
    if header.version != VERSION {
        bail!(
            "this tfo ({}) understands version {VERSION} of requests, and this request has version {}: use the same \
             version of tfo",
            env!("CARGO_PKG_VERSION"),
            header.version
        );
    }
    serde_json::from_slice(request).map_err(|_| {
        anyhow!(
            "this tfo ({}) does not understand that request; it knows {NAMES}: use the same version of tfo",
            env!("CARGO_PKG_VERSION")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_why_a_request_is_not_understood() {
        let why = |request: &str| parse(request.as_bytes()).err().map(|error| error.to_string());
        assert_eq!(why(r#"{"version":1,"deadline_ns":1,"order":"reload"}"#), None);
        assert_eq!(why(r#"{"version":1,"deadline_ns":1,"order":{"rotate":{"emergency":true}}}"#), None);
        let other = why(r#"{"version":2,"new":"thing"}"#).expect("another version");
        assert!(other.contains("version 1 of requests") && other.contains("has version 2"), "{other}");
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
