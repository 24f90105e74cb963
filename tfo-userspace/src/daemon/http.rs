//! HTTP server of `tfo run --metrics ADDR`, with metrics for Prometheus and the state of health.
//!
//! The controller answers a client's question between two steps, with plain values. Another thread writes them as text.
//! So no client delays the controller. A client that sends no complete request, or does not read the answer, is cut off
//! after two seconds, or sooner if its place is needed.

mod clients;
mod snapshot;

use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use clients::{Client, Clients, Stream};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::info;

use crate::{
    daemon::{controller::Controller, health::health},
    kernel::{listeners::Monitor, netns::outside},
    view::metrics::{Format, Snapshot},
};

/// Time that a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time of a connection. Prometheus itself waits no longer (`scrape_timeout`).
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between tries if there is no room, or no free descriptor.
const PAUSE: Duration = Duration::from_millis(10);

/// Listens at the address, which is of the namespace that started us: whoever asks for metrics is seldom in a container's.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    outside(bind)?.with_context(|| {
        format!("cannot serve metrics on {address} (give --metrics a local address that is free)")
    })
}

/// Question of a client to the controller, with the way back for the answer.
pub enum Question {
    /// Metrics of a scrape.
    Metrics(oneshot::Sender<Result<Snapshot>>),
    /// Health. The error has the reasons if something is wrong.
    Health(oneshot::Sender<Result<(), String>>),
}

impl Question {
    /// Answers the question for `controller`, which should be attached to `interfaces`. The answer is lost if the
    /// client does not wait any more.
    pub fn answer(self, controller: &Controller, interfaces: &[String]) {
        match self {
            Self::Metrics(reply) => drop(reply.send(snapshot::take(controller, interfaces))),
            Self::Health(reply) => drop(reply.send(health(controller, interfaces))),
        }
    }
}

/// Serves clients of `listener`, if there is one, and returns the channel of their questions.
pub fn serve(listener: Option<TcpListener>) -> mpsc::Receiver<Question> {
    let (questions, receiver) = mpsc::channel(1);
    if let Some(listener) = listener {
        if let Ok(address) = listener.local_addr() {
            info!("metrics are at http://{address}/metrics");
        }
        tokio::spawn(accept(listener, questions));
    }
    receiver
}

async fn accept(listener: TcpListener, questions: mpsc::Sender<Question>) {
    let (clients, listeners) = (Arc::new(Clients::new()), monitor());
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            // For example, no descriptor is free.
            Err(_) => {
                clients.cut_slowest(|_| true);
                sleep(PAUSE).await;
                continue;
            }
        };
        let client = loop {
            match clients.admit(address.ip()) {
                Some(client) => break client,
                None => sleep(PAUSE).await,
            }
        };
        let connection = Connection {
            questions: questions.clone(),
            clients: Arc::clone(&clients),
            client,
            listeners: Arc::clone(&listeners),
        };
        tokio::spawn(async move {
            let (clients, client) = (Arc::clone(&connection.clients), Arc::clone(&connection.client));
            let stream = Stream::new(stream, Arc::clone(&client));
            // A client that goes away or is too slow needs no log line.
            tokio::select! {
                _ = timeout(PATIENCE, converse(stream, connection)) => {}
                () = client.cut() => {}
            }
            clients.remove(&client);
        });
    }
}

/// Returns the reader of the listeners' queues. It is loaded on a thread of its own, and first scrapes do without it.
fn monitor() -> Arc<Monitor> {
    let listeners = Arc::new(Monitor::default());
    let monitor = Arc::clone(&listeners);
    if let Err(error) = thread::Builder::new().name("listeners".to_owned()).spawn(move || monitor.load()) {
        info!("the queues of listeners are no metrics: {error}");
    }
    listeners
}

/// Serves one request. Its body is not read.
async fn converse(stream: Stream, connection: Connection) -> hyper::Result<()> {
    let router =
        Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(connection);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
}

/// Connection of a client, with the channel to the controller.
#[derive(Clone)]
struct Connection {
    questions: mpsc::Sender<Question>,
    clients: Arc<Clients>,
    client: Arc<Client>,
    listeners: Arc<Monitor>,
}

impl Connection {
    /// Asks the controller. Returns `None` if the controller is ending.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(question(reply)).await.ok()?;
        answer.await.ok()
    }
}

const ENDING: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "tfo is ending\n");

async fn metrics(State(connection): State<Connection>, headers: HeaderMap) -> Response {
    connection.client.request_received();
    connection.clients.place(&connection.client).await;
    let format = Format::accepted(headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()));
    let Some(snapshot) = connection.ask(Question::Metrics).await else { return ENDING.into_response() };
    // With a thousand services, writing the text takes too long for the controller's thread.
    let listeners = Arc::clone(&connection.listeners);
    let text = match snapshot {
        Ok(snapshot) => {
            spawn_blocking(move || Snapshot { listeners: listeners.read(), ..snapshot }.text(format))
                .await
                .context("cannot write the metrics")
        }
        Err(error) => Err(error),
    };
    match text {
        Ok(text) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

async fn healthz(State(connection): State<Connection>) -> Response {
    connection.client.request_received();
    match connection.ask(Question::Health).await {
        Some(Ok(())) => "ok\n".into_response(),
        Some(Err(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        None => ENDING.into_response(),
    }
}
