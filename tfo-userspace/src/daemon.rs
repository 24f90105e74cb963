//! The controller: what is desired on which interface, and how it gets there. See [`reconcile`] for what is to be done when.

pub mod controller;
mod events;
pub mod http;
pub mod order_file;
pub mod reconcile;
pub mod site;
pub mod wake;
