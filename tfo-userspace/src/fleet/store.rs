//! Values of the fleet in etcd. Each call ends within [`PATIENCE`], and a login within `LOGIN`.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions, Identity,
    KeyValue, PutOptions, TlsOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use tokio::time::timeout;

use super::{
    access::Access,
    value::{News, PATIENCE, Value, Writes},
};

/// Longest time of a connect with a password, which etcd checks by a hash that is slow on purpose.
const LOGIN: Duration = Duration::from_secs(10);
/// Interval between pings of a connection.
const PING: Duration = Duration::from_secs(3);

/// Connection to one member of etcd.
pub struct Store {
    client: Client,
}

/// Watch of one value.
pub struct Watch {
    stream: WatchStream,
    /// Later news of the same message.
    waiting: Vec<News>,
}

impl Store {
    /// Connects to the member at `endpoint`.
    pub async fn connect(access: &Access, endpoint: &str) -> Result<Self> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(PATIENCE)
            .with_keep_alive(PING, PATIENCE)
            // A member that has lost the others answers with an error instead of old values.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(tls) = &access.tls {
            let mut trusted = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some((certificate, key)) = &tls.identity {
                trusted = trusted.identity(Identity::from_pem(certificate, key.as_slice()));
            }
            options = options.with_tls(trusted);
        }
        if let Some((user, password)) = &access.user {
            options = options.with_user(user, password.as_str());
        }
        let patience = if access.user.is_some() { LOGIN } else { PATIENCE };
        let client = within(patience, Client::connect([endpoint], Some(options))).await;
        Ok(Self { client: client.with_context(|| format!("cannot connect to {endpoint}"))? })
    }

    /// Reads a value. Returns the revision of etcd along with it.
    pub async fn get(&mut self, name: &str) -> Result<(Option<Value>, i64)> {
        let response = within(PATIENCE, self.client.get(name, None)).await?;
        let revision = response.header().map_or(0, |header| header.revision());
        Ok((response.kvs().first().map(value).transpose()?, revision))
    }

    /// Reads all values whose names begin with `prefix`.
    pub async fn list(&mut self, prefix: &str) -> Result<Vec<Value>> {
        let response =
            within(PATIENCE, self.client.get(prefix, Some(GetOptions::new().with_prefix()))).await?;
        response.kvs().iter().map(value).collect()
    }

    /// Writes a value if its last change is of `revision`, 0 for no value. Returns whether it was.
    pub async fn swap(&mut self, name: &str, revision: i64, sealed: Vec<u8>) -> Result<bool> {
        let is_unchanged = Compare::mod_revision(name, CompareOp::Equal, revision);
        let transaction = Txn::new().when([is_unchanged]).and_then([TxnOp::put(name, sealed, None)]);
        Ok(within(PATIENCE, self.client.txn(transaction)).await?.succeeded())
    }

    /// Writes all values at once.
    pub async fn put(&mut self, writes: Writes) -> Result<()> {
        let put = |(name, sealed, lease): (String, Vec<u8>, Option<i64>)| {
            TxnOp::put(name, sealed, lease.map(|lease| PutOptions::new().with_lease(lease)))
        };
        let transaction = Txn::new().and_then(writes.into_iter().map(put).collect::<Vec<_>>());
        within(PATIENCE, self.client.txn(transaction)).await.map(drop)
    }

    /// Removes a value. Returns whether there was one.
    pub async fn remove(&mut self, name: &str) -> Result<bool> {
        Ok(within(PATIENCE, self.client.delete(name, None)).await?.deleted() > 0)
    }

    /// Makes a lease of `seconds`.
    pub async fn grant(&mut self, seconds: i64) -> Result<i64> {
        Ok(within(PATIENCE, self.client.lease_grant(seconds, None)).await?.id())
    }

    /// Renews a lease. Returns whether it still existed.
    pub async fn keep_alive(&mut self, lease: i64) -> Result<bool> {
        match timeout(PATIENCE, self.client.lease_keep_alive(lease)).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(Error::LeaseKeepAliveError(_))) => Ok(false),
            Ok(Err(error)) => Err(described(&error)),
            Err(_) => bail!("no answer within {PATIENCE:?}"),
        }
    }

    /// Watches a value from `revision` on.
    pub async fn watch(&mut self, name: &str, revision: i64) -> Result<Watch> {
        let options = WatchOptions::new().with_start_revision(revision);
        let stream = within(PATIENCE, self.client.watch(name, Some(options))).await?;
        Ok(Watch { stream, waiting: Vec::new() })
    }
}

impl Watch {
    /// Waits for news, without an end.
    pub async fn next(&mut self) -> Result<News> {
        while self.waiting.is_empty() {
            let message = self.stream.message().await.map_err(|error| described(&error))?;
            let message = message.context("the watch has ended")?;
            if message.canceled() {
                if message.compact_revision() > 0 {
                    return Ok(News::Lost);
                }
                bail!("the watch was ended: {}", message.cancel_reason());
            }
            for event in message.events() {
                let value = match event.event_type() {
                    EventType::Put => event.kv().map(value).transpose()?,
                    EventType::Delete => None,
                };
                self.waiting.push(News::Value(value));
            }
            self.waiting.reverse();
        }
        Ok(self.waiting.pop().expect("it is not empty"))
    }
}

fn value(found: &KeyValue) -> Result<Value> {
    Ok(Value {
        name: found.key_str().context("a name in etcd is not text")?.to_owned(),
        sealed: found.value().to_vec(),
        revision: found.mod_revision(),
    })
}

/// Waits for a call, but no longer than `patience`.
async fn within<T>(patience: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T> {
    match timeout(patience, call).await {
        Ok(outcome) => outcome.map_err(|error| described(&error)),
        Err(_) => bail!("no answer within {patience:?}"),
    }
}

/// Returns an error with all reasons of `error`. The library's own text often lacks the last, such as that a certificate
/// has expired.
fn described(error: &Error) -> anyhow::Error {
    let mut text = match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    let mut source = match error {
        Error::GRpcStatus(status) => std::error::Error::source(status),
        Error::TransportError(error) => std::error::Error::source(error),
        _ => None,
    };
    while let Some(reason) = source {
        let reason_ = reason.to_string();
        if !text.contains(&reason_) {
            text = format!("{text}: {reason_}");
        }
        source = reason.source();
    }
    anyhow!(text)
}
