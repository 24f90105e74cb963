//! Store of a build without the feature `etcd`. It can't be opened.

use std::convert::Infallible;

use anyhow::{Result, bail};

use super::{
    access::Access,
    value::{News, Value, Writes},
};

/// Connection to one member of etcd, of which there is none.
pub struct Store(Infallible);

/// Watch of one value, of which there is none.
pub struct Watch(Infallible);

impl Store {
    /// Fails.
    pub async fn connect(_: &Access, _: &str) -> Result<Self> {
        bail!("this tfo was built without etcd")
    }

    /// Reads a value.
    pub async fn get(&mut self, _: &str) -> Result<(Option<Value>, i64)> {
        match self.0 {}
    }

    /// Reads all values whose names begin with a prefix.
    pub async fn list(&mut self, _: &str) -> Result<Vec<Value>> {
        match self.0 {}
    }

    /// Writes a value if it is unchanged.
    pub async fn swap(&mut self, _: &str, _: i64, _: Vec<u8>) -> Result<bool> {
        match self.0 {}
    }

    /// Writes all values at once.
    pub async fn put(&mut self, _: Writes) -> Result<()> {
        match self.0 {}
    }

    /// Removes a value.
    pub async fn remove(&mut self, _: &str) -> Result<bool> {
        match self.0 {}
    }

    /// Makes a lease.
    pub async fn grant(&mut self, _: i64) -> Result<i64> {
        match self.0 {}
    }

    /// Renews a lease.
    pub async fn keep_alive(&mut self, _: i64) -> Result<bool> {
        match self.0 {}
    }

    /// Watches a value.
    pub async fn watch(&mut self, _: &str, _: i64) -> Result<Watch> {
        match self.0 {}
    }
}

impl Watch {
    /// Waits for news.
    pub async fn next(&mut self) -> Result<News> {
        match self.0 {}
    }
}
