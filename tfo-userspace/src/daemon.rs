//! Controller of `tfo run`. It brings each interface to its desired state: see [`reconcile`].

pub mod controller;
pub mod enable;
mod events;
pub mod flood;
pub mod health;
pub mod http;
pub mod order_file;
pub mod reconcile;
pub mod site;
pub mod special;
pub mod wake;
