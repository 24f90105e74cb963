//! `tfo run --metrics ADDR`: metrics for Prometheus, and whether all is well, over HTTP.
//!
//! A client gets what it asks for from the controller, which answers between two steps, with plain values; they are written
//! as text on another thread. So nobody makes the controller wait. A client that says nothing, says half of it, or does not
//! read the answer is cut off after two seconds, and sooner where its place is needed.

mod clients;
mod snapshot;

use std::{net::SocketAddr, sync::Arc, time::Duration};

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
    daemon::controller::Controller,
    view::metrics::{Format, Snapshot},
};

/// How long a client may take to say what it wants.
const TO_ASK: Duration = Duration::from_secs(2);
/// How long a connection may last. Prometheus itself waits no longer (`scrape_timeout`).
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for room, or for a free descriptor.
const PAUSE: Duration = Duration::from_millis(10);

/// Takes the address, from now on.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot serve metrics on {address} (give --metrics a local address that is free)")
    })
}

/// What a client wants to know of the controller, and where the answer goes.
pub enum Question {
    /// All there is to show.
    Metrics(oneshot::Sender<Result<Snapshot>>),
    /// Whether all is well, or why not.
    Health(oneshot::Sender<Result<(), String>>),
}

impl Question {
    /// Answers it for `controller`, which is to be attached to `interfaces`. Whoever does not wait for that does without.
    pub fn answer(self, controller: &Controller, interfaces: &[String]) {
        match self {
            Self::Metrics(reply) => drop(reply.send(snapshot::take(controller, interfaces))),
            Self::Health(reply) => drop(reply.send(snapshot::health(controller, interfaces))),
        }
    }
}

/// Serves whoever connects to `listener`, from now on. Where there is none, there are no questions.
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
    let clients = Arc::new(Clients::new());
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Out of descriptors, say.
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
        let asker = Asker { questions: questions.clone(), clients: Arc::clone(&clients), client };
        tokio::spawn(async move {
            let (clients, client) = (Arc::clone(&asker.clients), Arc::clone(&asker.client));
            let stream = Stream::new(stream, Arc::clone(&client));
            // A client that goes away, or is too slow, is no failure of ours.
            tokio::select! {
                _ = timeout(PATIENCE, converse(stream, asker)) => {}
                () = client.cut() => {}
            }
            clients.remove(&client);
        });
    }
}

/// One request and one answer. A body is not read.
async fn converse(stream: Stream, asker: Asker) -> hyper::Result<()> {
    let router =
        Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(asker);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TO_ASK)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
}

/// A client, and the way to the controller.
#[derive(Clone)]
struct Asker {
    questions: mpsc::Sender<Question>,
    clients: Arc<Clients>,
    client: Arc<Client>,
}

impl Asker {
    /// `None` where the controller is ending.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(question(reply)).await.ok()?;
        answer.await.ok()
    }
}

const ENDING: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "tfo is ending\n");

async fn metrics(State(asker): State<Asker>, headers: HeaderMap) -> Response {
    asker.client.has_asked();
    asker.clients.place(&asker.client).await;
    let format = Format::accepted(headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()));
    let Some(snapshot) = asker.ask(Question::Metrics).await else { return ENDING.into_response() };
    // Of a thousand services it takes longer than the controller should be kept from its keys.
    let text = match snapshot {
        Ok(snapshot) => {
            spawn_blocking(move || snapshot.text(format)).await.context("cannot write the metrics")
        }
        Err(error) => Err(error),
    };
    match text {
        Ok(text) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

async fn healthz(State(asker): State<Asker>) -> Response {
    asker.client.has_asked();
    match asker.ask(Question::Health).await {
        Some(Ok(())) => "ok\n".into_response(),
        Some(Err(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        None => ENDING.into_response(),
    }
}
