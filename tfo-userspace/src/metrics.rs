//! `tfo run --metrics ADDR`: metrics for Prometheus, and whether all is well, over HTTP.
//!
//! A client gets what it asks for from the controller, which answers between two steps, with plain values; they are written
//! as text on another thread. So nobody makes the controller wait: who says nothing, says half of it, or does not read the
//! answer, takes one of a few places for a short time.

mod format;
mod labels;
mod snapshot;
mod text;

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
pub use format::Format;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use log::info;
pub use snapshot::{OnInterface, Program, RoleKeys, Snapshot};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
    task::spawn_blocking,
    time::timeout,
};

use crate::controller::Controller;

/// Connections that are served at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 16;
/// How long a client may take to say what it wants.
const TO_ASK: Duration = Duration::from_secs(2);
/// How long a connection may last. Prometheus itself waits no longer (`scrape_timeout`).
const PATIENCE: Duration = Duration::from_secs(10);

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
            Self::Metrics(reply) => drop(reply.send(Snapshot::take(controller, interfaces))),
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
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .with_state(Questions(questions));
        tokio::spawn(accept(listener, router));
    }
    receiver
}

async fn accept(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    // A client that goes away, or is too slow, is no failure of ours.
                    let _: Result<_, _> = timeout(PATIENCE, converse(stream, router)).await;
                    drop(place);
                });
            }
            // Out of descriptors, say: not for ever, it is hoped.
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// One request and one answer. A body is not read.
async fn converse(stream: TcpStream, router: Router) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TO_ASK)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
}

/// The way to the controller.
#[derive(Clone)]
struct Questions(mpsc::Sender<Question>);

impl Questions {
    /// `None` where it is ending.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.0.send(question(reply)).await.ok()?;
        answer.await.ok()
    }
}

const ENDING: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "tfo is ending\n");

async fn metrics(State(questions): State<Questions>, headers: HeaderMap) -> Response {
    let format = Format::accepted(headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()));
    let Some(snapshot) = questions.ask(Question::Metrics).await else { return ENDING.into_response() };
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

async fn healthz(State(questions): State<Questions>) -> Response {
    match questions.ask(Question::Health).await {
        Some(Ok(())) => "ok\n".into_response(),
        Some(Err(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        None => ENDING.into_response(),
    }
}
