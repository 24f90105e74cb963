//! Values in etcd.

use std::time::Duration;

/// Longest time of a call to etcd.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Value in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Name of the value.
    pub name: String,
    /// Content, which is sealed.
    pub sealed: Vec<u8>,
    /// Revision of the last change.
    pub revision: i64,
}

/// Values to write, each with its name, and the lease under which it is, if any.
pub type Writes = Vec<(String, Vec<u8>, Option<i64>)>;

/// News of a value that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The value has changed; `None` if it was removed.
    Value(Option<Value>),
    /// Changes are lost, since etcd has compacted them away: read the value again.
    Lost,
}
