//! General helpers, which have nothing to do with Fast Open.

pub mod background;
pub mod descriptors;
pub mod files;
pub mod journal;
pub mod logging;
pub mod output;
pub mod privileges;
pub mod runtime;
pub mod screen;
pub mod secrecy;
pub mod service;
pub mod signals;
pub mod time;
