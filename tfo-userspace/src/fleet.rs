//! Fleets: hosts that share a secret through etcd.
//!
//! Below a prefix, etcd has one value for the fleet ([`document`]), and two for each host: its [`record`] under a lease,
//! which goes when the host is silent, and the same record without a lease, by which a host that is gone is still known.
//! All are sealed ([`seal`]): etcd sees no secret, and whoever writes to it without the key of the fleet changes nothing.
//!
//! A host ([`feed`]) reads the document and gives it to the controller, which brings it into force. [`member`] decides
//! whether a document is taken. What was taken is also kept on the host ([`kept`]), for starts without etcd. The
//! commands of `tfo fleet` ([`console`]) change the document in steps ([`rotation`]) and judge the records
//! ([`standing`]).
//!
//! [`access`] is what a host needs to get to etcd. Only [`store`] knows etcd. A build without the feature `etcd` has a store that can't be opened.

pub mod access;
pub mod console;
pub mod document;
pub mod feed;
pub mod kept;
pub mod member;
pub mod record;
pub mod rotation;
pub mod seal;
pub mod standing;
#[cfg(feature = "etcd")]
pub mod store;
#[cfg(not(feature = "etcd"))]
#[path = "fleet/no_store.rs"]
pub mod store;
pub mod value;
